"""P1 to P10 of Patil, Khot and Gudivada 2025 (Applied Sciences 15, 3087), made testable.

The paper has one seed and whole points of accuracy. A difference counts here from one point
(0.01) on: the paper reports 67 % and 68 % and calls what lies closer "steady" or "the same", and
the 95 % interval of one accuracy near 0.68 on its 10,000 items is ±0.0091, so that it could not
have seen less. "By far" is ten such points.
"""

from collections.abc import Callable, Sequence

from analysis import style
from analysis.claims.sides import BASE, Cell, Study, at
from analysis.claims.verdicts import Claim, Kind, Part, corrected

COUNTS = 0.01  # of accuracy, from 0 to 1
BY_FAR = 0.10
PAPER_PEAK = 0.68
PAPER_MODEL, PAPER_TASK = "llama3_8b", "yelp5"
LINEAR, ATTENTION = "all_linear", "attention"
BOTH = ("lora", "qlora")
FLAT_FROM = 8  # the rank that others are compared with: the one both studies share
UP_TO_256 = (1, 2, 4, 16, 32, 64, 128, 256)


ACROSS = ("P4", "P7", "P8", "P10")  # compare methods or targets
CHOSEN_HERE = "the rates were chosen by the scores that are compared: search for them first"


def judge(study: Study, *, chosen_here: bool = False) -> list[Claim]:
    """P1 to P8 and P10 for one model, task and setting (P9 is ``costs.judge``).

    Args:
        study: the trials.
        chosen_here: whether the learning rates of methods and targets were chosen by the same
            scores. What compares methods or targets is not judged then.
    """
    claims = [make(study) for make in _CLAIMS]
    withheld = ACROSS if chosen_here else ()
    return [one.withheld(CHOSEN_HERE) if one.number in withheld else one for one in claims]


def _part(
    study: Study,
    kind: Kind,
    sides: tuple[Sequence[Cell], Sequence[Cell]],
    what: str,
    floor: float = 0.0,
) -> Part:
    """One comparison; ``floor`` beyond 0 is also the difference that counts."""
    a, b = sides
    return Part(
        what=what,
        kind=kind,
        estimate=study.compare(a, b),
        margin=max(COUNTS, floor),
        floor=floor,
        lacks=study.lacks([*a, *b]),
    )


def _pair(study: Study, kind: Kind, a: Cell, b: Cell, floor: float = 0.0) -> Part:
    return _part(study, kind, ([a], [b]), _words(a, b), floor)


def _words(a: Cell, b: Cell) -> str:
    """``LoRA, all-linear: r 8, α 32 − r 8, α 64``, saying only once what both share."""
    first, second = a.name.split(", "), b.name.split(", ")
    shared = 0
    while shared < min(len(first), len(second)) - 1 and first[shared] == second[shared]:
        shared += 1
    head = ", ".join(first[:shared])
    rest = f"{', '.join(first[shared:])} − {', '.join(second[shared:])}"
    return f"{head}: {rest}" if head else rest


def _claim(number: str, says: str, reading: str, parts: Sequence[Part]) -> Claim:
    return Claim(number, says, reading, tuple(corrected(parts)))


def p1(study: Study) -> Claim:
    """Both methods beat the base model by far."""
    cells = [at(method, target, 8) for method in BOTH for target in (LINEAR, ATTENTION)]
    return _claim(
        "P1",
        "LoRA and QLoRA beat the base model by far.",
        f"At r 8, α 16 each method on each target beats the untrained base by more than {BY_FAR:g}",
        [_pair(study, "greater", cell, BASE, floor=BY_FAR) for cell in cells],
    )


def p2(study: Study) -> Claim:
    """All-linear: the score falls once alpha exceeds 32."""
    pairs = [(at(m, LINEAR, 8, 32), at(m, LINEAR, 8, 64)) for m in BOTH]
    return _claim(
        "P2",
        "All-linear: the score falls once α exceeds 32 at r = 8.",
        "α 32 beats α 64 at r 8, for both methods",
        [_pair(study, "greater", *pair) for pair in pairs],
    )


def p3(study: Study) -> Claim:
    """Attention: the score rises with alpha beyond 16."""
    pairs = [(at(m, ATTENTION, 8, 64), at(m, ATTENTION, 8, 16)) for m in BOTH]
    return _claim(
        "P3",
        "Attention: the score rises with α beyond 16.",
        "α 64 beats α 16 at r 8, for both methods (over 16, 32, 64 this is the slope on log₂ α)",
        [_pair(study, "greater", *pair) for pair in pairs],
    )


