"""Runs of a circuit: what is outside of it does what it does in the corrupted run.

Every destination reads x_v = (the corrupted stream) + sum over kept sources of (current - corrupted
output). The corrupted run is cached once per batch and serves all circuits. Only what is in the
circuit is computed: destinations with one and the same kept column share a copy of the stream. At
node and neuron level all destinations of a layer read the same sum, so a circuit is one forward of
the library's layers with replaced outputs.

Gemma 2: with R the heads' sum and b_O, a destination reads N(R_corrupted + changes of kept heads)
instead of N(R_corrupted), layer by layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.circuits.anatomy import Anatomy
from evaluation.circuits.batches import Batch
from evaluation.circuits.passes import Geometry, Seen, attend, geometry, run_mlp
from evaluation.circuits.points import Cost
from evaluation.circuits.selection import Subgraph
from evaluation.circuits.written import Written, run

ROOM_BYTES = 96 * 2**20
"""Of the changes that a circuit's sources make, at a time."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Known:
    """What is run once for all circuits of a batch.

    Attributes:
        seen, outputs: Of the corrupted run.
        clean: The clean embeddings.
        full, empty: The margins of the clean and of the corrupted run, on the clean answers.
    """

    batch: Batch
    seen: Seen
    outputs: Written
    clean: Float[Tensor, "rows tokens d"]
    full: Float[Tensor, " rows"]
    empty: Float[Tensor, " rows"]


@torch.no_grad()
def know(anatomy: Anatomy, batch: Batch, cost: Cost) -> Known:
    """Run both prompts of each pair."""
    seen, outputs = run(anatomy, batch.corrupted)
    clean, _ = run(anatomy, batch.clean)
    cost.forwards += 2 * len(batch.rows)
    seen.mlp_normed.clear()  # what no circuit reads is not kept
    if anatomy.after_norms[0] is None:
        seen.sums.clear()
    return Known(
        batch=batch,
        seen=seen,
        outputs=outputs,
        clean=anatomy.embedded(batch.clean),
        full=batch.margins(anatomy.final_logits(clean.last[:, -1])),
        empty=batch.margins(anatomy.final_logits(seen.last[:, -1])),
    )


def margins(
    anatomy: Anatomy, known: Known, circuit: Subgraph, cost: Cost
) -> Float[Tensor, " rows"]:
    """The metric of a batch's pairs under a circuit, float64; its ends cost nothing."""
    kept = int(circuit.sources.sum())
    if not kept:
        return known.empty.cpu().double()
    if circuit.neurons is None and torch.equal(circuit.edges, anatomy.graph.real):
        return known.full.cpu().double()
    cost.forwards += len(known.batch.rows)
    return _margins(anatomy, known, circuit, kept).cpu().double()


