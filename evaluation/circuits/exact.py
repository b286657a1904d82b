"""Exact activation patching: the loss without one edge, minus the loss of the model.

Nothing in front of an edge's destination changes, so the forward begins at the destination's layer.
Edges of one layer share forwards: a row is a prompt with one edge carrying the corrupted output.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.circuits.anatomy import Anatomy
from evaluation.circuits.attribution import Scores
from evaluation.circuits.batches import Batch
from evaluation.circuits.passes import ungrouped
from evaluation.circuits.points import Cost
from evaluation.circuits.replacements import PATCHING, Replacement
from evaluation.circuits.running import Known, margins
from evaluation.circuits.selection import Subgraph
from evaluation.circuits.written import run, spread
from models.progress import Progress

TOKENS = 4096
"""Of all rows of a forward together."""


@torch.no_grad()
def patch_exactly(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    replacement: Replacement = PATCHING,
    cost: Cost | None = None,
) -> Generator[Progress, None, Scores]:
    """The effect of every edge by itself.

    Args:
        anatomy: Of the model.
        batches: The pairs; their weights make the mean.
        replacement: What an edge carries instead.
        cost: Counts the runs.
    """
    graph, cost = anatomy.graph, cost or Cost()
    edges = torch.zeros(graph.sources, graph.destinations, dtype=torch.float64)
    done, total = 0, graph.edges * sum(len(batch.rows) for batch in batches)
    for batch in batches:
        some = _Patching(anatomy, batch, replacement, cost)
        for layer in range(graph.layers + 1):
            for part, effects in some.layer(layer):
                edges[part.sources, part.destinations] += effects.cpu().double()
                done += len(part.sources) * len(batch.rows)
                yield Progress(stage="exact patching", done=done, total=total)
    return Scores(edges=edges)


def patch_nodes_exactly(
    anatomy: Anatomy, known: Iterable[Known], cost: Cost | None = None
) -> Generator[Progress, None, Scores]:
    """The effect of every source's corrupted output wherever it goes, one source at a time."""
    graph, cost = anatomy.graph, cost or Cost()
    nodes, done = torch.zeros(graph.sources, dtype=torch.float64), 0
    without = [
        Subgraph(graph.real & (torch.arange(graph.sources) != source)[:, None])
        for source in range(graph.sources)
    ]
    for some in known:
        base, weights = some.full.cpu().double(), some.batch.weights.cpu()
        for source, circuit in enumerate(without):
            nodes[source] += weights @ (base - margins(anatomy, some, circuit, cost))
        done += len(some.batch.rows)
        yield Progress(stage="exact patching", done=done, total=done)
    return Scores(edges=torch.zeros(graph.real.shape, dtype=torch.float64), nodes=nodes)


@dataclass(frozen=True, eq=False)
class _Part:
    """Some edges into one layer: of its heads, of its MLP, or of the logits."""

    sources: list[int]
    destinations: list[int]
    kind: str


