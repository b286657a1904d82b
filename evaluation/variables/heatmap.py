"""Scores over layers and positions as a picture, beside the controls' on the same scale."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.variables.report import VariableReport
from evaluation.variables.surface import Surface

_TITLES = {"full": "everything swapped", "random_features": "random features"}
_MOST_TOLD = 32
"""Layers up to which every cell says its number."""


def plot(report: VariableReport, file: Path) -> None:
    """Write the heat maps as PNG; a grey cell has no score."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    asked = report.settings.featurizer.kind
    maps = {asked: report.found}
    maps |= {_TITLES.get(name, name): some for name, some in report.controls.items()}
    layers = sorted({cell.layer for cell in report.found.cells})
    grids = [_grid(surface, layers, report.positions) for surface in maps.values()]
    width = 1.6 + len(maps) * max(1.8, 0.8 * len(report.positions))
    figure = Figure(figsize=(width, 1.8 + 0.34 * len(layers)), layout="constrained")
    FigureCanvasAgg(figure)
    highest = max(1.0, *(float(np.nanmax(g)) for g in grids if not np.isnan(g).all()))
    image = None
    for place, (title, grid) in enumerate(zip(maps, grids, strict=True), start=1):
        axes = figure.add_subplot(1, len(maps), place)
        image = _draw(axes, grid, highest)
        axes.set_title(title, fontsize="medium")
        axes.set_xticks(range(len(report.positions)), report.positions, rotation=30, ha="right")
        axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        if place == 1:
            axes.set_ylabel("layer")
    assert image is not None  # noqa: S101 - there is the map that was asked for
    figure.colorbar(image, ax=figure.axes, label=_label(report), shrink=0.8)
    figure.suptitle(f"{report.settings.variable}: {report.scored} rows, {_nothing(report)}")
    figure.savefig(file, dpi=110)


def _grid(surface: Surface, layers: Sequence[int], positions: Sequence[str]) -> np.ndarray:
    grid = np.full((len(layers), len(positions)), np.nan)
    for cell in surface.cells:
        if cell.value is not None:
            grid[layers.index(cell.layer), positions.index(cell.place)] = cell.value
    return grid


def _draw(axes: Any, grid: np.ndarray, highest: float) -> Any:
    axes.set_facecolor("0.85")
    image = axes.imshow(grid, vmin=0.0, vmax=highest, cmap="viridis", aspect="auto", origin="lower")
    if len(grid) <= _MOST_TOLD:
        for (row, column), value in np.ndenumerate(grid):
            told = "-" if np.isnan(value) else f"{value:.2f}"
            ink = "black" if np.isnan(value) or value > 0.6 * highest else "white"
            axes.text(column, row, told, ha="center", va="center", color=ink, fontsize="small")
    return image


def _label(report: VariableReport) -> str:
    if report.settings.metric == "iia":
        return "interchange intervention accuracy"
    return "squared error of the logit difference (lower is better)"


def _nothing(report: VariableReport) -> str:
    if not report.no_op:
        return f"{len(report.dropped)} dropped"
    mean = float(np.mean(list(report.no_op.values())))
    return f"{len(report.dropped)} dropped; doing nothing scores {mean:.2f}"
