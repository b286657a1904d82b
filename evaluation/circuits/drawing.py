"""A circuit and its curve as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from evaluation.circuits.attribution import Scores
from evaluation.circuits.faithfulness import Faithfulness
from evaluation.circuits.graph import Graph
from evaluation.circuits.selection import Subgraph

_FOR, _AGAINST = "#2a6f97", "#b5482a"
_MOST_EDGES = 400


def draw_circuit(
    graph: Graph, scores: Scores, circuit: Subgraph, file: Path, title: str = ""
) -> int:
    """Nodes from the input below to the logits above, a layer per storey.

    Blue edges support the behaviour, red ones work against it; width goes with the score's size.
    Edges into q, k and v of a head are one line. Returns how many lines were drawn: the strongest
    ones, if there are too many to see.
    """
    places = _places(graph, circuit)
    lines = _lines(graph, scores, circuit)[:_MOST_EDGES]
    figure, axes = _figure(max(5.0, 0.7 * graph.heads + 2), 1.2 + 0.75 * (graph.layers + 1))
    most = max((abs(score) for _, _, score in lines), default=1.0) or 1.0
    for source, destination, score in reversed(lines):
        (x, y), (far, high) = places[source], places[destination]
        axes.plot(
            [x, far],
            [y, high],
            color=_FOR if score >= 0 else _AGAINST,
            linewidth=0.3 + 3 * abs(score) / most,
            alpha=0.25 + 0.6 * abs(score) / most,
            zorder=1,
        )
    for name, (x, y) in places.items():
        axes.text(
            x,
            y,
            name,
            ha="center",
            va="center",
            fontsize=7,
            zorder=2,
            bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "#555555"},
        )
    axes.set_axis_off()
    axes.margins(0.08)
    axes.set_title(title or f"{int(circuit.edges.sum())} edges", fontsize=9)
    figure.savefig(file, dpi=130)
    return len(lines)


def draw_curve(found: Faithfulness, file: Path, title: str = "") -> None:
    """Faithfulness over the logarithm of the size, by signed and by absolute score."""
    figure, axes = _figure(6.4, 4.0)
    sizes = [100 * p.k for p in found.curve]
    for name, key, colour in (
        ("by signed score (CPR)", "signed", _AGAINST),
        ("by absolute score (CMD)", "absolute", _FOR),
    ):
        shares = [getattr(p, f"f_{key}") for p in found.curve]
        if None not in shares:
            axes.plot(sizes, shares, marker="o", markersize=3.5, label=name, color=colour)
    for level, what in ((1.0, "the model"), (0.0, "corrupted prompts")):
        axes.axhline(level, color="#999999", linewidth=0.8, linestyle="--")
        axes.annotate(what, (sizes[0], level), fontsize=7, color="#777777", va="bottom")
    axes.set(xscale="log", xlabel="size of the circuit, % of its items", ylabel="faithfulness f")
    axes.set_title(title or found.inconclusive or _areas(found), fontsize=9)
    axes.grid(visible=True, alpha=0.25)
    if found.inconclusive is None:
        axes.legend(fontsize="small", frameon=False)
    figure.savefig(file, dpi=110)


def _areas(found: Faithfulness) -> str:
    return f"CMD {found.cmd:.3f} (0 is best), CPR {found.cpr:.3f}"


def _places(graph: Graph, circuit: Subgraph) -> dict[str, tuple[float, float]]:
    middle, kept = graph.heads / 2, circuit.sources.tolist()
    found = {"logits": (middle, 2.0 * graph.layers + 1)}
    if kept[0]:
        found["input"] = (middle, -1.0)
    for layer in range(graph.layers):
        for head in range(graph.heads):
            if kept[graph.head(layer, head)]:
                found[f"a{layer}.h{head}"] = (float(head), 2.0 * layer)
        if kept[graph.mlp(layer)]:
            found[f"m{layer}"] = (float(graph.heads), 2.0 * layer + 1)
    return found


def _lines(graph: Graph, scores: Scores, circuit: Subgraph) -> list[tuple[str, str, float]]:
    """(from, to, score), strongest first; reads of one head are added up."""
    size = torch.zeros(graph.sources, graph.sources + 1, dtype=torch.float64)
    masked = scores.edges.nan_to_num() * circuit.edges
    size.index_add_(1, graph.owners, masked)
    there = torch.zeros(graph.sources, graph.sources + 1, dtype=torch.float64)
    there.index_add_(1, graph.owners, circuit.edges.double())
    names = (*graph.source_names, "logits")
    found = [(names[u], names[v], float(size[u, v])) for u, v in there.nonzero().tolist()]
    return sorted(found, key=lambda line: -abs(line[2]))


def top_nodes(graph: Graph, scores: Scores, count: int = 20) -> Sequence[tuple[str, float, float]]:
    """(name, score, share of the sum of sizes) of the nodes with the largest scores."""
    if scores.nodes is None:
        return ()
    nodes = scores.nodes.nan_to_num()
    total = float(nodes.abs().sum()) or 1.0
    order = torch.sort(nodes.abs(), descending=True, stable=True).indices[:count].tolist()
    return [(graph.source_names[u], float(nodes[u]), float(nodes[u].abs()) / total) for u in order]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()
