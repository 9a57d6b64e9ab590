"""What a trial's key is made of, when a worker counts as busy, what damaged weights look like."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from lorasweep.engines.packed import compat
from lorasweep.errors import RecordError
from lorasweep.models import source
from lorasweep.record.reading import read
from lorasweep.record.record import Record
from lorasweep.running.usage import Use
from lorasweep.space import expand, grammar
from lorasweep.space.composition import Composer
from lorasweep.trial import key as trial
from lorasweep.trial.key import key_of
from lorasweep.trial.trial import Trial
from tests.conftest import ROOT

# Finished trials keep these for ever, whatever settings, methods and names come or go. A release
# that changes the numbers of one appends to trial.NUMERICS; one that adds a setting, to NEUTRAL.
KEYS = {
    "model=minilm method=lora": "53b3f2037469",
    "model=minilm method=qlora target=attention lora.r=16": "47f048f9950f",
    "model=minilm method=fft": "c4dcdd1cad44",
    "model=minilm method=base": "399ff5ea85d0",
    "model=llama3_8b task=yelp5 method=lora seed=1": "e9731e6c1d8a",
    "model=llama3_8b task=yelp5 method=qlora method.double_quant=true lora.alpha=r": "a78f9c9e0dbc",
    "model=llama3_8b method=fft train=patil2025 train.master_weights=none task=yelp5": (
        "dd23c188e9f2"
    ),
    "model=llama3_8b task=yelp5 method=base": "d98a3dac3322",
    "model=smollm2_135m method=lora target=all_linear_head lora.dropout=0.05": "532046c6a5bf",
    "model=smollm2_135m method=qlora method.quant=int8": "8ea3eda4077b",
    "model=tiny_llama method=lora train.max_steps=10": "e44be2d7d414",
    "model=tiny_bert method=qlora train.precision=bf16": "77d82e510bfa",
}


def trial_of(composer: Composer, typed: str) -> Trial:
    problems: list[str] = []
    found = expand.expand(grammar.read(typed.split(), {}, composer, problems), composer, problems)
    assert (problems, len(found)) == ([], 1)
    return found[0]


@pytest.mark.parametrize(("typed", "key"), KEYS.items(), ids=KEYS)
def test_keys_are_for_ever(composer: Composer, typed: str, key: str) -> None:
    assert trial_of(composer, typed).key == key


@pytest.mark.parametrize("name", ["default_sweep", "patil2025_smollm2"])
def test_recorded_trials_keep_their_keys(name: str) -> None:
    table = pd.read_parquet(ROOT / f"docs/runs/{name}.parquet")
    models = {f.stem: yaml.safe_load(f.read_text()) for f in (ROOT / "conf/model").glob("*.yaml")}
    changed: set[str] = set()  # studies
    for row in table.itertuples():
        config = {"seed": row.seed, "task.train_file": None, "task.eval_file": None}
        config |= json.loads(str(row.config))
        # the table leaves out where files lie; a path within a package is the same everywhere
        config["model.path"] = models[config["model.name"]]["path"]
        if key_of(config) != row.key:
            changed.add(row.study)
    assert not changed


LOCAL = "task=local task.train_file=a.csv task.eval_file=b.csv"
TINY = "model=tiny_llama"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("lora.alpha=16", "lora.alpha=16.0"),
        ("lora.r=3 lora.alpha=1.5", "lora.r=3 lora.alpha=0.5r"),
        ("target=attention", "target.roles=[value,key,output,query,key]"),
        (f"{TINY} target=mlp", f"{TINY} target.roles=[gate,down,up]"),
        ("train.max_steps=5 train.epochs=1", "train.max_steps=5 train.epochs=3"),
        ("train.schedule=constant", "train.schedule=constant train.warmup=0.3"),
        ("method=qlora method.quant=int8", "method=qlora method.quant=int8 method.double_quant=1"),
        (LOCAL, f"{LOCAL} task.eval_fraction=0.5"),
        (LOCAL, f"{LOCAL} task.subset_seed=3"),
        ("task.eval_fraction=0.2", "task.eval_fraction=null"),
        (f"{TINY} model.path=a model.revision=b", TINY),
        ("model=minilm model.tokenizer=bytes", "model=minilm"),
        ("model=minilm model.precision=bf16 train.precision=fp32", "model=minilm"),
    ],
)
def test_one_trial_has_one_key_however_it_is_typed(
    composer: Composer, one: str, other: str
) -> None:
    assert trial_of(composer, one).key == trial_of(composer, other).key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train.epochs=1", "train.epochs=3"),
        ("train.warmup=0.3", "train.warmup=0.2"),
        ("method=qlora", "method=qlora method.double_quant=true"),
        (f"{LOCAL} task.eval_file=null", f"{LOCAL} task.eval_file=null task.eval_fraction=0.5"),
        (f"{LOCAL} task.eval_file=null", f"{LOCAL} task.eval_file=null task.subset_seed=3"),
        (f"{LOCAL} task.eval_size=9", f"{LOCAL} task.eval_size=9 task.subset_seed=3"),
        ("task.subset_seed=1", "task.subset_seed=2"),
        (f"{TINY} train.precision=fp32", f"{TINY} model.precision=bf16 train.precision=fp32"),
    ],
)
def test_what_decides_a_result_is_in_the_key(composer: Composer, one: str, other: str) -> None:
    assert trial_of(composer, one).key != trial_of(composer, other).key


def test_random_bases_of_two_precisions_share_no_pack(composer: Composer) -> None:
    one, other = (
        compat.base_of(trial_of(composer, f"{TINY} {typed} train.precision=fp32"))
        for typed in ("model.precision=fp32", "model.precision=bf16")
    )
    assert one != other


def test_a_setting_at_its_neutral_value_is_not_in_the_key(
    composer: Composer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trial_of(composer, "model=tiny_llama").config
    monkeypatch.setitem(trial.NEUTRAL, "method.dora", False)
    assert key_of({**config, "method.dora": False}) == key_of(config)
    assert key_of({**config, "method.dora": True}) != key_of(config)


def test_master_weights_are_in_the_key_where_they_change_a_trial(composer: Composer) -> None:
    def alike(*words: str) -> bool:
        typed = " ".join(["model=tiny_llama", *words])
        words_of_both = (f"{typed} train.master_weights={word}" for word in ("float32", "none"))
        one, other = (trial_of(composer, words).key for words in words_of_both)
        return one == other

    assert not alike("method=fft", "train.precision=bf16")
    assert alike("method=fft", "train.precision=fp32")
    for method in ("base", "lora", "qlora"):
        assert alike(f"method={method}", "train.precision=bf16"), method


def test_which_trials_have_other_numbers_than_before(composer: Composer) -> None:
    def number(typed: str) -> int:
        return trial.numerics(trial_of(composer, f"model=tiny_llama {typed}").config)

    assert number("train.accumulation=2") == 1
    assert number("train.max_steps=1") == 1
    for typed in ("train.accumulation=1", "method=base train.accumulation=2 train.max_steps=1"):
        assert number(typed) == 0
    assert number("train.max_steps=2") == number("train.max_steps=1 train.warmup=0") == 0


def test_only_trials_whose_numbers_a_release_changed_run_again(
    composer: Composer, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("seed=1", "train.batch_size=4", "train.batch_size=4 train.weight_decay=0.1")

    def keys() -> list[str]:
        return [trial_of(composer, f"model=tiny_llama {typed}").key for typed in words]

    def changed(why: str, setting: str, value: Any) -> list[bool]:
        before = keys()
        trial.NUMERICS.append((why, lambda config: bool(config[setting] == value)))
        return [a != b for a, b in zip(before, keys(), strict=True)]

    monkeypatch.setattr(trial, "NUMERICS", [*trial.NUMERICS])
    assert changed("batches of 4", "train.batch_size", 4) == [False, True, True]
    assert changed("decay", "train.weight_decay", 0.1) == [False, False, True]
    assert changed("never", "train.batch_size", 3) == [False, False, False]


def test_a_worker_with_several_trials_is_busy_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("lorasweep.running.usage.time.time", lambda: now[0])
    use = Use()
    for second, worker, key in ((100, 0, "a"), (101, 0, "b"), (104, 1, "c")):
        now[0] = second
        use.begin(worker, key)
    for second, key in ((105, "a"), (106, "b"), (110, "c")):
        now[0] = second
        use.end(key)
    assert use.busy == (106 - 100) + (110 - 104)
    assert use.idle_share(2) == pytest.approx(1 - 12 / 20)


def safetensors(length: int) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, length]}}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (safetensors(8) + bytes(8), None),
        (safetensors(8) + bytes(7), "bytes"),
        (safetensors(8) + bytes(9), "bytes"),
        (safetensors(8)[:20], "cut off"),
        (b"abc", "no header"),
        ((5).to_bytes(8, "little") + b"{bad}", "unreadable"),
        ((2).to_bytes(8, "little") + b"[]", "unreadable"),
    ],
)
def test_damage_is_seen_in_the_header(tmp_path: Path, content: bytes, says: str | None) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    found = source.damaged(file)
    assert found is None if says is None else says in (found or "")


def test_a_record_that_is_not_there_or_broken_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="make sweep"):
        read(f"sqlite:///{tmp_path}/none.db")
    broken = tmp_path / "broken.db"
    broken.write_text("no database, but long enough to be taken for the header of one " * 20)
    with pytest.raises(RecordError, match="cannot be used"):
        Record(f"sqlite:///{broken}", tmp_path)
    with pytest.raises(RecordError, match="it is a folder; name a file in it"):
        Record(f"sqlite:///{tmp_path}", tmp_path)


def test_a_folder_made_once_is_never_seen_half_made(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "part").write_text("x")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        source.made_once(tmp_path / "it", fail)
    assert list(tmp_path.iterdir()) == []
    made = source.made_once(tmp_path / "it", lambda to: (to / "part").write_text("x") and None)
    assert (made / "part").read_text() == "x"
