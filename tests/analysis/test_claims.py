from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import claims
from analysis.claims import Scorecard, sides, verdicts
from analysis.claims.verdicts import Claim
from analysis.studies.patil2025 import claims as patil2025
from analysis.studies.patil2025 import cost_claim
from lorasweep.results import details, tidy
from lorasweep.results.evidence import Estimate

Run = dict[str, Any]
MakeRun = Callable[..., Run]
Level = Callable[[str, str, float, float], float]

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
WOBBLE = (0.0, 0.001, -0.001, 0.0005, -0.0005)


def truth(run: MakeRun, level: Level, seeds: int = 5) -> pd.DataFrame:
    """The paper's trials with known scores: ``level``, and a wobble over seeds."""
    runs = [run("base", seed=s, **{"eval/accuracy": 0.2 + WOBBLE[s]}) for s in range(seeds)]
    for method in ("lora", "qlora"):
        for target in ("all_linear", "attention"):
            cells = [(r, 2 * r) for r in RANKS] + [(8, 8), (8, 32), (8, 64)]
            for number, (r, alpha) in enumerate(cells):
                for seed in range(seeds):
                    score = level(method, target, r, alpha) + WOBBLE[(seed + number) % 5]
                    scores = {"eval/accuracy": score, "eval/f1_macro": score}
                    runs.append(run(method, target, r, alpha, seed, **scores))
    return tidy.tidy(runs)


def as_published(method: str, target: str, r: float, alpha: float) -> float:
    """Scores for which every claim holds that can (P8 contradicts P5)."""
    score = 0.67
    if target == "all_linear":
        score -= 0.05 * (alpha / r == 8) + 0.05 * (r > (64 if method == "lora" else 128))
    else:
        score += 0.02 * (r == 8 and alpha == 64) - 0.05 * (r == 512)
    return score


def judged(trials: pd.DataFrame, items: pd.DataFrame | None = None) -> dict[str, Claim]:
    told = details.empty().items if items is None else items
    study = sides.study(trials, told, "toy", "stars", "eval/accuracy")
    return {claim.number: claim for claim in patil2025.judge(study)}


def test_what_holds_is_confirmed(run: MakeRun) -> None:
    found = judged(truth(run, as_published))
    for number in ("P1", "P2", "P3", "P4", "P5", "P6", "P10"):
        assert found[number].verdict == "confirmed", found[number].rule
        assert all(part.verdict == "confirmed" for part in found[number].counted)
    assert found["P8"].verdict == "refuted"  # P5 holds


def test_small_ranks_on_all_linear_layers(run: MakeRun) -> None:
    def better(method: str, target: str, r: float, alpha: float) -> float:
        return 0.6 + 0.03 * (target == "all_linear" and r <= 2)

    assert judged(truth(run, better))["P7"].verdict == "confirmed"


def test_p8_and_p5_exclude_each_other(run: MakeRun) -> None:
    def falls(method: str, target: str, r: float, alpha: float) -> float:
        low = method == "qlora" and target == "all_linear" and r > 8
        return as_published(method, target, r, alpha) - 0.03 * low

    found = judged(truth(run, falls))
    assert (found["P8"].verdict, found["P5"].verdict) == ("confirmed", "refuted")


@pytest.mark.parametrize(
    ("number", "level"),
    [
        ("P1", lambda method, target, r, alpha: 0.25),  # better than the base, and not by far
        ("P2", lambda method, target, r, alpha: 0.6),  # alpha does nothing
        ("P3", lambda method, target, r, alpha: 0.6 - 0.0005 * alpha),
        ("P4", lambda method, target, r, alpha: 0.6 - 0.03 * (method == "qlora")),
        ("P5", lambda method, target, r, alpha: 0.6 - 0.03 * (r == 1)),
        ("P6", lambda method, target, r, alpha: 0.6),  # no dip at 512
        ("P7", lambda method, target, r, alpha: 0.6 + 0.03 * (target == "attention")),
        ("P10", lambda method, target, r, alpha: 0.5 + 0.0001 * r * (target == "all_linear")),
    ],
)
def test_what_does_not_hold_is_refuted(run: MakeRun, number: str, level: Level) -> None:
    claim = judged(truth(run, level))[number]
    assert claim.verdict == "refuted", claim.rule
    assert claim.decisive is not None
    assert claim.decisive.verdict == "refuted"


