"""Scores over layers and positions, and their aggregates as the benchmark has them.

Mean over counterfactual sets; per layer the best over positions; then the mean over layers, which
is the headline, and the best. A unit whose mask chose nothing has no score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.protocol import bootstrap
from evaluation.variables.units import Handle, Unit


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One handle's score.

    Attributes:
        handle: The units.
        values: By counterfactual set; empty if it was refused.
        value: Their mean; None if it was refused.
        low, high: The 95 % bootstrap interval over rows.
        features: How many are swapped, over all units; None is everything.
        refused: Why there is no score.
        saes: Whose features are swapped, by id.
    """

    handle: Handle
    values: dict[str, float]
    value: float | None
    low: float | None = None
    high: float | None = None
    features: int | None = None
    refused: str | None = None
    saes: tuple[str, ...] = ()

    @property
    def layer(self) -> int:
        """The lowest of the units."""
        return min(unit.layer for unit in self.handle)

    @property
    def place(self) -> str:
        """What distinguishes it within its layer."""
        return "; ".join(dict.fromkeys(map(_place, self.handle)))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "units": [unit.name for unit in self.handle],
            "layer": self.layer,
            "place": self.place,
            "values": dict(self.values),
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "features": self.features,
            "refused": self.refused,
            "saes": list(self.saes),
        }


@dataclass(frozen=True, kw_only=True)
class Surface:
    """All handles' scores.

    Attributes:
        lower: Whether lower is better, as of an error.
    """

    cells: tuple[Cell, ...]
    lower: bool = False

    @property
    def by_place(self) -> dict[str, dict[str, dict[str, float]]]:
        """{layer: {position: {set: value}}} of all that have a score."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for cell in self.cells:
            if cell.value is not None:
                found.setdefault(str(cell.layer), {})[cell.place] = dict(cell.values)
        return found

    @property
    def per_layer(self) -> dict[int, float]:
        """The best over positions of each layer that has a score."""
        found: dict[int, list[float]] = {}
        for cell in self.cells:
            if cell.value is not None:
                found.setdefault(cell.layer, []).append(cell.value)
        pick = min if self.lower else max
        return {layer: pick(values) for layer, values in sorted(found.items())}

    @property
    def mean(self) -> float | None:
        """The mean over layers of the best over positions."""
        return float(np.mean(list(self.per_layer.values()))) if self.per_layer else None

    @property
    def best(self) -> Cell | None:
        """The cell with the best score; of equal ones the first."""
        scored = [(cell.value, cell) for cell in self.cells if cell.value is not None]
        if not scored:
            return None
        return (min if self.lower else max)(scored, key=lambda pair: pair[0])[1]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "cells": [cell.as_dict() for cell in self.cells],
            "per_layer_max": {str(layer): value for layer, value in self.per_layer.items()},
            "mean": self.mean,
            "best": None if self.best is None else self.best.as_dict(),
        }


def cell(handle: Handle, values: np.ndarray, sets: Sequence[str], features: int | None) -> Cell:
    """The cell of one handle from its rows' values and the sets that they belong to."""
    means = {name: float(values[[s == name for s in sets]].mean()) for name in sorted(set(sets))}
    # A row weighs as its set's share says, so that the mean is that over sets.
    sizes = {name: sum(s == name for s in sets) for name in means}
    weights = np.array([len(sets) / (len(means) * sizes[name]) for name in sets])
    low, high = bootstrap([f"{i:08d}" for i in range(len(sets))], values * weights)
    return Cell(
        handle=handle,
        values=means,
        value=float(np.mean(list(means.values()))),
        low=low,
        high=high,
        features=features,
    )


def refused(handle: Handle, why: str) -> Cell:
    """A handle without a score."""
    return Cell(handle=handle, values={}, value=None, features=0, refused=why)


def _place(unit: Unit) -> str:
    return unit.position if unit.head is None else f"head {unit.head}, {unit.position}"