@torch.no_grad()
def _margins(anatomy: Anatomy, known: Known, circuit: Subgraph, kept: int) -> Tensor:
    rows, tokens = known.batch.clean.shape
    size = torch.empty((), dtype=anatomy.hosted.dtype).element_size()
    copies = kept + 3 * anatomy.graph.heads
    most = max(1, ROOM_BYTES // (copies * tokens * anatomy.graph.width * size))
    found = [
        _Run(anatomy, known, circuit, slice(start, min(start + most, rows))).logits()
        for start in range(0, rows, most)
    ]
    return known.batch.margins(torch.cat(found))


class _Run:
    """Some rows of a batch under one circuit, layer by layer."""

    def __init__(self, anatomy: Anatomy, known: Known, circuit: Subgraph, rows: slice) -> None:
        self.anatomy, self.known, self.rows = anatomy, known, rows
        self.graph, self.device = anatomy.graph, anatomy.device
        self.edges = circuit.edges
        self.neurons = circuit.neurons
        self.kept = circuit.sources.nonzero().flatten().tolist()
        self.place: dict[int, int] = {}
        clean = known.clean[rows]
        self.changes = clean.new_zeros(len(self.kept), *clean.shape)
        self.shape: Geometry = geometry(anatomy, *clean.shape[:2])
        if self.kept[0] == 0:
            self._put(0, clean - known.outputs.embedding[rows])

    def logits(self) -> Float[Tensor, "rows vocab"]:
        """Of the last token."""
        for layer in range(self.graph.layers):
            self._heads(layer)
            self._mlp(layer)
        column = self.edges[:, -1:]
        stream = self._read(self.known.seen.last[self.rows, -1:], column, last=True)
        return self.anatomy.final_logits(stream[0, :, 0])

    def _put(self, source: int, change: Tensor) -> None:
        if self.neurons is not None:
            change = change * self.neurons[source].to(self.device)
        self.changes[len(self.place)] = change
        self.place[source] = len(self.place)

    def _read(
        self, stream: Tensor, columns: Tensor, *, last: bool = False
    ) -> Float[Tensor, "columns rows tokens d"]:
        """What destinations read: the corrupted stream and the changes of their kept sources."""
        changes = (
            self.changes[: len(self.place), :, -1:] if last else self.changes[: len(self.place)]
        )
        if not self.place:
            return stream.expand(columns.shape[1], *stream.shape)
        sources = list(self.place)
        picked = columns[sources].T.to(self.device, changes.dtype)
        direct = picked.clone()
        wrapped = wrapped_heads(self.anatomy, sources)
        for _, places in wrapped:
            direct[:, places] = 0
        read = stream + torch.tensordot(direct, changes, 1)
        for layer, places in wrapped:
            read += self._through(
                layer, torch.tensordot(picked[:, places], changes[places], 1), last
            )
        return read

    def _through(self, layer: int, change: Tensor, last: bool) -> Tensor:
        after: Any = self.anatomy.layers[layer].after
        base = self.known.seen.sums[layer][self.rows]
        base = base[:, -1:] if last else base
        return after(base + change) - after(base)

    def _heads(self, layer: int) -> None:
        graph = self.graph
        heads = [h for h in range(graph.heads) if self._is_kept(graph.head(layer, h))]
        if not heads:
            return
        columns = self.edges[:, graph.into_heads(layer)].unflatten(1, (3, graph.heads))
        columns = columns[:, :, heads].flatten(1)
        distinct, which = torch.unique(columns, dim=1, return_inverse=True)
        stream = self._read(self.known.seen.attention_in[layer][self.rows], distinct)
        normed = self.anatomy.layers[layer].attention_norm(stream)
        reads = self._reads(layer, normed, which.unflatten(0, (3, len(heads))), heads)
        values = attend(self.anatomy, layer, reads, self.shape)[:, :, heads]
        before = self.known.outputs.heads[layer][self.rows].unflatten(-1, (graph.heads, -1))
        change = values - before[:, :, heads]
        weight = self.anatomy.writing(layer)[heads]
        for i, head in enumerate(heads):
            self._put(graph.head(layer, head), change[:, :, i] @ weight[i])

    def _reads(self, layer: int, normed: Tensor, which: Tensor, heads: list[int]) -> Tensor:
        """Queries, keys and values: of kept heads from their own copies, of others the old ones."""
        old = self.known.seen.reads[layer]
        whole = (
            torch.cat([t[self.rows] for t in old], -1)
            .unflatten(-1, (3, self.graph.heads, -1))
            .clone()
        )
        weight, bias = self.anatomy.reading(layer), self.anatomy.biases(layer)
        for letter in range(3):
            for i, head in enumerate(heads):
                made = normed[which[letter, i]] @ weight[letter, head].T
                whole[:, :, letter, head] = made if bias is None else made + bias[letter, head]
        return whole

    def _mlp(self, layer: int) -> None:
        source = self.graph.mlp(layer)
        if not self._is_kept(source):
            return
        into = self.graph.into_mlp(layer)
        column = self.edges[:, into : into + 1]
        stream = self._read(self.known.seen.mlp_in[layer][self.rows], column)[0]
        now = run_mlp(self.anatomy, layer, stream)
        self._put(source, now - self.known.outputs.mlps[layer][self.rows])

    def _is_kept(self, source: int) -> bool:
        return bool(self.edges[source].any())


def wrapped_heads(anatomy: Anatomy, sources: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Per layer where its heads stand among the sources, if their sum passes a norm (Gemma 2)."""
    found: dict[int, list[int]] = {}
    if anatomy.after_norms[0] is None:
        return []
    for place, source in enumerate(sources):
        layer = anatomy.graph.layer_of(source)
        if layer >= 0 and source != anatomy.graph.mlp(layer):
            found.setdefault(layer, []).append(place)
    return list(found.items())
