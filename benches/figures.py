"""What a bench returns: one figure, and the bound that it should keep, if there is one."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


class NotHere(Exception):
    """This machine lacks what the bench needs; it says what, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of a table.

    Attributes:
        least, most: The target: at least, or at most, so much. Neither: a figure to read.
    """

    name: str
    value: float
    unit: str = ""
    least: float | None = None
    most: float | None = None

    @property
    def passed(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.least is None and self.most is None:
            return None
        return not self._below and not self._above

    @property
    def _below(self) -> bool:
        return self.least is not None and not self.value >= self.least

    @property
    def _above(self) -> bool:
        return self.most is not None and not self.value <= self.most

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Name, value, target and verdict, as both tables show them."""
        bounds = [("≥", self.least), ("≤", self.most)]
        target = ", ".join(
            f"{sign} {v:g} {self.unit}".strip() for sign, v in bounds if v is not None
        )
        verdict = {None: "", True: "reached", False: "MISSED"}[self.passed]
        return self.name, f"{self.value:.4g} {self.unit}".strip(), target, verdict

    def as_dict(self) -> dict[str, Any]:
        """For JSON; whether it passed is written down for other readers."""
        return {**asdict(self), "value": float(self.value), "passed": self.passed}

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> "Figure":
        """The figure that `as_dict` gave."""
        return cls(**{key: value for key, value in told.items() if key != "passed"})


def speed_up(
    name: str, ours: Sequence[float], theirs: Sequence[float], least: float | None = None
) -> Figure:
    """How many times faster we are: the median over rounds of their seconds by ours."""
    value = statistics.median(t / o for o, t in zip(ours, theirs, strict=True))
    return Figure(name=name, value=value, unit="x", least=least)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def by_turns(
    clock: Callable[[], float],
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
) -> tuple[list[float], list[float]]:
    """Seconds of both sides, round by round; who begins changes every round."""
    found: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds):
        sides = [(found[0], ours), (found[1], theirs)]
        for seconds, side in sides if i % 2 else sides[::-1]:
            started = clock()
            side()
            seconds.append(clock() - started)
    return found
