"""The plan as users and scripts see it: before anything is loaded, on any machine."""

import json
from pathlib import Path

from tests.conftest import Sweep
from tests.e2e.conftest import rows_of

STUDY = ["model=llama3_8b", "task=yelp5", "train=patil2025", "device=a100_40gb"]


def test_what_trains_together_is_told(sweep: Sweep, tmp_path: Path) -> None:
    def told(*words: str) -> str:
        done = sweep(
            "-m", "plan=table", "lora.r=8,16", "method=lora,base", "device=h100",
            f"output_dir={tmp_path}", *words,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return " ".join(done.stdout.split())

    assert "2 of them train together in one pack. 1 alone: method=base trains no adapter." in told()
    assert "together" not in told("engine=trainer")


def packs(sweep: Sweep, *words: str) -> list[int]:
    done = sweep("-m", "plan=json", "lora.r=8,16", *words)
    assert done.returncode == 0, done.stderr
    return [len(pack) for pack in json.loads(done.stdout)["packs"]]


def test_trials_are_packed_by_default_on_a_gpu_where_they_can_be(sweep: Sweep) -> None:
    assert packs(sweep, "device=h100") == [2]
    assert packs(sweep, "device=cpu") == [1, 1]
    assert packs(sweep, "device=cpu", "engine=packed") == [2]
    assert packs(sweep, "device=h100", "engine=trainer") == [1, 1]
    assert packs(sweep, "device=h100", "method=lora,base") == [2, 1]
    # a pack has no peak of memory that is one trial's
    assert packs(sweep, "device=h100", "sampler.objectives=[accuracy,memory]") == [1, 1]
    assert packs(sweep, "device=h100", "sampler.objectives=[accuracy,time]") == [1, 1]


def test_json_is_all_there_is_on_standard_output(sweep: Sweep, tmp_path: Path) -> None:
    done = sweep(
        "-m", *STUDY, "plan=json", "method=lora,qlora", "target=attention,all_linear_head",
        "lora.r=8,512", f"output_dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert set(plan) == {"trials", "packs", "summary"}
    method = {t["key"]: t["config"]["method.name"] for t in plan["trials"]}
    assert sorted(method) == sorted(key for pack in plan["packs"] for key in pack)
    assert all(len({method[key] for key in pack}) == 1 for pack in plan["packs"])
    # Patil et al. 2025, Table 4
    assert [t["trainable"] for t in plan["trials"][:4]] == [
        6_836_224, 436_228_096, 21_024_808, 1_344_297_472,
    ]  # fmt: skip
    first = plan["trials"][0]
    assert set(first) == {
        "key", "state", "config", "trainable", "total", "peak_gib", "seconds", "fits",
    }  # fmt: skip
    assert first["state"] == "new"
    assert first["config"]["lora.alpha"] == 16
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    sweep: Sweep, data: list[str], tmp_path: Path
) -> None:
    common = [
        "-m", "model=tiny_bert", "method=lora,fft", "model.shape.hidden_size=64,8192", *data,
        "device=2gb", f"output_dir={tmp_path}",
    ]  # fmt: skip
    refused = sweep(*common)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "do not fit" in refused.stderr
    assert "skip_unfit=true" in refused.stderr
    assert not (tmp_path / "mlflow.db").exists()
    skipped = sweep(*common, "skip_unfit=true")
    assert skipped.returncode == 0, skipped.stdout + skipped.stderr
    assert {r["model.shape.hidden_size"] for r in rows_of(tmp_path)} == {"64"}


def test_the_plan_knows_what_is_done(
    matrix: tuple[Path, object], sweep: Sweep, data: list[str]
) -> None:
    output = matrix[0]
    common = [
        "-m", "plan=json", "model=tiny_bert", "target=q", "train.max_length=64",
        "train.batch_size=8", "lora.r=4,5", *data, f"output_dir={output}",
    ]  # fmt: skip
    here = json.loads(sweep(*common, "name=matrix").stdout)
    assert [t["state"] for t in here["trials"]] == ["done", "new"]
    elsewhere = json.loads(sweep(*common, "name=other").stdout)
    assert [t["state"] for t in elsewhere["trials"]] == ["shared", "new"]


def test_plans_parameters_are_those_of_the_real_models(
    matrix: tuple[Path, object], sweep: Sweep, data: list[str]
) -> None:
    output = matrix[0]
    done = sweep(
        "-m", "plan=json", "model=tiny_llama,tiny_bert", "method=base,fft,lora,qlora",
        "target=attention,all_linear,qv,q,k,v,o,mlp", "lora.r=4", "train.max_length=64",
        "train.batch_size=8", *data, f"output_dir={output}", "name=matrix",
    )  # fmt: skip
    planned = {t["key"]: (t["trainable"], t["total"]) for t in json.loads(done.stdout)["trials"]}
    recorded = {
        r["lorasweep.key"]: (r["params/trainable"], r["params/total"]) for r in rows_of(output)
    }
    assert len(planned) == 36
    assert {k: recorded[k] for k in planned} == planned
