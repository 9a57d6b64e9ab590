"""Review sentences rated by people, in five classes: a task that needs no account and no hub.

Hutto & Gilbert (2014) had 20 people rate each of 3,708 sentences of Amazon reviews and 10,605 of
film reviews on −4…4. The means ship in the source distribution of their package vaderSentiment.
"""

import bisect
import hashlib
import html
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from lorasweep import package_index
from lorasweep.errors import LorasweepError, RequestError
from lorasweep.package_index import Package
from lorasweep.tasks.data import Examples, Task, TaskData
from lorasweep.tasks.split import finish
from lorasweep.tasks.subset import rank, size_problems

LABELS = ["very_negative", "negative", "neutral", "positive", "very_positive"]
# The quintiles of all ratings, rounded; a rating on a cut is in the higher class.
# They give 2,871, 2,780, 2,859, 2,818 and 2,969 sentences.
CUTS = (-1.8, -0.9, 1.15, 2.0)

# The split is part of the task: results on it can be compared whatever else was set.
EVAL_FRACTION = 0.2
TRAIN_ROWS, EVAL_ROWS = 11404, 2893
TOKENS = 26.0  # in a sentence on average, by MiniLM's vocabulary

_FILES = {
    "amazon": "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
    "film": "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
}


_VADER = Package(
    kind="sdist",
    name="vaderSentiment",
    version="3.2.1",
    sha256="5dce530a78315563f8b3cd01033bbdd3bf4985fabf359ca68d4167728081c803",
)


def problems(task: Task) -> list[str]:
    """What is wrong with the settings; the data are pinned, so nothing has to be fetched."""
    found = size_problems(task, TRAIN_ROWS, EVAL_ROWS, len(LABELS))
    if task["eval_fraction"] not in (None, EVAL_FRACTION):
        found.append(
            f"task.eval_fraction={task['eval_fraction']}: the split of {task['name']} is fixed at "
            f"{EVAL_FRACTION}, so that results can be compared"
        )
    return found


def load(task: Task, cache: Path, sdist: Package = _VADER) -> TaskData:
    """Read the sentences, fetching their package if it is not in the cache.

    Items are named ``amazon:<review>_<sentence>`` and ``film:<review>``.

    Args:
        task: settings; sizes and subset seed are used.
        cache: folder that keeps the package (2.5 MB).
        sdist: where the sentences are.

    Raises:
        LorasweepError: the package cannot be fetched, or is not the one that is meant.
        RequestError: more rows are wanted than there are.
    """
    train, evaluation = _split(_parse(_fetched(cache / "reviews5", sdist), sdist))
    found = size_problems(task, len(train), len(evaluation), len(LABELS))
    if found:
        raise RequestError(found)
    return finish(
        task,
        (train, evaluation, LABELS),
        {
            "source": f"{sdist.name} {sdist.version}, hutto_ICWSM_2014 (Hutto & Gilbert 2014)",
            "hash": sdist.sha256,
            "licence": "MIT",
            "cuts": list(CUTS),
        },
    )


def _fetched(folder: Path, sdist: Package) -> bytes:
    """Content of the package, from the cache or else from the package index."""
    kept = folder / f"{sdist.name}-{sdist.version}.tar.gz"
    if kept.exists():
        content = kept.read_bytes()
        if hashlib.sha256(content).hexdigest() == sdist.sha256:
            return content
    try:
        # within the same folder, so that the file can be moved into place in one step
        with package_index.fetched(sdist, folder) as file:
            file.replace(kept)
    except LorasweepError as error:
        raise LorasweepError(
            f"task=reviews5: {error}. Or put {kept.name} from the package index at "
            f"{kept.absolute()}, or use your own data (task=local)"
        ) from error
    return kept.read_bytes()


@dataclass(frozen=True)
class _Sentence:
    item: str
    review: str
    rating: float
    text: str


def _parse(content: bytes, sdist: Package) -> list[_Sentence]:
    """Read the rated sentences, each text once."""
    sentences: dict[str, _Sentence] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as outer:
        inner = _member(
            outer, f"{sdist.name}-{sdist.version}/additional_resources/hutto_ICWSM_2014.tar.gz"
        )
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        for kind, path in _FILES.items():
            for line in _member(archive, path).decode("utf-8").split("\n"):
                if not line.strip():
                    continue
                item, rating, raw = line.rstrip("\r").split("\t")
                # some entities were escaped a second time
                text = " ".join(html.unescape(html.unescape(raw)).split())
                if any(character.isalpha() for character in text):
                    review = f"{kind}:{item.partition('_')[0]}"
                    sentence = _Sentence(f"{kind}:{item}", review, float(rating), text)
                    sentences.setdefault(text.casefold(), sentence)
    return list(sentences.values())


def _member(archive: tarfile.TarFile, path: str) -> bytes:
    file = archive.extractfile(path)
    assert file is not None, f"{path} is no plain file"
    return file.read()


def _split(sentences: list[_Sentence]) -> tuple[Examples, Examples]:
    """Put each review on one side, by a hash of its name."""

    def held_out(sentence: _Sentence) -> bool:
        return int.from_bytes(rank(sentence.review)[:4]) < EVAL_FRACTION * 2**32

    sides = (
        [sentence for sentence in sentences if not held_out(sentence)],
        [sentence for sentence in sentences if held_out(sentence)],
    )
    train, evaluation = (
        Examples(
            ids=[sentence.item for sentence in side],
            texts=[sentence.text for sentence in side],
            pairs=None,
            labels=[bisect.bisect_right(CUTS, sentence.rating) for sentence in side],
        )
        for side in sides
    )
    return train, evaluation
