"""From differences of sources and gradients of reads to scores: one product per layer and chunk.

The score of an edge is <D_u, g_v>, summed over tokens and the stream's width. With gamma the
gradient of a head's queries, keys or values, g_v = J^T (W_v^T gamma) through the norm in front.
Over several points of an integral D_u is the same: their gradients are summed before the product,

    sum_k g_v,k = (gain W_v)^T sum_k (gamma_k / s_k) - sum_k x^_k b_v,k - 1 c_v

where b_v,k = gamma_k . (gain W_v x^_k) / (s_k d), and c_v, the mean of the first term, belongs to
LayerNorm alone. The last two terms are of rank one per point and never spread out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.circuits.anatomy import Anatomy
from evaluation.circuits.graph import Graph
from evaluation.circuits.norms import Norm
from evaluation.circuits.written import Written, spread

CHUNK_BYTES = 24 * 2**20
"""Of the vectors that are spread out at a time."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Gradients:
    """Of the loss at one point, with rows and tokens in one axis.

    Attributes:
        attention_in, mlp_in, last_in: The stream that enters each norm.
        reads: At queries, keys and values, (tokens, 3, heads, width) per layer.
        mlp_normed, last_normed: Behind the norms of the MLPs and of the head.
    """

    attention_in: tuple[Float[Tensor, "tokens d"], ...]
    mlp_in: tuple[Float[Tensor, "tokens d"], ...]
    last_in: Float[Tensor, "tokens d"]
    reads: tuple[Float[Tensor, "tokens 3 heads width"], ...]
    mlp_normed: tuple[Float[Tensor, "tokens d"], ...]
    last_normed: Float[Tensor, "tokens d"]


@dataclass(eq=False)
class Totals:
    """Scores, summed in float64 as batches come in.

    Attributes:
        edges: (sources, destinations); what is no edge stays 0.
        neurons: (sources, d): the same before the sum over the stream's width, over all
            destinations; None where nobody asked.
        own: An MLP's output difference times the gradient at its own input, which the reference
            takes for the MLP's node score.
    """

    edges: Float[Tensor, "sources destinations"]
    neurons: Float[Tensor, "sources d"] | None
    own: Float[Tensor, " sources"]

    @classmethod
    def of(cls, graph: Graph, *, neurons: bool = False) -> "Totals":
        """Zeros."""
        shape, wide = (graph.sources, graph.destinations), (graph.sources, graph.width)
        return cls(
            edges=torch.zeros(shape, dtype=torch.float64),
            neurons=torch.zeros(wide, dtype=torch.float64) if neurons else None,
            own=torch.zeros(graph.sources, dtype=torch.float64),
        )


