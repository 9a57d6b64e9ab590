"""The sweep grammar: from what is typed to an ordered set of trials."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from lorasweep.space import checks, expand, grammar, words
from lorasweep.space.composition import Composer
from lorasweep.space.progressions import expand_ellipsis
from lorasweep.trial.key import LOOSE, key_of
from lorasweep.trial.trial import Trial
from tests.conftest import ROOT


def trials(composer: Composer, *typed: str, **params: str) -> list[Trial]:
    problems: list[str] = []
    found = expand.expand(grammar.read(typed, params, composer, problems), composer, problems)
    assert problems == []
    return found


def problems(composer: Composer, *typed: str) -> list[str]:
    found: list[str] = []
    expand.expand(grammar.read(typed, {}, composer, found), composer, found)
    return found


@pytest.mark.parametrize(
    ("name", "typed", "meant"),
    [
        ("lora.r", [1, 2, 4, "...", 512], [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]),
        ("lora.r", [1, 2, "...", 8], [1, 2, 4, 8]),
        ("lora.r", [8, 16, 24, "...", 40], [8, 16, 24, 32, 40]),
        ("lora.r", [512, 256, "...", 64], [512, 256, 128, 64]),
        ("seed", [0, 1, "...", 4], [0, 1, 2, 3, 4]),
        ("seed", [1, 2, "...", 4], [1, 2, 3, 4]),
        ("train.learning_rate", [1e-5, 1e-4, "...", 1e-2], [1e-5, 1e-4, 1e-3, 1e-2]),
        ("lora.dropout", [0.0, 0.05, "...", 0.2], [0.0, 0.05, 0.1, 0.15, 0.2]),
        ("lora.alpha", ["r", "2r", "...", "8r"], ["r", "2r", "4r", "8r"]),
        ("lora.alpha", ["0.5r", "r", "2r", "...", "8r"], ["0.5r", "r", "2r", "4r", "8r"]),
        ("lora.r", [1, 2, 4, "...", 16, 100], [1, 2, 4, 8, 16, 100]),
        ("lora.r", [3, 5], [3, 5]),
    ],
)
def test_progressions(name: str, typed: list[object], meant: list[object]) -> None:
    assert expand_ellipsis(name, typed) == meant


@pytest.mark.parametrize(
    "typed",
    [
        [1, 2, 4, "...", 500],
        [1, 2, 5, "...", 10],
        [1, "...", 8],
        ["...", 8],
        [1, 2, "..."],
        [1, 2, "...", 8, "...", 16],
        [4, 4, "...", 8],
        ["a", "b", "...", "d"],
        [1, "2r", "...", 8],
        [8, 4, "...", 16],
    ],
)
def test_an_ellipsis_that_fits_nothing_is_refused(typed: list[object]) -> None:
    with pytest.raises(ValueError, match=r"lora\.r="):
        expand_ellipsis("lora.r", typed)


def test_the_sweep_of_the_mission_is_twenty_trials_in_the_order_typed(composer: Composer) -> None:
    found = trials(composer, "method=lora,qlora", "lora.r=1,2,4,...,512")
    assert [t["method.name"] for t in found] == ["lora"] * 10 + ["qlora"] * 10
    assert [t["lora.r"] for t in found] == [2**i for i in range(10)] * 2
    assert all(t["lora.alpha"] == 2 * t["lora.r"] for t in found)
    assert len({t.key for t in found}) == 20


def test_alpha_is_a_multiple_of_the_trials_own_rank(composer: Composer) -> None:
    found = trials(composer, "lora.r=4,8", "lora.alpha=r,2r,...,8r")
    assert [t["lora.alpha"] for t in found] == [4, 8, 16, 32, 8, 16, 32, 64]
    assert trials(composer, "lora.r=8", "lora.alpha=0.5r")[0]["lora.alpha"] == 4
    assert trials(composer, "lora.r=8", "lora.alpha=r/2")[0]["lora.alpha"] == 4
    assert trials(composer, "lora.r=8", "lora.alpha=16")[0].key == trials(composer)[0].key


def test_hydras_own_sweeps_work(composer: Composer) -> None:
    assert [t["seed"] for t in trials(composer, "seed=range(3)")] == [0, 1, 2]
    assert [t["lora.r"] for t in trials(composer, "lora.r=choice(2,8)")] == [2, 8]
    named = [t["target.name"] for t in trials(composer, "target=glob(q*)")]
    assert named == ["q", "qv"]
    assert "interval" in problems(composer, "lora.r=interval(1,8)")[0]


def test_zipped_keys_advance_together_and_others_are_crossed(composer: Composer) -> None:
    found = trials(
        composer, "target=q,qv,attention", "lora.r=8,4,2", "seed=0,1", "sampler.zip=[target,lora.r]"
    )
    assert [(t["target.name"], t["lora.r"], t["seed"]) for t in found] == [
        (*arm, seed) for arm in (("q", 8), ("qv", 4), ("attention", 2)) for seed in (0, 1)
    ]
    all_zipped = trials(composer, "sampler=zip", "lora.r=1,2", "seed=5,6")
    assert [(t["lora.r"], t["seed"]) for t in all_zipped] == [(1, 5), (2, 6)]


def test_zips_that_do_not_fit_are_refused(composer: Composer) -> None:
    unequal = problems(composer, "lora.r=1,2,4", "seed=0,1", "sampler.zip=[lora.r,seed]")
    assert "equal lists" in unequal[0]
    assert "not swept" in problems(composer, "lora.r=1,2", "sampler.zip=[lora.r,seed]")[0]


def test_a_setting_that_cannot_matter_makes_no_new_trial(composer: Composer) -> None:
    assert len(trials(composer, "method=base", "lora.r=1,2,4", "train.epochs=1,2")) == 1
    assert len(trials(composer, "method=fft", "lora.r=1,2,4", "train.epochs=1,2")) == 2
    one, other = trials(composer, "train.eval_batch_size=8"), trials(composer, "output_dir=x")
    assert one[0].key == other[0].key


def test_what_matters_changes_the_key(composer: Composer) -> None:
    keys = {trials(composer)[0].key}
    for override in (
        "seed=1", "lora.r=4", "lora.alpha=3r", "lora.dropout=0.1", "target=q", "method=qlora",
        "method=base", "task.train_size=10", "train.learning_rate=1", "train.precision=bf16",
        "model=tiny_bert", "model=tiny_bert model.shape.hidden_size=32",
    ):  # fmt: skip
        keys.add(trials(composer, *override.split())[0].key)
    assert len(keys) == 13


MIXED = (
    "method=base,lora,qlora", "lora.r=4,8", "lora.alpha=8,8.0,r", "seed=0,1",
    "train.learning_rate=1e-4,1",
)  # fmt: skip


def test_keys_of_many_are_those_of_each_alone(composer: Composer) -> None:
    found = trials(composer, *MIXED)
    assert [t.key for t in found] == [key_of(t.config) for t in found]
    # of the base only seeds; else methods, ranks with alphas (8 is 8.0, r is 8 once), seeds, rates
    assert len(found) == 2 + 2 * 3 * 2 * 2


@pytest.mark.parametrize(
    ("typed", "kinds"),
    [(MIXED, 1 + 2 * 2), (("seed=0,1", "task.subset_seed=${seed}", "lora.alpha=2,4"), 4)],
)
def test_trials_of_a_kind_differ_in_loose_settings_alone(
    composer: Composer, typed: tuple[str, ...], kinds: int
) -> None:
    found = defaultdict(set)
    for trial in trials(composer, *typed):
        found[trial.kind].add(repr({k: v for k, v in trial.config.items() if k not in LOOSE}))
    assert [len(looks) for looks in found.values()] == [1] * kinds


@pytest.mark.parametrize("method", ["base", "lora", "qlora", "fft"])
def test_every_check_of_a_loose_setting_is_made_for_each_trial(
    composer: Composer, method: str
) -> None:
    class Read(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            names.append(name)
            return super().__getitem__(name)

    config, found = Read(trials(composer, f"method={method}")[0].config), []
    for check in (checks.problems, checks.loose_problems):
        names: list[str] = []
        assert check(config) == []
        found.append(Counter(n for n in names if n in LOOSE))
    assert found[0] == found[1]


def test_what_is_wrong_with_one_of_a_kind_is_said(composer: Composer) -> None:
    assert problems(composer, "seed=0,-1", "lora.alpha=r,0", "train.learning_rate=1,0") == [
        "train.learning_rate=0.0: must be above 0",
        "lora.alpha=0: alpha must be above 0 (the update is scaled by alpha/r)",
        "seed=-1: must be at least 0",
    ]


def test_the_alpha_study_shares_four_trials_with_the_rank_study(composer: Composer) -> None:
    arms = ("method=lora,qlora", "target=attention,all_linear")
    ranks = trials(composer, *arms, "lora.r=1,2,4,...,512")
    alphas = trials(composer, *arms, "lora.r=8", "lora.alpha=r,2r,4r,8r")
    assert (len(ranks), len(alphas)) == (40, 16)
    assert len({t.key for t in ranks} & {t.key for t in alphas}) == 4


def test_a_swept_interpolation_is_read_anew_for_each_model(composer: Composer) -> None:
    words = ("model=minilm,smollm2_135m", "train.learning_rate=${model.learning_rate},0.5")
    rates = [(t["model.name"], t["train.learning_rate"]) for t in trials(composer, *words)]
    assert rates == [
        ("minilm", 1e-3),
        ("minilm", 0.5),
        ("smollm2_135m", 5e-4),
        ("smollm2_135m", 0.5),
    ]


@pytest.mark.parametrize("word", ["~seed", "~lora.dropout", "~sampler", "~model"])
def test_nothing_can_be_left_out(composer: Composer, word: str) -> None:
    said = f"{word}: no setting can be left out; give it another value"
    assert problems(composer, word) == [said]


def test_an_interpolation_follows_a_swept_value(composer: Composer) -> None:
    found = trials(composer, "method=qlora", "train.precision=fp32,bf16")
    assert [t["method.compute_dtype"] for t in found] == ["fp32", "bf16"]


def test_a_study_is_swept_unless_the_command_line_says_otherwise(composer: Composer) -> None:
    found = trials(composer, "lora.r=2", **{"lora.r": "1,2,4", "seed": "0,1"})
    assert [(t["lora.r"], t["seed"]) for t in found] == [(2, 0), (2, 1)]


def test_all_problems_are_found_at_once(composer: Composer) -> None:
    found = "\n".join(
        problems(
            composer, "methd=lora", "model=tiny_lama", "lora.r=0", "lora.alpha=0", "seed=x",
            "lora.dropout=1.5", "train.schedule=linar", "train.warmup=2", "task.train_size=-1",
            "task=local",
        )
    )  # fmt: skip
    for part in (
        "'methd'; did you mean 'method'?", "did you mean 'tiny_llama'?", "lora.r=0", "seed=x",
        "lora.dropout=1.5", "did you mean 'linear'?", "train.warmup=2", "task.train_size=-1",
        "task.train_file has no value",
    ):  # fmt: skip
        assert part in found


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("lora.r=2.5", "whole number"),
        ("lora.r=-1", "at least 1"),
        ("lora.r=true", "whole number"),
        ("lora.alpha=0", "above 0"),
        ("lora.alpha=0r", "above 0"),
        ("lora.alpha=twice", "neither a number nor a multiple of r"),
        ("target.roles=[gate]", "has no 'gate' layer"),
        ("target.roles=[qery]", "not a layer role"),
        ("target.roles=[]", "at least one layer"),
        ("lora.rank=8", "did you mean 'lora.r'?"),
        ("train.max_length=1000", "reads at most 512"),
        ("model=roberta_base train.max_length=513", "reads at most 512"),
        (
            "model=tiny_bert model.shape.model_type=roberta train.max_length=65 "
            "model.shape.max_position_embeddings=66 +model.shape.pad_token_id=1",
            "reads at most 64",
        ),
        ("train.patience=2", "needs train.eval_every"),
        ("method=fft method.quant=nf4", "cannot be trained"),
        ("executor.name=slurm", "executor.name=slurm: not known"),
        ("executor.name=locl", "did you mean 'local'?"),
        ("task=local", "task.train_file has no value; give it one (task.train_file=…)"),
    ],
)
def test_bad_values_are_explained(composer: Composer, typed: str, says: str) -> None:
    assert says in problems(composer, *typed.split())[0]


@pytest.mark.parametrize("model", ["minilm", "roberta_base"])
def test_the_longest_text_that_a_model_reads_is_allowed(composer: Composer, model: str) -> None:
    assert problems(composer, f"model={model}", "train.max_length=512") == []


def test_every_option_of_every_group_composes(composer: Composer) -> None:
    groups = composer.groups()
    assert {"model", "method", "target", "task", "train"} <= set(groups)
    local = "task.train_file=x.csv"
    for group in set(groups) - {"study"}:  # studies bring lists of their own: tested below
        options = composer.options(group)
        assert options
        for option in options:
            typed = [
                f"{group}={option}",
                *([local] if option == "local" and group == "task" else []),
                *(["train.eval_every=1"] if group == "pruner" else []),
            ]
            assert problems(composer, *typed) == []


STUDIES = sorted((ROOT / "sweeps").rglob("*.yaml"))


def test_there_are_studies() -> None:
    assert STUDIES


@pytest.mark.parametrize("file", STUDIES, ids=lambda f: f.stem)
def test_every_study_composes_and_opens_with_its_command(composer: Composer, file: Path) -> None:
    text = file.read_text()
    assert f"# python sweep.py study={file.stem}" in text
    params = composer([f"study={file.stem}"]).hydra.sweeper.params
    assert trials(composer, f"study={file.stem}", **params)


def test_the_papers_two_studies_are_52_trials(composer: Composer) -> None:
    found: set[str] = set()
    for study in ("patil2025_rank", "patil2025_alpha"):
        params = composer([f"study={study}"]).hydra.sweeper.params
        found |= {t.key for t in trials(composer, f"study={study}", **params)}
    assert len(found) == 52
    params = composer(["study=patil2025"]).hydra.sweeper.params
    assert {t.key for t in trials(composer, "study=patil2025", **params)} == found


@pytest.mark.parametrize(
    "name", ["train (1).csv", "k=v.csv", "c#.csv", "déjà vu.csv", "x[1].csv", "it's.csv", "a&b.csv",
             "a{1}.csv", "100%.csv", "a\\'b.csv"],
)  # fmt: skip
def test_names_of_files_are_read_as_typed(composer: Composer, name: str) -> None:
    (read,) = words.readable([f"output_dir={name}"])
    assert composer([read]).flat["output_dir"] == name


def test_words_that_are_read_differently(composer: Composer) -> None:
    typed = ["output_dir=~/é", "task.train_file=é 1.csv,b.csv", "lora.r=[", "methd=é", "name='é'"]
    home, files, *others = words.readable(typed)
    assert composer([home]).flat["output_dir"] == str(Path.home() / "é")
    (axis,) = grammar.read([files], {}, composer, []).axes
    assert axis.points == (("é 1.csv",), ("b.csv",))
    assert others == typed[2:]


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "/tmp/x", r"a\\b", ".", "''", "x" * 151])
def test_names_that_are_no_folder_s(composer: Composer, name: str) -> None:
    for setting in ("name", "task.name"):
        (told,) = problems(composer, *words.readable([f"{setting}={name}"]))
        assert setting in told
        assert "folder" in told