class _Patching:
    """One batch."""

    def __init__(
        self, anatomy: Anatomy, batch: Batch, replacement: Replacement, cost: Cost
    ) -> None:
        self.anatomy, self.graph, self.batch, self.cost = anatomy, anatomy.graph, batch, cost
        _, corrupted = run(anatomy, batch.corrupted)
        self.seen, clean = run(anatomy, batch.clean)
        cost.forwards += 2 * len(batch.rows)
        flat = replacement.differences(clean, corrupted).flat()
        self.changes = self._at_stream(spread(anatomy, flat, slice(None)))
        self.base = self._loss(self.seen.last[:, -1], 1)[0]

    def layer(self, layer: int) -> Iterator[tuple[_Part, Tensor]]:
        """The edges into a layer, part by part, with their effects; behind the last, the logits."""
        graph = self.graph
        if layer == graph.layers:
            kinds = [("logits", [graph.logits])]
        else:
            into = graph.into_heads(layer)
            kinds = [("heads", [*range(into.start, into.stop)]), ("mlp", [graph.into_mlp(layer)])]
        most = max(1, TOKENS // self.batch.clean.numel())
        for kind, destinations in kinds:
            pairs = [(u, v) for v in destinations for u in range(int(graph.limits[v]))]
            for start in range(0, len(pairs), most):
                sources, into = (list(t) for t in zip(*pairs[start : start + most], strict=True))
                part = _Part(sources, into, kind)
                yield part, self._losses(layer, part) - self.base

    def _at_stream(self, changes: Tensor) -> Float[Tensor, "sources rows tokens d"]:
        """What each edge's change adds to the stream; Gemma 2's heads pass a norm together."""
        found = changes.unflatten(1, self.batch.clean.shape).to(self.anatomy.hosted.dtype)
        for layer, parts in enumerate(self.anatomy.layers):
            if parts.after is not None:
                heads = slice(self.graph.before(layer), self.graph.mlp(layer))
                base = self.seen.sums[layer]
                found[heads] = parts.after(base + found[heads]) - parts.after(base)
        return found

    def _losses(self, layer: int, part: _Part) -> Float[Tensor, " edges"]:
        changes, count = self.changes[part.sources], len(part.sources)
        if part.kind == "logits":
            return self._loss((self.seen.last + changes)[:, :, -1].flatten(0, 1), count)
        hooks = self._into_heads if part.kind == "heads" else self._into_mlp
        with ExitStack() as undo:
            undo.enter_context(ungrouped(self.anatomy, self.anatomy.layers[layer]))
            for remove in hooks(layer, part, changes):
                undo.callback(remove)
            entering = self.seen.attention_in[layer].repeat(count, 1, 1)
            stream = self.anatomy.family.run_layers(self.anatomy.hosted, entering, layer)
        self.cost.forwards += len(entering)
        return self._loss(stream[:, -1], count)

    def _into_heads(self, layer: int, part: _Part, changes: Tensor) -> Iterator[Callable[[], None]]:
        """Hooks that give each edge's head its own queries, keys or values."""
        parts, graph = self.anatomy.layers[layer], self.graph
        inside = torch.tensor(part.destinations) - graph.into_heads(layer).start
        letters, heads = inside // graph.heads, inside % graph.heads
        normed = parts.attention_norm(self.seen.attention_in[layer] + changes)
        weight, bias = self.anatomy.reading(layer), self.anatomy.biases(layer)
        made = torch.einsum("ertd,ewd->ertw", normed, weight[letters, heads])
        if bias is not None:
            made = made + bias[letters, heads][:, None, None]
        each = 3 if parts.fused else 1
        for i, linear in enumerate(parts.into):
            mine = torch.arange(len(inside)) if parts.fused else (letters == i).nonzero().flatten()
            places = (mine, letters[mine] if parts.fused else torch.zeros_like(mine), heads[mine])

            def put(
                _module: Any, _args: Any, output: Tensor, places: Any = places, mine: Any = mine
            ) -> Tensor:
                found = output.clone()
                apart = found.unflatten(0, (len(inside), -1)).unflatten(-1, (each, graph.heads, -1))
                edge, letter, head = places
                apart[edge, :, :, letter, head] = made[mine]
                return found

            yield linear.register_forward_hook(put).remove

    def _into_mlp(self, layer: int, _part: _Part, changes: Tensor) -> Iterator[Callable[[], None]]:
        """A hook on the norm alone: what goes past the MLP stays as it is."""

        def put(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            return (args[0] + changes.flatten(0, 1),)

        yield self.anatomy.layers[layer].mlp_norm.register_forward_pre_hook(put).remove

    def _loss(self, final: Tensor, count: int) -> Float[Tensor, " count"]:
        logits = self.anatomy.final_logits(final).unflatten(0, (count, -1))
        return torch.stack([-(self.batch.weights * self.batch.margins(x)).sum() for x in logits])
