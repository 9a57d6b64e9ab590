"""Points that fill a space without looking at results: pure functions of seed and number."""

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from functools import cache

from lorasweep.search.dimensions import Codes, Dimension
from lorasweep.search.objectives import Losses


def seed_of(*parts: object) -> int:
    """Return a 32-bit seed that depends on all parts, alike on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


class Uniform:
    """Independent random points (Bergstra & Bengio 2012)."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int) -> None:
        self.dimensions, self.seed = dimensions, seed

    def choose(self, point: int, attempt: int = 0) -> Codes:
        """Return the codes of the n-th point; another one at each attempt."""
        draw = random.Random(seed_of("random", self.seed, point, attempt))
        return {d.name: d.at(draw.random()) for d in self.dimensions}

    def pending(self, point: int, codes: Codes) -> None:
        """Nothing to keep."""

    def told(self, point: int, losses: Losses | None) -> None:
        """Nothing to learn."""


class Halton(Uniform):
    """Points that spread evenly: a randomised Halton sequence.

    Owen 2017, "A randomized Halton algorithm in R", arXiv:1706.02808: the n-th point has in
    dimension j the digits of n in base p_j (the j-th prime), mirrored at the point, each
    digit permuted at random. Any n is reached directly, so a restart needs no counter.
    """

    def choose(self, point: int, attempt: int = 0) -> Codes:
        """Return the codes of the n-th point; a random one where that will not do."""
        if attempt:
            return super().choose(point, attempt)
        bases = itertools.islice(_primes(), len(self.dimensions))
        shares = [
            _mirrored(point, base, seed_of("qmc", self.seed, j)) for j, base in enumerate(bases)
        ]
        return {d.name: d.at(share) for d, share in zip(self.dimensions, shares, strict=True)}


def _primes() -> Iterator[int]:
    return itertools.filterfalse(
        lambda n: any(n % k == 0 for k in range(2, int(n**0.5) + 1)), itertools.count(2)
    )


@cache
def _permutations(base: int, seed: int) -> list[list[int]]:
    """Return a permutation for each digit down to 2^-32."""
    draw, found, resolved = random.Random(seed), [], 1
    while resolved < 2**32:
        found.append(draw.sample(range(base), base))
        resolved *= base
    return found


def _mirrored(number: int, base: int, seed: int) -> float:
    share, unit = 0.0, 1.0
    for permutation in _permutations(base, seed):
        number, digit = divmod(number, base)
        unit /= base
        share += permutation[digit] * unit
    return min(share, 1 - 2**-33)
