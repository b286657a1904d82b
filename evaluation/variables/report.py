"""What a study of a causal variable found."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from evaluation.behaviours.pairs import Dropped
from evaluation.variables.featurizers import Featurizer
from evaluation.variables.objective import Coefficients
from evaluation.variables.settings import VariableStudy
from evaluation.variables.surface import Surface
from evaluation.variables.units import Handle


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What the study cost.

    Attributes:
        forwards, backwards: Of batches, whole or in part.
        peak_bytes: Of the process, as the system counts it.
    """

    forwards: int
    backwards: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class VariableReport:
    """What was found.

    Attributes:
        trained, scored: Rows of either kind, after everything was dropped.
        dropped: By the row's number among all that were brought, why it was left out.
        found: Scores of the featurizer that was asked for.
        controls: Scores of the same handles with everything and with random features swapped.
        no_op: By set the score of doing nothing.
        indistinct: By set what it cannot tell the variable from: `nothing`, or other variables.
        coefficients: Of the logit difference, where that is the metric.
        featurizers: Per handle, in the order of `found.cells`; not in JSON.
        versions: Of what computed it.
    """

    model: str
    fingerprint: str
    settings: VariableStudy
    trained: int
    scored: int
    dropped: tuple[Dropped, ...]
    found: Surface
    controls: Mapping[str, Surface]
    no_op: Mapping[str, float]
    indistinct: Mapping[str, tuple[str, ...]]
    coefficients: Coefficients | None
    featurizers: Sequence[tuple[Handle, tuple[Featurizer, ...]]]
    spent: Spent
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Rows that were used."""
        return self.trained + self.scored

    @property
    def positions(self) -> tuple[str, ...]:
        """Places within a layer that have a cell."""
        return tuple(dict.fromkeys(cell.place for cell in self.found.cells))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "settings": asdict(self.settings),
            "variable": self.settings.variable,
            "metric": self.settings.metric,
            "kept": self.kept,
            "trained": self.trained,
            "scored": self.scored,
            "dropped": [asdict(row) for row in self.dropped],
            "iia": self.found.by_place,
            **self.found.as_dict(),
            "control": {
                **{name: surface.as_dict() for name, surface in self.controls.items()},
                "no_op": dict(self.no_op),
            },
            "indistinct": {name: list(others) for name, others in self.indistinct.items()},
            "coefficients": None if self.coefficients is None else asdict(self.coefficients),
            "cost": asdict(self.spent),
            "versions": dict(self.versions),
        }
