"""A behaviour: a causal model, prompts drawn for it, and their counterfactuals by set.

One row of a behaviour is a base and one counterfactual, both as inputs of the causal model. It is
told in two ways: as a pair of prompts between two answers (where is the circuit?), and as an
interchange with what each variable's swap should bring (where is the variable?).
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from evaluation.behaviours.causal import CausalModel, Values
from evaluation.behaviours.errors import UnknownSet
from evaluation.behaviours.pairs import Pair
from evaluation.behaviours.swaps import SwapText

Alter = Callable[[Values, random.Random], Values]
Places = Callable[[Values], Mapping[str, int | None]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """The inputs of a base and of its counterfactual, and the set that this one is of."""

    base: Values
    counterfactual: Values
    of_set: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Behaviour:
    """One task.

    Attributes:
        variables: Those that can be swapped.
        draw: The inputs of a base.
        sets: By name, what makes a counterfactual of a base.
        places: Of the values of a run, the named characters of its prompt.
        swapped: The sets whose counterfactuals have an answer, so that swaps mean something.
        paired: The set that a circuit is looked for with.
        distractor: The variable that holds the wrong answer of a pair; None takes the
            counterfactual's answer.
        signed: Variables whose swaps turn a sign of the logit difference, in the order (token,
            position).
    """

    name: str
    causal: CausalModel
    variables: tuple[str, ...]
    draw: Callable[[random.Random], Values]
    sets: Mapping[str, Alter]
    places: Places
    swapped: tuple[str, ...]
    paired: str
    distractor: str | None = None
    signed: tuple[str, ...] = field(default=())

    def rows(self, n: int, seed: int, sets: Sequence[str]) -> Iterator[Row]:
        """Rows of the sets in turn, the same for the same seed; UnknownSet for another name."""
        for name in sets:
            if name not in self.sets:
                raise UnknownSet(name, self.name, self.sets)
        draw = random.Random(seed)  # noqa: S311 - prompts, not secrets
        for i in range(n):
            base, name = self.draw(draw), sets[i % len(sets)]
            yield Row(base=base, counterfactual=self.sets[name](base, draw), of_set=name)

    def pairs(self, n: int, seed: int = 0, of_set: str | None = None) -> list[Pair]:
        """Clean and corrupted prompts; by default of the task's own set."""
        return [self.pair(row) for row in self.rows(n, seed, (of_set or self.paired,))]

    def swaps(self, n: int, seed: int = 0, sets: Sequence[str] | None = None) -> list[SwapText]:
        """Interchanges; by default of all sets that have an answer."""
        return [self.swap(row) for row in self.rows(n, seed, sets or self.swapped)]

    def pair(self, row: Row) -> Pair:
        """One row between two answers."""
        base, other = self.causal.run(row.base), self.causal.run(row.counterfactual)
        return Pair(
            clean=base["prompt"],
            corrupted=other["prompt"],
            correct=base["answer"],
            incorrect=base[self.distractor] if self.distractor else other["answer"],
        )

    def swap(self, row: Row) -> SwapText:
        """One row with what every variable's swap should bring."""
        base, other = self.causal.run(row.base), self.causal.run(row.counterfactual)
        here, there = self.places(base), self.places(other)
        return SwapText(
            base=base["prompt"],
            counterfactual=other["prompt"],
            base_answer=base["answer"],
            counterfactual_answer=other["answer"],
            expected={
                name: self.causal.swap(row.base, row.counterfactual, name)["answer"]
                for name in self.variables
            },
            positions={name: (here[name], there[name]) for name in here if name in there},
            of_set=row.of_set,
            distractor=base[self.distractor] if self.distractor else "",
            signs={name: self._signs(name, base, other) for name in self.signed},
        )

    def _signs(self, swapped: str, base: Values, other: Values) -> tuple[int, int]:
        """+1 where the value is the base's right one after the swap, else -1."""
        token, position = (
            -1 if name == swapped and other[name] != base[name] else 1 for name in self.signed
        )
        return token, position