def test_seeds_that_disagree_leave_a_claim_undecided(run: MakeRun) -> None:
    trials = truth(run, as_published, seeds=3)
    high = (trials["alpha"] == 64) & (trials["r"] == 8) & (trials["target"] == "all_linear")
    trials.loc[high, "eval/accuracy"] += trials.loc[high, "seed"] * 0.05
    claim = judged(trials)["P2"]
    assert claim.verdict == "undecided"
    assert {part.why for part in claim.parts} == {"both are open"}


def test_one_seed_decides_nothing(run: MakeRun) -> None:
    found = judged(truth(run, as_published, seeds=1))
    assert {claim.verdict for claim in found.values()} == {"undecided"}
    claim = found["P2"]
    assert claim.rule.endswith("one seed alone decides nothing")
    assert claim.parts[0].estimate is not None
    assert claim.parts[0].estimate.effect == pytest.approx(0.05, abs=0.01)


def test_missing_cells_are_named_and_leave_the_rest_to_decide(run: MakeRun) -> None:
    trials = truth(run, as_published)
    gone = trials[~((trials["method"] == "qlora") & (trials["r"] == 512))]
    claim = judged(gone)["P6"]
    assert claim.verdict == "undecided"
    assert "not run: QLoRA, attention, r 512, α 1024" in {part.why for part in claim.parts}
    flat = truth(run, lambda method, target, r, alpha: 0.6)
    gone = flat[~((flat["method"] == "qlora") & (flat["r"] == 512))]
    assert judged(gone)["P6"].verdict == "refuted"  # by LoRA, which does not dip


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("diverged", "diverged"),
        ("oom", "ran out of memory"),
        ("failed", "failed"),
        ("pruned", "pruned"),
        ("stopped", "stopped"),
        (None, "missing"),
    ],
)
def test_a_seed_without_a_score_keeps_its_cell_from_deciding(
    run: MakeRun, state: str | None, words: str
) -> None:
    """The seeds that are left may be the better ones."""
    trials = truth(run, as_published)
    lost = (trials["r"] == 512) & (trials["seed"] == 1) & (trials["target"] == "attention")
    trials.loc[lost, "state"] = state
    claim = judged(trials if state else trials[~lost])["P6"]
    assert claim.verdict == "undecided"
    told = f"LoRA, attention, r 512, α 1024: 1 of 5 seeds {words}"
    assert told in {part.why for part in claim.parts}
    assert judged(trials)["P2"].verdict == "confirmed"  # not of these cells


def test_what_was_lost_is_counted_by_how_it_ended(run: MakeRun) -> None:
    trials = truth(run, as_published)
    cell = (trials["r"] == 8) & (trials["alpha"] == 64) & (trials["method"] == "lora")
    cell &= trials["target"] == "all_linear"
    trials.loc[cell & (trials["seed"] < 2), "state"] = "failed"
    trials.loc[cell & (trials["seed"] == 2), "state"] = "pruned"
    lora, qlora = judged(trials[~(cell & (trials["seed"] == 4))])["P2"].parts
    name = "LoRA, all-linear, r 8, α 64"
    assert lora.why == f"{name}: 2 of 5 seeds failed, 1 of 5 seeds pruned, 1 of 5 seeds missing"
    assert qlora.verdict == "confirmed"


def test_a_base_with_fewer_seeds_decides_nothing(run: MakeRun) -> None:
    trials = truth(run, as_published)
    claim = judged(trials[(trials["method"] != "base") | (trials["seed"] < 2)])["P1"]
    assert claim.verdict == "undecided"
    assert claim.parts[0].why.endswith("3 of 5 seeds missing")


