"""Samplers: what they suggest, that a restart changes nothing, and what is better."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

import pytest

from lorasweep import search as samplers
from lorasweep.errors import RequestError
from lorasweep.running import resume
from lorasweep.search import objectives
from lorasweep.search.base import Past, Sampler, Suggestion
from lorasweep.search.pointwise import Pointwise
from lorasweep.space import expand, grammar
from lorasweep.space.composition import Composer
from lorasweep.trial.result import State
from lorasweep.trial.trial import Trial

SEARCHES = ("random", "qmc", "tpe", "gp", "nsga2")
SPACE = ("method=lora,qlora", "lora.r=1,2,4,...,512", "train.learning_rate=interval(1e-5,1e-2)")
CONDITIONAL = ("method=base,fft,lora", "lora.r=interval(1,512)", "target=attention,mlp")
QUICK = ("sampler.startup=4", "sampler.population=4", "sampler.trials=40")

Ended = tuple[State, dict[str, float]]


def make(composer: Composer, *typed: str) -> Sampler:
    problems: list[str] = []
    found = grammar.read(typed, {}, composer, problems)
    assert problems == []
    return samplers.make(found, composer)


def search(composer: Composer, *typed: str) -> Pointwise:
    found = make(composer, *QUICK, *typed)
    assert isinstance(found, Pointwise)
    return found


def problems(composer: Composer, *typed: str) -> str:
    found: list[str] = []
    described = grammar.read(typed, {}, composer, found)
    try:
        samplers.make(described, composer)
    except RequestError as error:
        found += error.problems
    return "\n".join(found)


def score(trial: Trial) -> Ended:
    """A made-up training: best at r = 32 and a learning rate of 1e-3, with costs of the rank."""
    r = float(trial["lora.r"]) if trial.adapts else 1024.0
    off = abs(math.log2(r) - 5) / 10 + abs(math.log10(trial["train.learning_rate"]) + 3) / 4
    if trial["train.learning_rate"] > 8e-3:
        return "diverged", {}
    if trial["seed"] == 1 and r == 4:
        return "failed", {}
    noise = trial["seed"] / 1000
    return "done", {
        "eval/accuracy": 0.9 - 0.1 * off + noise,
        "memory/peak_rss_gib": 1 + r / 512,
        "time/train_s": 10 + r / 100,
    }


def run(sampler: Sampler, count: int, past: list[Past] | None = None) -> list[Suggestion]:
    """Ask and tell one after another; keeps in ``past`` what a record would hold."""
    found: list[Suggestion] = []
    while len(found) < count and (one := sampler.ask()) is not None:
        state, metrics = score(one.trial)
        sampler.tell(one.number, state, metrics)
        found.append(one)
        if past is not None:
            # through JSON, as the record keeps it
            past.append(Past(one.number, json.loads(json.dumps(one.values)), state, metrics))
    return found


def chosen(found: Sequence[Suggestion]) -> list[tuple[int, dict[str, Any], str]]:
    return [(s.number, dict(s.values), s.trial.key) for s in found]


# ---------------------------------------------------------------------------- lists


def test_a_grid_hands_out_its_trials_in_order(composer: Composer) -> None:
    sampler = make(composer, "method=lora,qlora", "lora.r=1,2", "seed=0,1")
    assert not sampler.remembers
    found = run(sampler, 100)
    assert [s.number for s in found] == list(range(8)) == list(range(sampler.total))
    arms = [(s.trial["method.name"], s.trial["lora.r"], s.trial["seed"]) for s in found]
    assert arms[:3] == [("lora", 1, 0), ("lora", 1, 1), ("lora", 2, 0)]
    assert sampler.ask() is None


def test_the_same_trials_are_the_same_sweep_however_typed(composer: Composer) -> None:
    one = make(composer, "method=lora,qlora", "lora.r=1,2,4,...,16")
    other = make(composer, "lora.r=16,8,4,2,1", "method=qlora,lora")
    assert one.identity == other.identity
    assert one.identity != make(composer, "method=lora,qlora", "lora.r=1,2").identity


def test_zipped_lists_advance_together(composer: Composer) -> None:
    found = run(make(composer, "sampler=zip", "lora.r=1,2", "seed=5,6"), 9)
    assert [(s.trial["lora.r"], s.trial["seed"]) for s in found] == [(1, 5), (2, 6)]


# --------------------------------------------------------------------------- restart


@pytest.mark.parametrize("aims", ["[accuracy]", "[accuracy,memory]"])
@pytest.mark.parametrize("name", SEARCHES)
def test_a_restart_changes_nothing(composer: Composer, name: str, aims: str) -> None:
    typed = (f"sampler={name}", f"sampler.objectives={aims}", *SPACE)
    count = 9 if name == "gp" else 26  # a Gaussian process takes a second each
    past: list[Past] = []
    whole = run(search(composer, *typed), count, past)
    assert len({s.trial.key for s in whole}) == count
    for at in (0, 1, 5, count - 1):
        again = search(composer, *typed)
        again.restore(past[:at])
        more = 2 if name == "gp" else count
        assert chosen(run(again, min(more, count - at))) == chosen(whole[at : at + more])


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_a_restart_changes_nothing_with_conditions_and_seeds(composer: Composer, name: str) -> None:
    typed = (f"sampler={name}", "seed=0,1", *CONDITIONAL)
    past: list[Past] = []
    whole = run(search(composer, *typed), 40, past)
    for at in (1, 8, 17, 30):
        again = search(composer, *typed)
        again.restore(past[:at])
        assert chosen(run(again, 40 - at)) == chosen(whole[at:])


@pytest.mark.parametrize("name", SEARCHES)
def test_what_was_in_flight_is_asked_again_first(composer: Composer, name: str) -> None:
    """Four workers; the controller dies; the next one goes on as the first would have."""

    def four_workers(sampler: Sampler) -> tuple[list[Suggestion], list[Past], list[Suggestion]]:
        flying: list[Suggestion] = []
        past: list[Past] = []
        for _ in range(12):
            while len(flying) < 4:
                one = sampler.ask()
                assert one is not None
                flying.append(one)
            ended = flying.pop(1)  # not in the order asked
            state, metrics = score(ended.trial)
            sampler.tell(ended.number, state, metrics)
            past.append(Past(ended.number, ended.values, state, metrics))
        undisturbed = sampler.ask()
        assert undisturbed is not None
        return flying, past, [undisturbed]

    typed = (f"sampler={name}", *SPACE)
    flying, past, expected = four_workers(search(composer, *typed))
    again = search(composer, *typed)
    states: list[State | None] = [None, "stopped", None]
    lost = [Past(s.number, s.values, state, {}) for s, state in zip(flying, states, strict=True)]
    again.restore([*lost, *past])
    first = [again.ask() for _ in flying]
    assert chosen([s for s in first if s]) == chosen(sorted(flying, key=lambda s: s.number))
    after = again.ask()
    assert after is not None
    assert chosen([after]) == chosen(expected)


def test_more_trials_later_continue_the_same_sweep(composer: Composer) -> None:
    short = search(composer, "sampler=tpe", *SPACE, "sampler.trials=6")
    long = search(composer, "sampler=tpe", *SPACE, "sampler.trials=12")
    past: list[Past] = []
    assert len(run(short, 99, past)) == short.total == 6
    assert short.identity == long.identity
    long.restore(past)
    assert [s.number for s in run(long, 99)] == list(range(6, 12))


@pytest.mark.parametrize("name", ["random", "tpe"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "lora.r=1,2,4 target=q,v lora.dropout=0,0.1",
            "target=v,q lora.dropout=0.1,0 lora.r=4,2,1",
        ),
        ("lora.r=interval(1,64) seed=0,1", "seed=1,0 lora.r=interval(1,64)"),
        (
            "lora.r=1,2 lora.alpha=8,4 target=q,v sampler.zip=[lora.r,lora.alpha]",
            "target=q,v lora.alpha=4,8 lora.r=2,1 sampler.zip=[lora.alpha,lora.r]",
        ),
    ],
)
def test_the_order_of_words_makes_no_other_search(
    composer: Composer, name: str, one: str, other: str
) -> None:
    first, second = (search(composer, f"sampler={name}", *typed.split()) for typed in (one, other))
    assert first.identity == second.identity
    past: list[Past] = []
    begun = run(first, 4, past)
    again = search(composer, f"sampler={name}", *other.split())
    again.restore(past[:2])
    assert chosen(run(again, 2)) == chosen(begun)[2:]


def test_a_search_like_an_earlier_one_is_told_of_it(composer: Composer) -> None:
    sampler, other = (search(composer, f"sampler={name}", *SPACE) for name in ("tpe", "random"))
    elsewhere = search(composer, "sampler=tpe", "lora.dropout=0,0.1")
    earlier = {
        one.identity: {s.number: {"values": dict(s.values)} for s in run(one, count)}
        for one, count in ((other, 8), (elsewhere, 2))
    }
    (said,) = resume.other_searches(earlier, sampler)
    assert f"another search over these settings has 8 trials (sweep {other.identity})" in said
    assert resume.other_searches({sampler.identity: {0: {"values": {}}}, **earlier}, sampler) == []


@pytest.mark.parametrize(
    "other",
    [
        "sampler.seed=1", "sampler.startup=5", "sampler.objectives=[f1]", "sampler=gp",
        "lora.r=1,2,4", "train.epochs=2", "task=local task.train_file=x.csv", "seed=0,1",
        "train.learning_rate=interval(1e-5,1e-3)",
    ],
)  # fmt: skip
def test_another_search_has_another_identity(composer: Composer, other: str) -> None:
    typed = ("sampler=tpe", *SPACE)
    swaps = other.split()
    kept = [t for t in typed if t.split("=")[0] not in [s.split("=")[0] for s in swaps]]
    quick = [q for q in QUICK if q.split("=")[0] not in [s.split("=")[0] for s in swaps]]
    changed = make(composer, *quick, *kept, *swaps)
    assert changed.identity != search(composer, *typed).identity


def test_where_results_go_is_no_part_of_the_identity(composer: Composer) -> None:
    one = search(composer, "sampler=tpe", *SPACE)
    assert one.identity == search(composer, "sampler=tpe", *SPACE, "output_dir=x").identity


# ------------------------------------------------------------------- what is suggested


@pytest.mark.parametrize("name", SEARCHES)
def test_suggestions_stay_in_the_space(composer: Composer, name: str) -> None:
    typed = (
        f"sampler={name}", "method=lora,qlora", "lora.r=interval(3,100)",
        "lora.alpha=tag(r,interval(0.5,8))", "lora.dropout=interval(0,0.3)",
        "train.batch_size=4,8,32", "train.max_length=range(16,65,16)",
        "train.schedule=cosine,linear",
    )  # fmt: skip
    found = run(search(composer, *typed), 8)
    assert len({s.trial.key for s in found}) == 8
    for one in found:
        trial = one.trial
        assert type(trial["lora.r"]) is int
        assert 3 <= trial["lora.r"] <= 100
        assert 0.499 <= trial["lora.alpha"] / trial["lora.r"] <= 8.001
        assert 0 <= trial["lora.dropout"] <= 0.3
        assert trial["train.batch_size"] in (4, 8, 32)
        assert trial["train.max_length"] in (16, 32, 48, 64)
        assert json.loads(json.dumps(one.values)) == one.values


def test_whole_and_logarithmic_by_themselves(composer: Composer) -> None:
    typed = ("lora.r=interval(1,512)", "train.learning_rate=interval(1e-6,1e-2)")
    found = run(search(composer, "sampler=qmc", *typed), 40)
    ranks = sorted(s.trial["lora.r"] for s in found)
    rates = sorted(s.trial["train.learning_rate"] for s in found)
    assert 10 <= ranks[20] <= 50  # the middle of 1 to 512 by its logarithm is 23
    assert 3e-5 <= rates[20] <= 3e-4
    linear = run(search(composer, "sampler=qmc", "train.warmup=interval(0,0.8)"), 40)
    assert 0.3 <= sorted(s.trial["train.warmup"] for s in linear)[20] <= 0.5
    whole = run(search(composer, "sampler=qmc", "train.epochs=int(interval(1,3))"), 40)
    assert {s.trial["train.epochs"] for s in whole} == {1, 2, 3}


def test_even_points_are_even(composer: Composer) -> None:
    found = run(search(composer, "sampler=qmc", "lora.r=1,2,4,...,128", "seed=0"), 40)
    counts = [sum(s.trial["lora.r"] == 2**i for s in found) for i in range(8)]
    assert counts == [5] * 8


@pytest.mark.parametrize("name", ["random", "qmc", "tpe", "nsga2"])
def test_no_point_is_tried_twice_while_there_are_others(composer: Composer, name: str) -> None:
    typed = ("method=base,lora", "lora.r=1,2,3,4,5,6,7", "sampler.trials=11")
    found = run(search(composer, f"sampler={name}", *typed), 99)
    assert len({s.trial.key for s in found}) == 8  # there are no more
    assert len({s.trial.key for s in found[:8]}) >= 7
    assert len(found) == 11  # the others cost nothing


@pytest.mark.parametrize("name", SEARCHES)
def test_a_base_without_adapter_gets_no_rank(composer: Composer, name: str) -> None:
    found = run(search(composer, f"sampler={name}", *CONDITIONAL), 8)
    assert {s.trial["method.name"] for s in found} == {"base", "fft", "lora"}
    for one in found:
        expected = {"method", "lora.r", "target"} if one.trial.adapts else {"method"}
        assert set(one.values) == expected


def test_zipped_keys_are_one_choice(composer: Composer) -> None:
    typed = ("lora.r=4,8,16", "train.learning_rate=3e-3,2e-3,1e-3")
    zipped = "sampler.zip=[lora.r,train.learning_rate]"
    found = run(search(composer, "sampler=tpe", *typed, zipped, "lora.dropout=0.0,0.1"), 20)
    pairs = {(s.trial["lora.r"], s.trial["train.learning_rate"]) for s in found}
    assert pairs <= {(4, 3e-3), (8, 2e-3), (16, 1e-3)}
    assert len(pairs) > 1


def test_each_point_is_run_once_a_seed_and_told_the_mean(composer: Composer) -> None:
    sampler = search(composer, "sampler=tpe", *SPACE, "seed=0,1,2", "sampler.trials=3")
    told: list[tuple[int, objectives.Losses | None]] = []
    sampler.chooser.told = lambda point, losses: told.append((point, losses))  # type: ignore[method-assign]
    assert sampler.total == 9
    ends: list[Ended] = [
        ("done", {"eval/accuracy": 0.5}), ("done", {"eval/accuracy": 0.6}),
        ("done", {"eval/accuracy": 0.7}),
        ("done", {"eval/accuracy": 0.5}), ("failed", {}), ("done", {"eval/accuracy": 0.7}),
        ("failed", {}), ("failed", {}), ("failed", {}),
    ]  # fmt: skip
    found = [sampler.ask() for _ in range(9)]
    assert [s.trial["seed"] for s in found if s] == [0, 1, 2] * 3
    assert len({str({**s.values, "seed": 0}) for s in found if s}) == 3
    for number, (state, metrics) in enumerate(ends):
        assert len(told) == number // 3
        sampler.tell(number, state, metrics)
    assert [point for point, _ in told] == [0, 1, 2]
    means = [losses and losses[0] for _, losses in told]
    assert means == [pytest.approx(-0.6), pytest.approx(-0.6), None]


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2"])
def test_a_search_learns(composer: Composer, name: str) -> None:
    """Its last suggestions are better than points spread evenly."""
    count, seeds = (16, [0]) if name == "gp" else (40, [0, 1, 2])

    def accuracies(sampler: str, last: int) -> list[float]:
        typed = [(f"sampler={sampler}", f"sampler.seed={seed}", *SPACE) for seed in seeds]
        found = [one for words in typed for one in run(search(composer, *words), count)[-last:]]
        return [score(one.trial)[1].get("eval/accuracy", 0.0) for one in found]

    assert median(accuracies(name, 8)) > median(accuracies("qmc", count)) + 0.005


@pytest.mark.parametrize("aims", ["[accuracy]", "[accuracy,memory,time]"])
@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2"])
@pytest.mark.parametrize("state", ["diverged", "failed", "oom", "done", "pruned"])
def test_nothing_that_happens_ends_the_search(
    composer: Composer, name: str, aims: str, state: State
) -> None:
    """Every third trial is all right; one says it is done and measured no number."""
    typed = (f"sampler={name}", f"sampler.objectives={aims}", *SPACE)
    sampler = search(composer, *typed, "sampler.trials=8")
    for n in range(8):
        one = sampler.ask()
        assert one is not None
        if n % 3:
            sampler.tell(one.number, state, {"eval/accuracy": math.nan})
        else:
            sampler.tell(one.number, *score(one.trial))
        sampler.tell(one.number, "done", {})  # told twice: the first counts
    assert sampler.ask() is None


def test_a_bad_place_is_left(composer: Composer) -> None:
    sampler = search(composer, "sampler=tpe", "method=lora,qlora", "lora.r=1,2,4,...,512")
    methods = []
    for _ in range(40):
        one = sampler.ask()
        assert one is not None
        methods.append(one.trial["method.name"])
        state, metrics = score(one.trial)
        sampler.tell(one.number, "oom" if methods[-1] == "lora" else state, metrics)
    assert methods[20:].count("qlora") > 12


def test_the_data_joins_the_trial(composer: Composer) -> None:
    def complete(trial: Trial) -> Trial:
        return Trial({**trial.config, "task.sha256": "abc"})

    found: list[str] = []
    described = grammar.read([*QUICK, "sampler=random", *SPACE], {}, composer, found)
    sampler = samplers.make(described, composer, complete=complete)
    one = sampler.ask()
    assert one is not None
    assert one.trial["task.sha256"] == "abc"
    assert sampler.identity != samplers.make(described, composer).identity


# ---------------------------------------------------------------------------- corners


def test_corners_show_every_choice_and_both_ends(composer: Composer) -> None:
    found: list[str] = []
    typed = [*QUICK, "sampler=tpe", "seed=0,1,2", *SPACE]
    trials = samplers.corners(grammar.read(typed, {}, composer, found), composer, found)
    assert found == []
    assert {
        (t["method.name"], t["lora.r"], t["train.learning_rate"], t["seed"]) for t in trials
    } == {(m, r, lr, 0) for m in ("lora", "qlora") for r in (1, 512) for lr in (1e-5, 1e-2)}


def test_corners_of_a_grid_are_its_trials(composer: Composer) -> None:
    found: list[str] = []
    read = grammar.read(["method=lora,qlora", "lora.r=1,2,4"], {}, composer, found)
    assert samplers.corners(read, composer, found) == expand.expand(read, composer, found)


def test_corners_find_what_is_wrong_with_a_choice(composer: Composer) -> None:
    typed = ("sampler=tpe", *QUICK, "model=tiny_llama,tiny_bert", "target.roles=[gate],[query]")
    assert "has no 'gate' layer" in problems(composer, *typed)
    assert "below 1" in problems(composer, "sampler=tpe", *QUICK, "lora.dropout=interval(0,1)")


# ----------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("lora.r=interval(1,8)", "sampler=grid cannot walk an interval"),
        ("lora.r=interval(1,8)", "random, qmc, tpe, gp, nsga2"),
        ("sampler=zip lora.r=interval(1,8)", "sampler=zip cannot walk an interval"),
        ("sampler=tpe lora.r=1,2", "needs sampler.trials"),
        ("sampler=tpe sampler.trials=0 lora.r=1,2", "sampler.trials=0: must be above 0"),
        ("sampler.trials=5 lora.r=1,2", "sampler=grid runs all combinations"),
        ("sampler=tpee lora.r=1,2", "did you mean 'tpe'?"),
        ("sampler.name=tpee lora.r=1,2", "did you mean 'tpe'?"),
        ("sampler=tpe,gp lora.r=1,2", "a sweep has one sampler"),
        ("sampler=tpe sampler.trials=5", "nothing to search"),
        ("sampler=tpe sampler.trials=5 seed=0,1", "nothing to search"),
        ("sampler=tpe sampler.trials=5 seed=interval(0,9)", "seeds are a list"),
        ("sampler=tpe sampler.trials=5 method=interval(0,1)", "is no number"),
        ("sampler=tpe sampler.trials=5 train.schedule=interval(0,1)", "is no number"),
        ("sampler=tpe sampler.trials=5 lora.r=interval(1,8.5)", "whole numbers"),
        ("sampler=tpe sampler.trials=5 lora.r=interval(0,8)", "must begin above 0"),
        ("sampler=tpe sampler.trials=5 lora.r=interval(8,1)", "must not be above"),
        ("sampler=tpe sampler.trials=5 lora.r=tag(r,interval(1,8))", "only lora.alpha"),
        ("sampler=tpe sampler.trials=5 lora.r=tag(lg,interval(1,8))", "tag 'lg' means nothing"),
        (
            "sampler=tpe sampler.trials=5 sampler.zip=[lora.r,lora.alpha] "
            "lora.r=interval(1,8) lora.alpha=1,2",
            "only lists advance together",
        ),
        ("sampler=tpe sampler.trials=5 method=base lora.r=interval(1,8)", "lora.r: changes no"),
        ("sampler=tpe sampler.trials=5 train.eval_batch_size=1,2", "changes no result"),
        ("sampler.objectives=[acuracy] lora.r=1,2", "did you mean 'accuracy'?"),
        ("sampler.objectives=[eval/accuracy] lora.r=1,2", "up or down?"),
        ("sampler.objectives=[-memory] lora.r=1,2", "knows its direction"),
        ("sampler.objectives=[-time/trian_s] lora.r=1,2", "did you mean '-time/train_s'?"),
        ("sampler.objectives=[] lora.r=1,2", "what is to be improved"),
        ("sampler.objectives=[f1,f1_macro] lora.r=1,2", "one is there twice"),
        ("sampler=nsga2 sampler.trials=5 sampler.population=1 lora.r=1,2", "at least 2"),
        ("pruner=asha lora.r=1,2", "needs train.eval_every"),
        ("pruner=asha train.eval_every=5 pruner.eta=1 lora.r=1,2", "above 1"),
        ("pruner=median train.eval_every=5 pruner.min_share=1 lora.r=1,2", "between 0 and 1"),
        ("pruner.name=ahsa lora.r=1,2", "did you mean 'asha'?"),
    ],
)
def test_what_cannot_be_is_explained(composer: Composer, typed: str, says: str) -> None:
    assert says in problems(composer, *typed.split())


def test_optuna_and_torch_are_loaded_by_nobody_who_does_not_need_them() -> None:
    code = (
        "import sys, lorasweep.search, lorasweep.search.pruners;"
        "print(sorted({'optuna', 'torch', 'scipy', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------- objectives


def aims(*words: str) -> tuple[objectives.Objective, ...]:
    found: list[str] = []
    parsed = objectives.parse(words, found)
    assert found == []
    return parsed


def test_objectives_read_the_record(composer: Composer) -> None:
    row = {"eval/accuracy": 0.8, "memory/peak_rss_gib": 3.0, "memory/peak_allocated_gib": 2.0}
    assert objectives.losses(row, aims("accuracy", "memory", "time")) == (-0.8, 2.0, math.inf)
    assert objectives.losses(row, aims("-eval/accuracy", "+memory/peak_rss_gib")) == (0.8, -3.0)
    assert objectives.losses({"eval/accuracy": math.nan}, aims("accuracy")) == (math.inf,)
    read = grammar.read(["sampler.objectives=[f1,-time/eval_s]"], {}, composer, [])
    found = samplers.objectives_of(read, composer)
    assert [(o.metrics[0], o.up) for o in found] == [
        ("eval/f1_macro", True), ("time/eval_s", False),
    ]  # fmt: skip


def test_the_pareto_front_by_hand() -> None:
    rows: list[dict[str, Any]] = [
        {"eval/accuracy": 0.9, "time/train_s": 10.0},
        {"eval/accuracy": 0.8, "time/train_s": 5.0},
        {"eval/accuracy": 0.8, "time/train_s": 6.0},  # as good as the last, but slower
        {"eval/accuracy": 0.7, "time/train_s": 6.0},
        {"eval/accuracy": 0.9, "time/train_s": 10.0},  # equal to the first
        {"eval/accuracy": 0.95},  # no time measured
        {"eval/accuracy": 0.99, "time/train_s": 1.0, "lorasweep.state": "pruned"},
        {"eval/accuracy": math.nan, "time/train_s": 0.1},
    ]
    on = objectives.pareto(rows, aims("accuracy", "time"))
    assert on == [True, True, False, False, True, False, False, False]
    best = objectives.pareto(rows[:5], aims("accuracy"))
    assert best == [True, False, False, False, True]
    assert objectives.pareto([], aims("accuracy")) == []


def test_layers_and_crowding_by_hand() -> None:
    points = [(1.0, 4.0), (2.0, 2.0), (4.0, 1.0), (2.0, 3.0), (5.0, 5.0), (3.0, 3.0)]
    assert objectives.layers(points) == [0, 0, 0, 1, 3, 2]
    four = [(0.0, 10.0), (1.0, 6.0), (4.0, 2.0), (10.0, 0.0)]
    # (4 - 0) / 10 + (10 - 2) / 10 and (10 - 1) / 10 + (6 - 0) / 10
    distances = objectives.crowding(four)
    assert distances == [math.inf, pytest.approx(1.2), pytest.approx(1.5), math.inf]
    order = sorted(range(4), key=lambda i: objectives.ranks(four)[i])
    assert order == [0, 3, 2, 1]


def brute_front(points: list[tuple[float, ...]]) -> list[bool]:
    return [not any(objectives.dominates(q, p) for q in points) for p in points]


@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_front_is_what_the_definition_says(width: int) -> None:
    from random import Random

    draw = Random(width)
    for _ in range(50):
        points = [tuple(float(draw.randrange(6)) for _ in range(width)) for _ in range(20)]
        assert objectives.front(points) == brute_front(points)