def p4(study: Study) -> Claim:
    """QLoRA equals LoRA where the paper says that both peak."""
    places = [(LINEAR, 32.0), (ATTENTION, 64.0)]
    pairs = [(at("qlora", t, 8, alpha), at("lora", t, 8, alpha)) for t, alpha in places]
    parts = [
        _part(study, "equal", ([a], [b]), f"QLoRA − LoRA: {', '.join(a.name.split(', ')[1:])}")
        for a, b in pairs
    ]
    paper = (study.view.model, study.view.task) == (PAPER_MODEL, PAPER_TASK)
    parts += [
        Part(
            what=f"{cell.name}: accuracy − {PAPER_PEAK:g}",
            kind="equal",
            estimate=study.level(cell, PAPER_PEAK),
            margin=COUNTS,
            lacks=study.lacks([cell]),
            counts=paper,
        )
        for pair in pairs
        for cell in pair
    ]
    return _claim(
        "P4",
        "QLoRA equals LoRA at (r 8, α 32, all-linear) and (r 8, α 64, attention); both peak "
        "near 68 %.",
        f"The two methods lie within {COUNTS:g} of each other at both places; the level of 68 % "
        "counts on LLaMA3-8B and Yelp only",
        parts,
    )


def _flat(study: Study, method: str, target: str, ranks: Sequence[int]) -> list[Part]:
    """Every rank lies within the margin of r = 8."""
    reference = at(method, target, FLAT_FROM)
    return [_pair(study, "equal", at(method, target, r), reference) for r in ranks]


def _falls(study: Study, method: str, target: str, last: int, ranks: Sequence[int]) -> list[Part]:
    """The last good rank beats every higher one."""
    good = at(method, target, last)
    return [_pair(study, "greater", good, at(method, target, r)) for r in ranks]


def p5(study: Study) -> Claim:
    """All-linear: flat, then LoRA degrades past 64 and QLoRA past 128."""
    return _claim(
        "P5",
        "All-linear: flat for r ≤ 64; LoRA degrades past 64, QLoRA past 128.",
        f"Each rank up to 64 (QLoRA: 128) lies within {COUNTS:g} of r 8; 64 (128) beats every "
        "higher rank",
        [
            *_flat(study, "lora", LINEAR, UP_TO_256[:6]),
            *_flat(study, "qlora", LINEAR, UP_TO_256[:7]),
            *_falls(study, "lora", LINEAR, 64, (128, 256, 512)),
            *_falls(study, "qlora", LINEAR, 128, (256, 512)),
        ],
    )


def p6(study: Study) -> Claim:
    """Attention: flat to 256, dips at 512."""
    return _claim(
        "P6",
        "Attention: flat to r = 256, dips at 512.",
        f"Each rank up to 256 lies within {COUNTS:g} of r 8; 256 beats 512",
        [
            part
            for method in BOTH
            for part in (
                *_flat(study, method, ATTENTION, UP_TO_256),
                *_falls(study, method, ATTENTION, 256, (512,)),
            )
        ],
    )


def p7(study: Study) -> Claim:
    """Small ranks: all-linear beats attention."""
    pairs = [(at(m, LINEAR, r), at(m, ATTENTION, r)) for m in BOTH for r in (1, 2)]
    return _claim(
        "P7",
        "r = 1, 2: all-linear beats attention for both methods.",
        "All-linear beats attention at r 1 and at r 2, for both methods",
        [_pair(study, "greater", *pair) for pair in pairs],
    )


def p8(study: Study) -> Claim:
    """QLoRA on all-linear degrades past 8, and attention does better there."""
    own = [(at("qlora", LINEAR, 8), at("qlora", LINEAR, r)) for r in (16, 32)]
    across = [(at("qlora", ATTENTION, r), at("qlora", LINEAR, r)) for r in (16, 32)]
    return _claim(
        "P8",
        "QLoRA with all-linear degrades past r = 8; attention does better there.",
        "QLoRA, all-linear: r 8 beats r 16 and r 32 (the paper's Figure 9; it says of Figure 10 "
        "that the score rises again); at both ranks attention beats all-linear. P5 says the "
        "contrary of the first half",
        [_pair(study, "greater", *pair) for pair in (*own, *across)],
    )


def p10(study: Study) -> Claim:
    """The advice: QLoRA r > 8 on attention, or either method at r <= 8 on all-linear."""
    low, high = (1, 2, 4, 8), (16, 32, 64, 128, 256, 512)

    def over(method: str, target: str, ranks: Sequence[int]) -> list[Cell]:
        return [at(method, target, r) for r in ranks]

    advised = over("qlora", ATTENTION, high)
    low_attention, high_linear = over("qlora", ATTENTION, low), over("qlora", LINEAR, high)
    parts = [
        ("QLoRA, attention: mean over r > 8 − over r ≤ 8", advised, low_attention),
        ("QLoRA, r > 8: mean on attention − on all-linear", advised, high_linear),
    ]
    for m in BOTH:
        what = f"{style.method(m).name}, all-linear: mean over r ≤ 8 − over r > 8"
        parts.append((what, over(m, LINEAR, low), over(m, LINEAR, high)))
    return _claim(
        "P10",
        "Advice: QLoRA with r > 8 on attention, or either method with r ≤ 8 on all-linear.",
        "What is advised is no worse, on average over its ranks, than what it is advised against; "
        f"confirmed means that following it costs less than {COUNTS:g}",
        [_part(study, "no worse", (a, b), what) for what, a, b in parts],
    )


_CLAIMS: tuple[Callable[[Study], Claim], ...] = (p1, p2, p3, p4, p5, p6, p7, p8, p10)
