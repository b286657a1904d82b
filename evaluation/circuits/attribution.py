"""Scores of edges, nodes and neurons from gradients: EAP and its integrals.

S_uv = mean over examples of <alt_u - cur_u, dL/dx_v>, L = -(logit(correct) - logit(incorrect)) at
the last token. A positive score: corrupting the edge raises the loss, so the edge supports the
behaviour. EAP takes the gradient at the clean run; `clean-corrupted` averages both runs;
EAP-IG-inputs and EAP-IG-activations average along ways between them (Hanna et al. 2024; Mueller et
al. 2025). A node's score is the sum of its edges' scores, a neuron's the same before the sum over
the stream's width.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.circuits.anatomy import Anatomy
from evaluation.circuits.batches import Batch
from evaluation.circuits.contraction import Folded, Gradients, Totals, contract
from evaluation.circuits.parity import Quirk
from evaluation.circuits.points import Cost, Ends, Slope, activation_points, input_points
from evaluation.circuits.replacements import PATCHING, Replacement
from evaluation.circuits.written import run
from evaluation.circuits.written import written as written_by
from models.progress import Progress

Gradual = Literal["eap", "clean-corrupted", "eap-ig-inputs", "eap-ig-activations"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores:
    """Float64, on the CPU; NaN in nodes and neurons says "not scored, always kept".

    Attributes:
        edges: (sources, destinations); 0 where there is no edge.
    """

    edges: Float[Tensor, "sources destinations"]
    nodes: Float[Tensor, " sources"] | None = None
    neurons: Float[Tensor, "sources d"] | None = None


@dataclass(frozen=True, kw_only=True)
class Gradually:
    """How gradients are taken.

    Attributes:
        method: Which points.
        steps: Of an integral.
        neurons: Whether neurons are scored too.
        exact_postnorm: Gemma 2: carry a head's difference through the norm behind the heads, as
            its Jacobian at the clean run does; the reference leaves that out.
        parity: The reference's own ways, by name (`evaluation.circuits.parity`).
    """

    method: Gradual = "eap-ig-inputs"
    steps: int = 5
    neurons: bool = False
    exact_postnorm: bool = False
    parity: frozenset[Quirk] = frozenset()

    @property
    def nodes_apart(self) -> bool:
        """Whether nodes and neurons are integrated over points of their own."""
        return self.method == "eap-ig-inputs" and "node-integrals" in self.parity


def attribute(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    how: Gradually,
    replacement: Replacement = PATCHING,
    cost: Cost | None = None,
) -> Generator[Progress, None, Scores]:
    """Score all edges and nodes.

    Args:
        anatomy: Of the model.
        batches: The pairs; their weights make the mean.
        how: The method.
        replacement: What `alt` is.
        cost: Counts the runs.
    """
    cost = cost or Cost()
    totals = Totals.of(anatomy.graph, neurons=how.neurons)
    nodes = Totals.of(anatomy.graph, neurons=how.neurons)
    done, total = 0, sum(len(batch.rows) for batch in batches)
    for batch in batches:
        _add(anatomy, batch, how, replacement, cost, (totals, nodes))
        done += len(batch.rows)
        yield Progress(stage="attribution", done=done, total=total)
    by_node = nodes if how.nodes_apart else totals
    found, neurons = by_node.edges.sum(1), by_node.neurons
    if "mlp-nodes" in how.parity:
        mlps = [anatomy.graph.mlp(layer) for layer in range(anatomy.graph.layers)]
        found[mlps] = by_node.own[mlps].sum(1)
        if neurons is not None:
            neurons[mlps] = by_node.own[mlps]
    return Scores(edges=totals.edges, nodes=found, neurons=neurons)


def _add(
    anatomy: Anatomy,
    batch: Batch,
    how: Gradually,
    replacement: Replacement,
    cost: Cost,
    totals: tuple[Totals, Totals],
) -> None:
    slope = Slope(anatomy, batch, cost)
    corrupted = run(anatomy, batch.corrupted)[1]
    cost.forwards += len(batch.rows)
    entering = anatomy.entering(batch.clean), anatomy.entering(batch.corrupted)
    if how.method in ("eap", "clean-corrupted"):
        seen, at_clean = slope.seen_at(entering[0])
        clean = written_by(anatomy, batch.clean, seen)
        found = (at_clean,) if how.method == "eap" else (at_clean, slope.at(entering[1]))
        groups, count = iter([iter(found)]), len(found)
    else:
        seen, clean = run(anatomy, batch.clean)
        cost.forwards += len(batch.rows)
        groups, count = _integral(slope, Ends(batch, entering, (clean, corrupted)), how)
    sums = tuple(t.detach() for t in seen.sums) if how.exact_postnorm else None
    del seen
    centred = "folded-weights" in how.parity and anatomy.centred
    differences = replace(replacement.differences(clean, corrupted), sums=sums, centred=centred)
    for points in groups:
        contract(anatomy, differences, _folded(anatomy, points), totals[0], 1 / count)
    if how.nodes_apart:
        # Nodes and neurons by the right sum: without the corrupted end, with the clean one.
        ends = Ends(batch, entering, (clean, corrupted))
        right = input_points(slope, ends, count, range(1, count + 1))
        contract(anatomy, differences, _folded(anatomy, right), totals[1], 1 / count)


def _folded(anatomy: Anatomy, points: Iterable[Gradients]) -> Folded:
    found = Folded(anatomy)
    for point in points:
        found.add(point)
    return found


def _integral(
    slope: Slope, ends: Ends, how: Gradually
) -> tuple[Iterator[Iterator[Gradients]], int]:
    """The points in groups that are contracted together, and how many there are in all."""
    if how.method == "eap-ig-inputs":
        return iter([input_points(slope, ends, how.steps, range(how.steps))]), how.steps
    detached = "held-embedding" in how.parity
    groups = activation_points(slope, ends, how.steps, detached=detached)
    return groups, how.steps * (2 * slope.anatomy.graph.layers + 1)


@torch.no_grad()
def random_scores(anatomy: Anatomy, seed: int) -> Scores:
    """Uniform between 0 and 1, at every level: the floor."""
    graph, generator = anatomy.graph, torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    return Scores(
        edges=draw(graph.sources, graph.destinations) * graph.real,
        nodes=draw(graph.sources),
        neurons=draw(graph.sources, graph.width),
    )
