"""A method is one file: found by its name, its word asked for, never taken for another."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lorasweep import methods
from lorasweep.engines.packed import compat
from lorasweep.methods.base import Method
from lorasweep.methods.lora import Lora
from lorasweep.space import expand, grammar
from lorasweep.space.composition import Composer
from lorasweep.trial.key import key_of, method_type
from lorasweep.trial.trial import Trial
from tests.conftest import ROOT, Sweep

OWN_METHOD = '''
"""DoRA, as someone might write it outside of the package."""

from lorasweep.methods.lora import Lora


class Dora(Lora):
    def peft_config(self, trial, layers, head):
        config = super().peft_config(trial, layers, head)
        config.use_dora = True
        return config


METHOD = Dora()
'''


def read(composer: Composer, *typed: str) -> tuple[list[Trial], list[str]]:
    problems: list[str] = []
    space = grammar.read(["model=tiny_llama", *typed], {}, composer, problems)
    return expand.expand(space, composer, problems), problems


@pytest.mark.parametrize("name", methods.NAMES)
def test_asking_a_method_loads_nothing_heavy(name: str) -> None:
    code = f"from lorasweep import methods; methods.load('{name}'); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "peft", "transformers", "numpy"}.isdisjoint(done.stdout.split())


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("method.type=lroa", "did you mean 'lora'"),
        ("method.type=heads", "no METHOD"),
        ("method.type=nobodys.method", "PYTHONPATH"),
        ("method.type=full", "needs method.trains=everything, not adapter"),
    ],
)
def test_what_is_no_method_is_said(composer: Composer, typed: str, says: str) -> None:
    _, problems = read(composer, typed)
    assert len(problems) == 1
    assert says in problems[0]


@pytest.mark.parametrize("method", ["base", "fft", "lora", "qlora"])
def test_the_first_methods_are_in_no_key(composer: Composer, method: str) -> None:
    (trial,), _ = read(composer, f"method={method}")
    older = {name: value for name, value in trial.config.items() if name != "method.type"}
    assert key_of(older) == trial.key
    assert method_type(older) == trial["method.type"]
    assert key_of({**trial.config, "method.type": "my.own"}) != trial.key


def test_a_method_built_on_lora_is_not_packed_unless_it_says_so() -> None:
    class Built(Lora):
        pass

    class Known(Lora):
        packed = Lora.packed

    assert Built().packed is None
    assert Method.packed is None
    assert Known().packed == Lora().packed is not None


def test_a_method_from_outside_trains_as_itself(
    sweep: Sweep, data: list[str], tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").touch()
    (tmp_path / "own" / "dora.py").write_text(OWN_METHOD)
    lora = yaml.safe_load((ROOT / "conf/method/lora.yaml").read_text())
    (tmp_path / "conf" / "method").mkdir(parents=True)
    own = {**lora, "name": "dora", "type": "own.dora"}
    (tmp_path / "conf" / "method" / "dora.yaml").write_text(yaml.safe_dump(own))
    done = sweep(
        "--config-dir", str(tmp_path / "conf"), "-m", "method=dora", "model=tiny_llama", *data,
        "train.max_steps=2", "train.max_length=16", "engine=packed", "executor.workers=1",
        f"output_dir={tmp_path}",
        PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (saved,) = tmp_path.rglob("adapter_model.safetensors")
    assert b"lora_magnitude_vector" in saved.read_bytes()


def test_packs_leave_a_method_that_they_do_not_know(
    composer: Composer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_dora").mkdir()
    (tmp_path / "own_dora" / "dora.py").write_text(OWN_METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    (trial,), problems = read(composer, "engine=packed", "method.type=own_dora.dora")
    assert problems == []
    assert "packs do not know this method" in str(compat.problems(trial))