def test_rates_chosen_by_the_scores_that_are_compared(run: MakeRun) -> None:
    """Without a search, methods and targets are not compared at their best rates; ranks are."""
    parts = []
    for rate, drop in ((1e-4, 0.0), (1e-3, 0.01)):
        runs = truth(run, lambda *cell, drop=drop: as_published(*cell) - drop, seeds=3)
        parts.append(runs.assign(learning_rate=rate, key=runs["key"] + f"-{rate:g}"))
    other = (parts[1]["target"] == "attention") & (parts[1]["method"] == "lora")
    parts[1].loc[other, "eval/accuracy"] += 0.02
    cards = claims.judge(pd.concat(parts, ignore_index=True), details.empty())
    tuned = next(card for card in cards if card.part.name == "tuned")
    assert "lora attention 0.001" in tuned.part.title
    verdicts_of = {claim.number: claim for claim in tuned.claims}
    for number in ("P4", "P7", "P8", "P10"):
        assert verdicts_of[number].verdict == "undecided"
        assert {part.why for part in verdicts_of[number].parts} == {patil2025.CHOSEN_HERE}
        assert tuned.by_f1[number] == "undecided"
    assert verdicts_of["P5"].verdict == "confirmed"
    fixed = {claim.number: claim.verdict for claim in cards[0].claims}
    assert fixed["P4"] != "undecided"


def test_an_empty_table_judges_nothing(run: MakeRun) -> None:
    assert claims.judge(tidy.tidy([run("base")]), details.empty()) == []


def part(
    effect: float, error: float, kind: verdicts.Kind = "greater", **other: Any
) -> verdicts.Part:
    return verdicts.Part("x", kind, Estimate(effect, error, 5, 0, ()), margin=0.01, **other)


@pytest.mark.parametrize(
    ("effect", "error", "kind", "verdict"),
    [
        (0.02, 0.001, "greater", "confirmed"),
        (0.005, 0.0005, "greater", "refuted"),  # sure, but smaller than counts
        (0.0, 0.001, "greater", "refuted"),
        (0.02, 0.02, "greater", "undecided"),
        (0.0, 0.001, "equal", "confirmed"),
        (0.005, 0.0005, "equal", "confirmed"),  # sure, but smaller than counts
        (-0.02, 0.001, "equal", "refuted"),
        (0.01, 0.001, "equal", "undecided"),
        (0.0, 0.001, "no worse", "confirmed"),
        (0.5, 0.001, "no worse", "confirmed"),
        (-0.02, 0.001, "no worse", "refuted"),
        (-0.01, 0.001, "no worse", "undecided"),
    ],
)
def test_the_rules(effect: float, error: float, kind: verdicts.Kind, verdict: str) -> None:
    assert verdicts.corrected([part(effect, error, kind)])[0].verdict == verdict


def test_refutations_are_corrected_over_the_parts() -> None:
    doubtful = part(-0.02, 0.0085)  # alone: p = 0.012 against "greater by 0.01"
    assert verdicts.corrected([doubtful])[0].verdict == "refuted"
    among = verdicts.corrected([doubtful, *[part(0.05, 0.001)] * 5])
    assert among[0].verdict == "undecided"
    assert among[0].why == "the contrary, but not after Holm's correction"
    assert among[0].p_refute_holm == pytest.approx(6 * verdicts.raw_p(doubtful)[1])
    informs = [part(0.05, 0.001, counts=False)] * 5
    assert verdicts.corrected([doubtful, *informs])[0].verdict == "refuted"


def test_a_part_refuted_alone_is_confirmed_in_no_company() -> None:
    sure_but_small = part(0.005, 0.0047 / 2.7764)  # interval [0.0003, 0.0097], margin 0.01
    assert verdicts.corrected([sure_but_small])[0].verdict == "refuted"
    clear = [part(0.05, 0.001), part(-0.05, 0.001), part(0.0, 0.02)]
    for beside in ([clear[0]], [clear[0]] * 9, clear):
        claim = Claim("P0", "", "", tuple(verdicts.corrected([sure_but_small, *beside])))
        assert claim.parts[0].verdict != "confirmed"
        assert claim.verdict != "confirmed"
    among = verdicts.corrected([sure_but_small, clear[0]])[0]
    assert (among.verdict, among.why) == (
        "undecided",
        "the contrary, but not after Holm's correction",
    )


