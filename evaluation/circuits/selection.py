"""From scores to circuits: the best edges, greedily or at once, the best nodes, the best neurons.

Scores are float64, sorting is stable and ties go by index: the same scores give the same circuit in
every process. `absolute` is what CMD asks for, signed scores are what CPR asks for: two selections,
never one curve read twice.
"""

import heapq
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from evaluation.circuits.attribution import Scores
from evaluation.circuits.errors import BadCircuit
from evaluation.circuits.graph import Graph

Level = Literal["edge", "node", "neuron"]
Way = Literal["top", "greedy"]


@dataclass(frozen=True, eq=False)
class Subgraph:
    """A circuit: the edges that are kept, and, at neuron level, what is kept of each source.

    Attributes:
        edges: Pruned; only real edges.
        neurons: Where given, the output dimensions that are kept.
    """

    edges: Bool[Tensor, "sources destinations"]
    neurons: Bool[Tensor, "sources d"] | None = None

    @property
    def sources(self) -> Bool[Tensor, " sources"]:
        """Which sources are in it."""
        return self.edges.any(1)

    def size(self, graph: Graph) -> float:
        """The weighted count: every real edge by the share of its source that is kept."""
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


def select(
    graph: Graph, scores: Scores, count: int, *, level: Level, absolute: bool, way: Way = "top"
) -> Subgraph:
    """The circuit of so many items.

    Args:
        graph: Of the model.
        scores: Of the level.
        count: Edges, nodes or neurons that are taken, before pruning.
        level: Which of them.
        absolute: By the score's size instead of the score.
        way: `greedy` grows edges from the logits; edges only.
    """
    if level == "edge":
        ranked = scores.edges.abs() if absolute else scores.edges
        taken = (_greedy if way == "greedy" else _top)(graph, ranked, count)
        return Subgraph(prune(graph, taken))
    if level == "node":
        nodes = _best(_scored(scores, level), count, absolute=absolute)
        return Subgraph(prune(graph, graph.real & nodes[:, None]))
    neurons = _best(_scored(scores, level), count, absolute=absolute)
    edges = prune(graph, graph.real & neurons.any(1)[:, None])
    return Subgraph(edges, neurons & edges.any(1)[:, None])


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
    owners = graph.owners
    while True:
        fed = torch.zeros(graph.sources + 1, dtype=torch.bool)
        fed.index_put_((owners,), kept.any(0), accumulate=True)
        fed[0] = fed[-1] = True
        alive = torch.cat([kept.any(1), torch.ones(1, dtype=torch.bool)]) & fed
        pruned = kept & alive[:-1, None] & alive[owners][None, :]
        if torch.equal(pruned, kept):
            return kept
        kept = pruned