def contract(
    anatomy: Anatomy,
    differences: Written,
    points: Sequence[Gradients],
    totals: Totals,
    scale: float = 1.0,
) -> None:
    """Add `scale` times the sum over the points of <D_u, g_v> to the totals, for every edge."""
    flat, graph = differences.flat(), anatomy.graph
    tokens = len(points[0].last_in)
    size = torch.empty((), dtype=anatomy.dtype).element_size()
    vectors = graph.sources + 3 * graph.heads + 4 * len(points)
    chunk = max(1, min(tokens, CHUNK_BYTES // (vectors * graph.width * size)))
    room = torch.empty(
        graph.sources, chunk, graph.width, dtype=anatomy.dtype, device=anatomy.device
    )
    for start in range(0, tokens, chunk):
        piece = slice(start, min(start + chunk, tokens))
        table = spread(anatomy, flat, piece, room)
        _Chunk(anatomy, table, points, piece, totals, scale).add()


@dataclass(frozen=True, eq=False)
class _Chunk:
    anatomy: Anatomy
    table: Float[Tensor, "sources tokens d"]
    points: Sequence[Gradients]
    piece: slice
    totals: Totals
    scale: float

    def add(self) -> None:
        """From the logits down: what stands behind a source has been summed when it is reached."""
        graph = self.anatomy.graph
        ends = [(p.last_in, p.last_normed) for p in self.points]
        behind = self._single(self.anatomy.final_norm, ends, graph.logits, graph.sources)
        for layer in reversed(range(graph.layers)):
            mlp = graph.mlp(layer)
            self._neurons(slice(mlp, mlp + 1), behind)
            if graph.parallel:
                self._neurons(slice(graph.before(layer), mlp), behind)
            ends = [(p.mlp_in[layer], p.mlp_normed[layer]) for p in self.points]
            gradient = self._single(
                self.anatomy.mlp_norms[layer], ends, graph.into_mlp(layer), graph.read_by_mlp(layer)
            )
            self.totals.own[mlp] += self.scale * float((self.table[mlp] * gradient).sum())
            behind += gradient
            if not graph.parallel:
                self._neurons(slice(graph.before(layer), mlp), behind)
            behind += self._heads(layer)
        self._neurons(slice(0, 1), behind)

    def _single(
        self, norm: Norm, ends: Sequence[tuple[Tensor, Tensor]], into: int, limit: int
    ) -> Float[Tensor, "tokens d"]:
        found = torch.zeros_like(self.table[0])
        for entering, normed in ends:
            x, y = (t[self.piece].to(found.dtype) for t in (entering, normed))
            found += norm.pulled(*norm.split(x), y)
        scores = self.table[:limit].flatten(1) @ found.flatten()
        self.totals.edges[:limit, into] += self.scale * scores.cpu().double()
        return found

    def _heads(self, layer: int) -> Float[Tensor, "tokens d"]:
        """Add the scores of all edges into the layer's heads; return their gradients' sum."""
        graph, norm = self.anatomy.graph, self.anatomy.attention_norms[layer]
        limit, wide = graph.before(layer), self.table.shape[-1]
        weight = (self.anatomy.reading(layer).to(self.table.dtype) * norm.gain).flatten(0, 1)
        summed, normed, along = self._folded(layer, weight, norm)
        if norm.centred:
            normed.append(torch.ones_like(normed[0]))
            mean = weight.mean(-1)  # reads, width
            along.append((summed * mean[:, None]).sum(-1))
        read = torch.bmm(summed, weight)  # reads, tokens, d
        ones, many = (
            torch.stack(normed, 1),
            torch.stack(along, -1),
        )  # tokens points d; reads tokens points
        table = self.table[:limit]
        scores = table.flatten(1) @ read.flatten(1).T
        shares = torch.bmm(table.transpose(0, 1), ones.mT)  # tokens, sources, points
        scores -= torch.einsum("tup,vtp->uv", shares, many)
        self.totals.edges[:limit, graph.into_heads(layer)] += self.scale * scores.cpu().double()
        if self.totals.neurons is None:
            return self.table.new_zeros(1, wide)
        return read.sum(0) - torch.einsum("tp,tpd->td", many.sum(0), ones)

    def _folded(
        self, layer: int, weight: Tensor, norm: Norm
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """sum_k gamma_k / s_k (reads, tokens, width), and per point x^_k and b_k."""
        summed = torch.zeros((), dtype=weight.dtype, device=weight.device)
        normed, along = [], []
        for point in self.points:
            x, scale = norm.split(point.attention_in[layer][self.piece].to(weight.dtype))
            gamma = point.reads[layer][self.piece].to(weight.dtype).flatten(1, 2) * scale[..., None]
            made = (x @ weight.flatten(0, 1).T).view_as(gamma)
            normed.append(x)
            along.append((gamma * made).sum(-1).T / x.shape[-1])
            summed = summed + gamma
        return summed.transpose(0, 1).contiguous(), normed, along

    def _neurons(self, sources: slice, behind: Tensor) -> None:
        if self.totals.neurons is not None:
            found = torch.einsum("utd,td->ud", self.table[sources], behind)
            self.totals.neurons[sources] += self.scale * found.cpu().double()
