"""From estimates to verdicts: what would confirm a part of a claim, and what would refute it.

Every part is read from one 95 % interval, whose two ends are one-sided tests at 2.5 %. A claim is
confirmed if every part is, which needs no correction (an intersection-union test, Berger 1982); it
is refuted if any part is, so refutations are corrected by Holm over its parts (its ranks). The
correction may leave a part undecided, and never makes it confirmed: what its own interval refutes
holds no more for having been looked at among others.
``margin`` is the smallest difference that counts; it is fixed before any result is seen
(see ``docs/claims.md``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lorasweep.results.evidence import ALPHA, Estimate, holm

Verdict = Literal["confirmed", "refuted", "undecided"]
Kind = Literal["greater", "equal", "no worse", "within"]

RULES: dict[Kind, str] = {
    "greater": "confirmed: interval above {floor}; refuted: interval below {margin}",
    "equal": "confirmed: interval within ±{margin}; refuted: interval outside ±{margin}",
    "no worse": "confirmed: interval above −{margin}; refuted: interval below −{margin}",
    "within": "confirmed: interval within {low} to {high}; refuted: interval outside them",
}


@dataclass(frozen=True)
class Part:
    """One comparison of a claim.

    Attributes:
        what: the comparison in words.
        kind: what the claim says of it.
        estimate: None where the record lacks trials for it.
        margin: smallest difference that counts.
        floor: for ``greater``, what must be exceeded: 0, or the margin for "by far".
        bounds: for ``within``.
        lacks: why there is no estimate, or why it must not decide.
        counts: whether the claim's verdict depends on it.
        p_confirm: p value of the contrary of the part.
        p_refute: p value of the contrary of its refutation.
        p_confirm_holm: for a reader of one part alone.
        p_refute_holm: adjusted over the parts of the claim; it decides.
        unit: of the effect: ``points`` or ``ratio``.
    """

    what: str
    kind: Kind
    estimate: Estimate | None
    margin: float = 0.0
    floor: float = 0.0
    bounds: tuple[float, float] = (math.nan, math.nan)
    lacks: str = ""
    counts: bool = True
    p_confirm: float = math.nan
    p_refute: float = math.nan
    p_confirm_holm: float = math.nan
    p_refute_holm: float = math.nan
    unit: Literal["points", "ratio"] = "points"

    @property
    def verdict(self) -> Verdict:
        """What the p values say; one seed and doubtful cells are never decided."""
        if self.estimate is None or self.estimate.seeds < 2 or self.lacks:
            return "undecided"
        if self.p_refute_holm < ALPHA:
            return "refuted"
        # An interval between floor and margin shows both; it confirms nothing, corrected or not.
        holds = self.p_confirm < ALPHA and not self.p_refute < ALPHA
        return "confirmed" if holds else "undecided"

    @property
    def rule(self) -> str:
        """The rule in words, with this part's numbers."""
        low, high = self.bounds
        if self.unit == "ratio":
            low, high = math.exp(low), math.exp(high)
        return RULES[self.kind].format(
            floor=f"{self.floor:g}", margin=f"{self.margin:g}", low=f"{low:.4g}", high=f"{high:.4g}"
        )

    @property
    def why(self) -> str:
        """What decided, or what stood in the way."""
        if self.lacks:
            return self.lacks
        if self.estimate is None or self.estimate.seeds == 0:
            return "no seed that both sides have"
        if self.estimate.seeds == 1:
            return "one seed alone decides nothing"
        if math.isnan(self.estimate.error):
            return "the seeds tie, and of how many items is not known"
        if self.verdict == "undecided":
            alone = self.p_refute < ALPHA
            return "the contrary, but not after Holm's correction" if alone else "both are open"
        return {"confirmed": "as claimed", "refuted": "the contrary is shown"}[self.verdict]


def raw_p(part: Part) -> tuple[float, float]:
    """P values, before any correction, against the part and against its refutation."""
    e, m = part.estimate, part.margin
    if e is None or e.seeds < 2:
        return math.nan, math.nan
    if part.kind == "greater":
        return e.above(part.floor), e.below(max(m, part.floor))
    if part.kind == "no worse":
        return e.above(-m), e.below(-m)
    low, high = part.bounds if part.kind == "within" else (-m, m)
    # Two one-sided tests (Schuirmann 1987): equal if both ends are excluded.
    return max(e.above(low), e.below(high)), min(e.below(low), e.above(high))


def corrected(parts: Sequence[Part]) -> list[Part]:
    """Same parts with their p values; Holm's are over all that count and may decide."""
    raw = [raw_p(part) for part in parts]
    among = [i for i, part in enumerate(parts) if part.counts and not part.lacks]
    confirm = dict(zip(among, holm([raw[i][0] for i in among]), strict=True))
    refute = dict(zip(among, holm([raw[i][1] for i in among]), strict=True))
    return [
        replace(
            part,
            p_confirm=raw[i][0],
            p_refute=raw[i][1],
            p_confirm_holm=confirm.get(i, raw[i][0]),
            p_refute_holm=refute.get(i, raw[i][1]),
        )
        for i, part in enumerate(parts)
    ]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper with its evidence.

    Attributes:
        number: ``P1`` to ``P10``.
        says: what the paper says.
        reading: how it was made testable.
        parts: all that must hold, and some that only inform.
    """

    number: str
    says: str
    reading: str
    parts: tuple[Part, ...]

    def withheld(self, reason: str) -> "Claim":
        """Return the same claim with its numbers, but left undecided for a reason."""
        parts = [replace(part, lacks=part.lacks or reason) for part in self.parts]
        return replace(self, parts=tuple(corrected(parts)))

    @property
    def counted(self) -> list[Part]:
        """Parts that the verdict depends on."""
        return [part for part in self.parts if part.counts]

    @property
    def verdict(self) -> Verdict:
        """Confirmed if every part is, refuted if any part is, else undecided."""
        found = {part.verdict for part in self.counted}
        if "refuted" in found:
            return "refuted"
        return "confirmed" if found == {"confirmed"} else "undecided"

    @property
    def decisive(self) -> Part | None:
        """Part that gave the verdict: the clearest refutation, or else the weakest of the rest."""
        chosen = [p for p in self.counted if p.verdict == self.verdict and p.estimate is not None]
        if not chosen:
            return None
        if self.verdict == "refuted":
            return min(chosen, key=lambda p: p.p_refute_holm)
        return max(chosen, key=lambda p: -1.0 if math.isnan(p.p_confirm) else p.p_confirm)

    @property
    def rule(self) -> str:
        """How the verdict came about, in one sentence."""
        counts = {v: sum(p.verdict == v for p in self.counted) for v in ("confirmed", "refuted")}
        total = len(self.counted)
        told = f"{counts['confirmed']} of {total} parts hold, {counts['refuted']} are refuted"
        if self.verdict == "undecided":
            reasons = [p.why for p in self.counted if p.verdict == "undecided"]
            told += f"; {max(sorted(set(reasons)), key=reasons.count)}" if reasons else ""
        return told