@pytest.mark.parametrize("kind", ["greater", "equal", "no worse"])
def test_company_makes_no_part_more_certain(kind: verdicts.Kind) -> None:
    steps = np.linspace(-0.03, 0.03, 9)
    for effect in steps:
        for error in (0.0005, 0.0017, 0.01):
            one = part(float(effect), error, kind)
            (alone,) = verdicts.corrected([one])
            among = verdicts.corrected([one, part(0.05, 0.001), part(0.0, 0.03)])[0]
            assert among.verdict in (alone.verdict, "undecided")
            assert alone.verdict in (among.verdict, "refuted")


def answers_for(trials: pd.DataFrame, items: int = 1000) -> pd.DataFrame:
    """Answers with each trial's own accuracy; the same items are hard for all."""
    frames = []
    for key, score in trials[["key", "eval/accuracy"]].dropna().itertuples(index=False):
        right = np.arange(items) < round(score * items)
        told = {"key": key, "item": range(items), "gold": 1, "predicted": right.astype(int)}
        frames.append(pd.DataFrame(told))
    return pd.concat(frames)


def test_answers_pair_items_and_say_so(run: MakeRun) -> None:
    trials = truth(run, as_published, seeds=3)
    items = answers_for(trials)
    found = judged(trials, items)
    for number in ("P2", "P4", "P10"):
        estimates = [p.estimate for p in found[number].counted]
        assert all(e is not None and (e.seeds, e.items) == (3, 1000) for e in estimates)
    some = items[items["key"] != trials.query("method == 'lora' and alpha == 64")["key"].iloc[0]]
    counts = [p.estimate.items for p in judged(trials, some)["P2"].parts if p.estimate is not None]
    assert sorted(counts) == [0, 1000]


def test_two_seeds_that_tie_on_few_items_decide_nothing(run: MakeRun) -> None:
    """Of 20 items two seeds get one more right than the other side: no more than chance."""
    runs = [
        run("lora", "all_linear", 8, alpha, seed, **score, **{"task.eval_size": size})
        for alpha, score in ((32, {"eval/accuracy": 0.65}), (64, {"eval/accuracy": 0.6}))
        for seed in (0, 1)
        for size in ("20", "None")
    ]
    for size, why in (
        ("20", "both are open"),
        ("None", "the seeds tie, and of how many items is not known"),
    ):
        trials = tidy.tidy([one for one in runs if one["task.eval_size"] == size])
        (lora, _) = judged(trials)["P2"].parts
        assert lora.estimate is not None
        assert lora.estimate.effect == pytest.approx(0.05)
        assert (lora.verdict, lora.why) == ("undecided", why)


def test_a_region_is_the_mean_of_its_cells(run: MakeRun) -> None:
    trials = truth(run, lambda method, target, r, alpha: r / 1000, seeds=2)
    study = sides.study(trials, details.empty().items, "toy", "stars", "eval/accuracy")
    low, high = ([sides.at("lora", "attention", r) for r in ranks] for ranks in ((1, 2), (4, 8)))
    found = study.compare(high, low)
    assert found is not None
    assert found.effect == pytest.approx(0.0045, abs=0.002)


# P9


