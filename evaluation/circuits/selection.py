"""From scores to circuits: the best edges, greedily or at once, the best nodes, the best neurons.

Scores are float64, sorting is stable and ties go by index: the same scores give the same circuit in
every process. `absolute` is what CMD asks for, signed scores are what CPR asks for: two selections,
never one curve read twice. The reference prunes and counts otherwise; `parity` has both by name.
"""

import heapq
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from evaluation.circuits.attribution import Scores
from evaluation.circuits.errors import BadCircuit
from evaluation.circuits.graph import Graph
from evaluation.circuits.parity import Quirk

Level = Literal["edge", "node", "neuron"]
Way = Literal["top", "greedy"]


@dataclass(frozen=True, eq=False)
class Subgraph:
    """A circuit: the edges that are kept, and, at neuron level, what is kept of each source.

    Attributes:
        edges: Pruned; only real edges.
        neurons: Where given, the output dimensions that are kept.
        counted: What `size` is, where edges are counted as the reference counts them.
    """

    edges: Bool[Tensor, "sources destinations"]
    neurons: Bool[Tensor, "sources d"] | None = None
    counted: float | None = None

    @property
    def sources(self) -> Bool[Tensor, " sources"]:
        """Which sources are in it."""
        return self.edges.any(1)

    def size(self, graph: Graph) -> float:
        """The weighted count: every real edge by the share of its source that is kept."""
        if self.counted is not None:
            return self.counted
        each = self.edges.sum(1).double()
        if self.neurons is not None:
            each = each * self.neurons.sum(1) / graph.width
        return float(each.sum())


def full(graph: Graph) -> Subgraph:
    """Every edge."""
    return Subgraph(graph.real.clone())


def items(graph: Graph, scores: Scores, level: Level) -> int:
    """What a share of the circuit's size is a share of."""
    if level == "edge":
        return graph.edges
    return int((~_scored(scores, level).isnan()).sum())


def select(  # noqa: PLR0913 - what a selection depends on
    graph: Graph,
    scores: Scores,
    count: int,
    *,
    level: Level,
    absolute: bool,
    way: Way = "top",
    parity: Collection[Quirk] = (),
) -> Subgraph:
    """The circuit of so many items.

    Args:
        graph: Of the model.
        scores: Of the level.
        count: Edges, nodes or neurons that are taken, before pruning.
        level: Which of them.
        absolute: By the score's size instead of the score.
        way: `greedy` grows edges from the logits; edges only.
        parity: The reference's ways that count: `prune` and `edge-counts`.
    """
    if level == "edge":
        ranked = scores.edges.abs() if absolute else scores.edges
        taken = (_greedy if way == "greedy" else _top)(graph, ranked, count)
        if "prune" in parity:
            return Subgraph(prune_early(graph, taken, grown=way == "greedy"))
        return Subgraph(prune(graph, taken))
    best = _best(_scored(scores, level), count, absolute=absolute)
    nodes = best if level == "node" else best.any(1)
    edges = prune(graph, graph.real & nodes[:, None])
    counted = _counted(graph, best) if "edge-counts" in parity else None
    if level == "node":
        return Subgraph(edges, counted=counted)
    return Subgraph(edges, best & edges.any(1)[:, None], counted)


def _counted(graph: Graph, best: Bool[Tensor, "*shape"]) -> float:
    """The reference's count: every kept source, by its share, to every kept destination.

    Of all sources that is sources x destinations, though fewer than half of these are edges.
    """
    nodes = best if best.ndim == 1 else best.any(1)
    shares = best.double() if best.ndim == 1 else best.double().mean(1)
    behind = torch.cat([nodes, torch.ones(1, dtype=torch.bool)])[graph.owners]
    return float(shares.sum() * behind.sum())


def _scored(scores: Scores, level: Level) -> Tensor:
    found = scores.nodes if level == "node" else scores.neurons
    if found is None:
        raise BadCircuit(
            f"There are no scores of {level}s.",
            "Choose a method and a level that go together.",
            "level",
        )
    return found


def _best(scores: Float[Tensor, "*shape"], count: int, *, absolute: bool) -> Bool[Tensor, "*shape"]:
    flat = scores.flatten()
    unscored = flat.isnan()
    ranked = (flat.abs() if absolute else flat).masked_fill(unscored, -torch.inf)
    kept = unscored.clone()
    kept[torch.sort(ranked, descending=True, stable=True).indices[:count]] = True
    return kept.view(scores.shape)


def _top(graph: Graph, ranked: Tensor, count: int) -> Tensor:
    places = graph.real.flatten().nonzero().flatten()
    order = torch.sort(ranked.flatten()[places].double(), descending=True, stable=True).indices
    kept = torch.zeros(graph.real.numel(), dtype=torch.bool)
    kept[places[order[:count]]] = True
    return kept.view(graph.real.shape)


def _greedy(graph: Graph, ranked: Tensor, count: int) -> Tensor:
    """Take the best edge into what is reached, so many times; a new source opens its own edges."""
    kept = torch.zeros_like(graph.real)
    into: list[list[int]] = [[] for _ in range(graph.sources)]
    for destination, owner in enumerate(graph.owners[:-1].tolist()):
        into[owner].append(destination)
    values, limits = ranked.double().tolist(), graph.limits.tolist()
    waiting: list[tuple[float, int, int]] = []
    reached: set[int] = set()

    def open_to(destination: int) -> None:
        for u in range(limits[destination]):
            heapq.heappush(waiting, (-values[u][destination], u, destination))

    open_to(graph.logits)
    for _ in range(count):
        if not waiting:
            break
        _, source, destination = heapq.heappop(waiting)
        kept[source, destination] = True
        if source not in reached:
            reached.add(source)
            for further in into[source]:
                open_to(further)
    return kept


def prune(graph: Graph, edges: Bool[Tensor, "sources destinations"]) -> Tensor:
    """Drop what cannot matter, until nothing changes.

    A source goes without an outgoing or an incoming edge (one of q, k, v is enough; the input is
    always fed), and every edge of it goes too. The logits always stay.
    """
    kept = edges & graph.real
    while True:
        pruned = _among(graph, kept, _alive(graph, kept))
        if torch.equal(pruned, kept):
            return kept
        kept = pruned


def prune_early(
    graph: Graph, edges: Bool[Tensor, "sources destinations"], *, grown: bool
) -> Tensor:
    """Drop what cannot matter as the reference does: until a round drops no source.

    The edges that the last round drops may leave others dangling; faithfulness is the same.

    Args:
        graph: Of the model.
        edges: That were taken.
        grown: Whether greedily: then every source of an edge counts as inside at first, else those
            alone that are fed too, and one round is all there is.
    """
    kept = edges & graph.real
    inside = kept.any(1) if grown else _alive(graph, kept)[:-1]
    while True:
        alive = _alive(graph, kept)
        kept = _among(graph, kept, alive)
        if torch.equal(alive[:-1], inside):
            return kept
        inside = alive[:-1]


def _alive(graph: Graph, kept: Tensor) -> Bool[Tensor, " nodes"]:
    """Sources with an outgoing and an incoming edge; behind them the logits, which always are."""
    fed = torch.zeros(graph.sources + 1, dtype=torch.bool)
    fed.index_put_((graph.owners,), kept.any(0), accumulate=True)
    fed[0] = fed[-1] = True
    return torch.cat([kept.any(1), torch.ones(1, dtype=torch.bool)]) & fed


def _among(graph: Graph, kept: Tensor, alive: Tensor) -> Tensor:
    """Edges between what is alive."""
    return kept & alive[:-1, None] & alive[graph.owners][None, :]
