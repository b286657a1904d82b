"""What a new version says of itself, and what it must reach.

Section 8 of the method's specification. Nothing here looks at a picture: text-side efficacy is not
a judged picture, and is never printed as one.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from editors.neighbours import (
    spoken,
)


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a version must reach to take an alias without `force`."""

    efficacy: float = 0.5
    moved: float = 0.5
    generality: float = 0.7
    reach: float = 0.5
    specificity: float = 0.95
    stray: float = 0.1
    """A neighbour may move by so much of the edit prompt's own change."""
    leak: float = 0.15


Group = Literal["asked", "near", "same", "source", "target", "neutral"]
SAME = 0.5
"""From this |rho| on a phrase says the same subject (section 6.2): it is shown and not judged."""


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A sentence that was to stay as it is, and how nearly it did.

    Attributes:
        group: The request's (`asked`), by its key (`near`; `same` where the key says the same
            subject), the fact's own `source` or `target`, or of the fixed set (`neutral`).
        score: The larger of its change over what it may move (`stray`, of the edit prompt's own),
            and over its distance to the target; for the target itself only the first. It holds up
            to 1.
        rho: For `near` and `same`: how much its key overlaps with the edit's.
    """

    text: str
    group: Group
    score: float
    held: bool
    rho: float | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Text-side measures of one delta in one tower; see the specification for the definitions.

    Attributes:
        efficacy: P(target) on the edit prompt against its old meaning and neutral captions.
        nearest: Whether the target is the nearest of these.
        moved: How much of the way to the target's sentences the fitted contexts went.
        generality: Share of held-out contexts and phrasings nearer to the target than to before.
        reach: Median share of the value that arrives in held-out contexts.
        specificity: Share of neighbours that neither lean to the target nor move much; those that
            say the same subject are not among them.
        neighbours: All that were measured, the worst first.
        leak: Root mean square change over the corpus, relative to the layer's own output.
        drift: Mean relative change of the states of neutral captions.
        conflicts: Live edits whose keys overlap by |rho| >= 0.5, with rho.
        cond: Condition number of the second moment that the fit solved with, the larger of two
            encoders'; None where the delta does not tell.
        templates: Whose sentences were fitted: `own`, or those of a user's `file`.
        warnings: What a reader of the numbers should know.
    """

    efficacy: float
    nearest: bool
    moved: float
    generality: float
    reach: float
    specificity: float
    leak: float
    drift: float
    neighbours: tuple[Neighbour, ...]
    templates: Literal["own", "file"] = "own"
    warnings: tuple[str, ...] = ()
    conflicts: dict[str, float] = field(default_factory=dict)
    cond: float | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)

    @property
    def failed(self) -> tuple[str, ...]:
        """The measures that miss their thresholds."""
        t = self.thresholds
        checks = {
            "efficacy": self.efficacy >= t.efficacy and self.nearest,
            "moved": self.moved >= t.moved,
            "generality": self.generality >= t.generality,
            "reach": self.reach >= t.reach,
            "specificity": self.specificity >= t.specificity,
            "leak": self.leak <= t.leak,
        }
        return tuple(name for name, good in checks.items() if not good)

    @property
    def passed(self) -> bool:
        """Whether the version may take an alias without `force`."""
        return not self.failed

    @property
    def by_group(self) -> dict[str, float]:
        """Specificity of each group of neighbours alone."""
        groups = sorted({n.group for n in self.neighbours})
        return {g: held([n for n in self.neighbours if n.group == g]) for g in groups}

    @property
    def worst(self) -> dict[str, float]:
        """The five neighbours that changed most, with their scores."""
        return {n.text: n.score for n in of_others(self.neighbours)[:5]}

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        told = {"passed": self.passed, "failed": list(self.failed)}
        return {**asdict(self), **told, "by_group": self.by_group, "worst": self.worst}


def worst_of(reports: Sequence[Report]) -> Report:
    """Of several encoders, the worse value of each measure."""
    first, *rest = reports
    if not rest:
        return first
    good = ("efficacy", "moved", "generality", "reach", "specificity", "nearest")
    low = {n: min(getattr(r, n) for r in reports) for n in good}
    high = {n: max(getattr(r, n) for r in reports) for n in ("leak", "drift")}
    kept: dict[str, Neighbour] = {}
    for n in sorted((n for r in reports for n in r.neighbours), key=lambda n: -n.score):
        kept.setdefault(spoken(n.text), n)
    return Report(
        **low,
        **high,
        neighbours=tuple(kept.values()),
        templates=first.templates,
        warnings=tuple(dict.fromkeys(w for r in reports for w in r.warnings)),
        conflicts={k: v for r in reports for k, v in r.conflicts.items()},
        cond=max((r.cond for r in reports if r.cond is not None), default=None),
        thresholds=first.thresholds,
    )


def held(neighbours: Sequence[Neighbour]) -> float:
    """The share that kept its meaning; 0 without any."""
    return sum(n.held for n in neighbours) / max(1, len(neighbours))


def of_others(neighbours: Sequence[Neighbour]) -> list[Neighbour]:
    """Those that say another subject."""
    return [n for n in neighbours if n.group != "same"]
