"""Successive halving (Jamieson and Talwalkar 2016): many plans see few examples, the best few more.

Rounds are known before anything is asked: how many examples each has seen by its end, and how many
plans are still in it. So a budget of answers can be kept by beginning with fewer examples, and
below that by drawing some of the plans.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
LEAST = 4
"""Examples, or clusters of them, below which nothing can be said: that choose, that are reported,
and of the first round."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """So many plans, and how many examples each has seen when it ends."""

    plans: int
    seen: int


def rounds(plans: int, examples: int, first: float, keep: float) -> tuple[Round, ...]:
    """Until the plans that are left have seen every example.

    Args:
        plans: That begin.
        examples: That choose.
        first: Share of the examples that the first round sees.
        keep: Share of the plans that go on; each sees as many times more examples.
    """
    seen = min(examples, max(LEAST, round(first * examples)))
    found = [Round(plans=plans, seen=seen)]
    while seen < examples:
        plans = max(1, round(keep * plans))
        seen = min(examples, max(seen + 1, round(seen / keep)))
        found.append(Round(plans=plans, seen=seen))
    return tuple(found)


def answers(some: Sequence[Round]) -> int:
    """How many answers the rounds ask for: what an earlier one asked is known."""
    seen, total = 0, 0
    for one in some:
        total += one.plans * (one.seen - seen)
        seen = one.seen
    return total


def within(
    plans: Sequence[T],
    examples: int,
    *,
    first: float,
    keep: float,
    most: int | None,
    seed: int,
) -> tuple[tuple[T, ...], tuple[Round, ...]]:
    """The plans that begin, and their rounds, within a budget of answers.

    Fewer examples begin, never fewer than 4; if that is still too much, some of the plans are
    drawn. One plan is always left.
    """
    kept, share = tuple(plans), first
    found = rounds(len(kept), examples, share, keep)
    if most is None:
        return kept, found
    while answers(found) > most and share * examples > LEAST:
        share *= keep
        found = rounds(len(kept), examples, share, keep)
    if answers(found) > most:
        count = max(
            n
            for n in range(1, len(kept) + 1)
            if n == 1 or answers(rounds(n, examples, share, keep)) <= most
        )
        drawn = random.Random(seed).sample(range(len(kept)), count)  # noqa: S311 - no secret
        kept = tuple(kept[i] for i in sorted(drawn))
        found = rounds(count, examples, share, keep)
    return kept, found
