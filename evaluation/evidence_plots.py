"""Pictures of what was found of layers and edits, as PNG."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from evaluation.advice import Advice
from evaluation.audit import AuditReport


def advice_png(found: Advice) -> bytes:
    """What each layer restores, with intervals; the recommended range is shaded."""
    figure, axes = _figure(6.4, 4.0)
    layers = [one.layer for one in found.layers]
    for name in found.layers[0].effects:
        each = [one.effects[name] for one in found.layers]
        axes.plot(layers, [e.value for e in each], marker="o", label=name.replace("_", ", "))
        axes.fill_between(layers, [e.low for e in each], [e.high for e in each], alpha=0.15)
    if found.recommended is not None:
        first, last = found.recommended
        axes.axvspan(first - 0.4, last + 0.4, color="0.9", zorder=0, label="recommended")
    axes.set(xlabel="layer", ylabel="share restored", title=f"{found.model}: {found.by}")
    if found.inconclusive is None:
        axes.legend(fontsize=8)
    else:
        axes.text(0.5, 0.5, "inconclusive", ha="center", transform=axes.transAxes)
    return _png(figure)


def audit_png(found: AuditReport) -> bytes:
    """The metric of each suite before and after, and f of the old circuit at 5, 10 and 20 %."""
    told = [suite for suite in found.suites if suite.m_before == suite.m_before]
    names = [suite.name for suite in told]
    figure, (left, right) = _figure(9.6, 4.0, columns=2)
    _bars(
        left,
        names,
        {
            "before": [suite.m_before for suite in told],
            "after": [suite.m_after for suite in told],
        },
    )
    left.set(ylabel="mean metric", title="probe sets")
    left.legend(fontsize=8)
    for suite in told:
        if suite.circuit is None or suite.circuit.inconclusive:
            continue
        sizes = [100 * float(k) for k in suite.circuit.f_before]
        (line,) = right.plot(sizes, _known(suite.circuit.f_before), marker="o", label=suite.name)
        after = _known(suite.circuit.f_after)
        right.plot(sizes, after, marker="x", linestyle="--", color=line.get_color())
    right.set(xlabel="% of the edges", ylabel="f", title="the old circuit: before -, after --")
    if right.lines:
        right.legend(fontsize=8)
    return _png(figure)


def _known(shares: Mapping[str, float | None]) -> list[float]:
    return [float("nan") if f is None else f for f in shares.values()]


def _bars(axes: Any, names: Sequence[str], groups: Mapping[str, Sequence[float]]) -> None:
    wide = 0.8 / len(groups)
    for number, (label, values) in enumerate(groups.items()):
        places = [i - 0.4 + wide * (number + 0.5) for i in range(len(names))]
        axes.bar(places, values, wide, label=label)
    axes.set_xticks(range(len(names)), names)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def _png(figure: Any) -> bytes:
    held = BytesIO()
    figure.savefig(held, format="png", dpi=110, metadata={"Software": None})
    return held.getvalue()
