"""Gates as a picture: IIA beside its controls, effect and off-target KL, with intervals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.gates import FeatureGate, GateReport, Measured

_COLOURS = {"pass": "tab:green", "fail": "tab:red", "inconclusive": "tab:gray"}
_MOST = 40
"""Gates that one picture has room for; the first ones are drawn."""


def plot(report: GateReport, file: Path) -> None:
    """Write the bars as PNG, one group for each gate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    gates = report.gates[:_MOST]
    figure = Figure(figsize=(4.5 + 0.7 * len(gates), 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    top, middle, below = figure.subplots(3, 1, sharex=True)
    places = np.arange(len(gates))
    colours = [_COLOURS[gate.verdict] for gate in gates]
    _bars(top, places - 0.2, [gate.iia for gate in gates], colours)
    _bars(top, places + 0.2, [g.iia_random_matched for g in gates], ["0.8"] * len(gates))
    for place, gate in zip(places, gates, strict=True):
        top.hlines(gate.bar, place - 0.4, place + 0.4, colors="black", linewidth=1)
    top.axhline(report.iia_full_vector.value, color="tab:blue", linestyle=":", linewidth=1)
    top.set(ylabel="IIA", ylim=(0, 1.02))
    top.set_title(
        "bars: feature, matched random; line: what is needed; dots: the whole unit",
        fontsize="small",
    )
    _bars(middle, places, [gate.effect_on_metric for gate in gates], colours)
    middle.set_ylabel("steering's effect")
    _bars(below, places, [gate.off_target_kl for gate in gates], colours)
    below.axhline(report.settings.kappa, color="black", linewidth=1)
    below.set_ylabel("off-target KL")
    below.set_xticks(places, [_name(gate) for gate in gates], rotation=30, ha="right")
    figure.suptitle(f"{report.settings.variable} in {report.sae}: {report.kept} rows")
    figure.savefig(file, dpi=110)


def _bars(
    axes: Any, places: np.ndarray, values: Sequence[Measured | None], colours: Sequence[str]
) -> None:
    for place, value, colour in zip(places, values, colours, strict=True):
        if value is None:
            continue
        ends = [[max(0.0, value.value - value.low)], [max(0.0, value.high - value.value)]]
        axes.bar(place, value.value, width=0.36, color=colour, yerr=ends, capsize=2)


def _name(gate: FeatureGate) -> str:
    features = gate.features
    return str(features[0]) if len(features) == 1 else f"{len(features)} features"