def cost_runs(run: MakeRun, ratio: float, seeds: Sequence[int] = (0, 1, 2), **all_: Any) -> list:
    """The three arms alone: QLoRA as the paper set it takes ``ratio`` times LoRA's step."""
    arms: list[tuple[str, float, float, dict[str, str]]] = [
        ("lora", 0.2, 16.0, {"train.precision": "bf16"}),
        (
            *("qlora", 0.2 * ratio, 6.0),
            {
                "train.precision": "fp32",
                "method.compute_dtype": "fp32",
                "method.kbit_prepare": "True",
                "train.checkpointing": "True",
            },
        ),
        ("qlora", 0.3, 10.0, {"train.precision": "bf16"}),
    ]
    usual = {
        "method.compute_dtype": "bf16",
        "method.kbit_prepare": "False",
        "train.checkpointing": "False",
        "train/steps": 100.0,
    }
    return [
        run(
            *(method, "all_linear", 8, 16, seed),
            **usual | own | all_ | {"time/train_s": 100 * step * (1 + 0.01 * (seed % number))},
            **{"memory/peak_allocated_gib": memory},
        )
        for number, (method, step, memory, own) in enumerate(arms, 1)
        for seed in seeds
    ]


def p9(runs: list[Run]) -> Claim:
    return cost_claim.judge(cost_claim.costs(tidy.tidy(runs)))


@pytest.mark.parametrize(("ratio", "verdict"), [(10.0, "confirmed"), (1.4, "refuted")])
def test_costs_against_table_1(run: MakeRun, ratio: float, verdict: str) -> None:
    claim = p9(cost_runs(run, ratio))
    assert claim.verdict == verdict
    effect, low, high = claims.numbers(claim.parts[0])
    assert low <= effect <= high
    assert effect == pytest.approx(ratio, rel=0.02)
    assert claims.numbers(claim.parts[1])[0] == pytest.approx(6 / 16)


def test_one_repeat_of_a_cost_is_undecided(run: MakeRun) -> None:
    assert p9(cost_runs(run, 10.0, seeds=(0,))).verdict == "undecided"


@pytest.mark.parametrize("state", ["oom", "failed"])
def test_a_seed_that_was_not_measured_leaves_its_cost_open(run: MakeRun, state: str) -> None:
    runs = cost_runs(run, 10.0)
    runs[4] |= {"lorasweep.state": state}  # of QLoRA as the paper set it
    claim = p9(runs)
    assert claim.verdict == "undecided"
    told = (
        "1 of 3 seeds not measured: QLoRA as the paper set it (float32 compute, k-bit preparation)"
    )
    assert claim.parts[0].why == told
    assert "not measured" not in claim.parts[-1].why  # of bf16 all were


def test_packed_trials_say_nothing_of_cost(run: MakeRun) -> None:
    packed = {"time/pack_share_s": 3.0}
    claim = p9(cost_runs(run, 10.0, **packed))
    assert claim.verdict == "undecided"
    assert "9 trials were packed" in claim.parts[0].why
    for disturbed in (
        {"lorasweep.changed": "train.checkpointing=true"},
        {"lorasweep.shared": "another worker"},
        {"executor.shared_gpu": "True"},  # of a record without the tag
    ):
        assert p9(cost_runs(run, 10.0, **disturbed)).verdict == "undecided"


def test_random_weights_are_measured_and_not_scored(run: MakeRun) -> None:
    random = {"model.name": "big", "model.source": "random"}
    trials = tidy.tidy([*cost_runs(run, 10.0, **random), run(r=8), run(r=8, seed=1)])
    cards = claims.judge(trials, details.empty())
    assert [card.part.model for card in cards] == ["toy"]
    assert {c.number: c.verdict for c in cards[0].claims}["P9"] == "confirmed"


def test_files_hold_every_part(run: MakeRun, tmp_path: Any) -> None:
    cards: list[Scorecard] = claims.judge(truth(run, as_published, seeds=2), details.empty())
    for folder in ("a", "b"):
        claims.write(cards, tmp_path / folder)
    told = pd.read_csv(tmp_path / "a/claims.csv")
    assert len(told) == sum(len(claim.parts) for claim in cards[0].claims)
    assert set(told["verdict"]) <= {"confirmed", "refuted", "undecided"}
    assert "| P10 |" in (tmp_path / "a/claims.md").read_text()
    for name in ("claims.csv", "claims.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert "nothing to judge" in claims.write([], tmp_path / "c")[0].read_text()
