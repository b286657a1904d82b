"""From differences of sources and gradients of reads to scores: one product per layer and chunk.

The score of an edge is <D_u, g_v>, summed over tokens and the stream's width. With gamma the
gradient of a head's queries, keys or values, g_v = J^T (W_v^T gamma) through the norm in front.
Over several points of an integral D_u is the same: their gradients are summed before the product,

    sum_k g_v,k = (gain W_v)^T sum_k (gamma_k / s_k) - sum_k x^_k b_v,k - 1 c_v

where b_v,k = gamma_k . (gain W_v x^_k) / (s_k d), and c_v, the mean of the first term, belongs to
LayerNorm alone. The last two terms are of rank one per point and never spread out.
"""

from dataclasses import dataclass, field

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
class Folded:
    """The gradients of some points, summed as far as they can be; add points one by one.

    Attributes:
        summed: Per layer the sum of gamma / s, (tokens, 3 heads, width).
        normed: Per layer and point x^, (tokens, d).
        along: Per layer and point b, (tokens, 3 heads).
        mlps: Per layer the gradient at the stream that the MLP reads.
        last: The same for the logits.
    """

    anatomy: Anatomy
    summed: list[Tensor] = field(default_factory=list)
    normed: list[list[Tensor]] = field(default_factory=list)
    along: list[list[Tensor]] = field(default_factory=list)
    mlps: list[Tensor] = field(default_factory=list)
    last: Tensor = field(default_factory=lambda: torch.zeros(()))

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return len(self.last)

    def add(self, point: Gradients) -> None:
        """One more point of the sum."""
        anatomy, dtype = self.anatomy, self.anatomy.dtype
        first = not self.summed
        pulled = _pulled(anatomy.final_norm, point.last_in, point.last_normed, dtype)
        self.last = pulled if first else self.last + pulled
        for layer in range(anatomy.graph.layers):
            norm = anatomy.attention_norms[layer]
            normed, scale = norm.split(point.attention_in[layer].to(dtype))
            gamma = point.reads[layer].to(dtype).flatten(1, 2) * scale[..., None]
            made = anatomy.projected(layer, normed * norm.gain).view_as(gamma)
            along = (gamma * made).sum(-1) / normed.shape[-1]
            pulled = _pulled(
                anatomy.mlp_norms[layer], point.mlp_in[layer], point.mlp_normed[layer], dtype
            )
            if first:
                self.summed.append(gamma)
                self.normed.append([normed])
                self.along.append([along])
                self.mlps.append(pulled)
            else:
                self.summed[layer] += gamma
                self.normed[layer].append(normed)
                self.along[layer].append(along)
                self.mlps[layer] += pulled


def _pulled(norm: Norm, x: Tensor, y: Tensor, dtype: torch.dtype) -> Float[Tensor, "tokens d"]:
    return norm.pulled(*norm.split(x.to(dtype)), y.to(dtype))


@dataclass(eq=False)
class Totals:
    """Scores, summed in float64 as batches come in.

    Attributes:
        edges: (sources, destinations); what is no edge stays 0.
        neurons: (sources, d): the same before the sum over the stream's width, over all
            destinations; None where nobody asked.
        own: An MLP's output difference times the gradient at its own input, before the sum over
            the stream's width: what the reference takes for the MLP's node score.
    """

    edges: Float[Tensor, "sources destinations"]
    neurons: Float[Tensor, "sources d"] | None
    own: Float[Tensor, "sources d"]

    @classmethod
    def of(cls, graph: Graph, *, neurons: bool = False) -> "Totals":
        """Zeros."""
        shape, wide = (graph.sources, graph.destinations), (graph.sources, graph.width)
        return cls(
            edges=torch.zeros(shape, dtype=torch.float64),
            neurons=torch.zeros(wide, dtype=torch.float64) if neurons else None,
            own=torch.zeros(wide, dtype=torch.float64),
        )


def contract(
    anatomy: Anatomy,
    differences: Written,
    points: Folded,
    totals: Totals,
    scale: float = 1.0,
) -> None:
    """Add `scale` times the sum over the points of <D_u, g_v> to the totals, for every edge."""
    flat, graph = differences.flat(), anatomy.graph
    size = torch.empty((), dtype=anatomy.dtype).element_size()
    vectors = graph.sources + 3 * graph.heads + 4
    chunk = max(1, min(points.tokens, CHUNK_BYTES // (vectors * graph.width * size)))
    room = torch.empty(
        graph.sources, chunk, graph.width, dtype=anatomy.dtype, device=anatomy.device
    )
    for start in range(0, points.tokens, chunk):
        piece = slice(start, min(start + chunk, points.tokens))
        table = spread(anatomy, flat, piece, room)
        _Chunk(anatomy, table, points, piece, totals, scale).add()


@dataclass(frozen=True, eq=False)
class _Chunk:
    anatomy: Anatomy
    table: Float[Tensor, "sources tokens d"]
    points: Folded
    piece: slice
    totals: Totals
    scale: float

    def add(self) -> None:
        """From the logits down: what stands behind a source has been summed when it is reached."""
        graph, points = self.anatomy.graph, self.points
        behind = self._single(points.last, graph.logits, graph.sources).clone()
        for layer in reversed(range(graph.layers)):
            mlp = graph.mlp(layer)
            self._neurons(slice(mlp, mlp + 1), behind)
            if graph.parallel:
                self._neurons(slice(graph.before(layer), mlp), behind)
            into, limit = graph.into_mlp(layer), graph.read_by_mlp(layer)
            gradient = self._single(points.mlps[layer], into, limit)
            own = (self.table[mlp] * gradient).sum(0)
            self.totals.own[mlp] += self.scale * own.cpu().double()
            behind += gradient
            if not graph.parallel:
                self._neurons(slice(graph.before(layer), mlp), behind)
            behind += self._heads(layer)
        self._neurons(slice(0, 1), behind)

    def _single(self, gradient: Tensor, into: int, limit: int) -> Float[Tensor, "tokens d"]:
        found = gradient[self.piece]
        scores = self.table[:limit].flatten(1) @ found.flatten()
        self.totals.edges[:limit, into] += self.scale * scores.cpu().double()
        return found

    def _heads(self, layer: int) -> Float[Tensor, "tokens d"]:
        """Add the scores of all edges into the layer's heads; return their gradients' sum."""
        graph, norm = self.anatomy.graph, self.anatomy.attention_norms[layer]
        limit, dtype = graph.before(layer), self.table.dtype
        weight = (self.anatomy.reading(layer).to(dtype) * norm.gain).flatten(0, 1)
        summed = self.points.summed[layer][self.piece].transpose(0, 1).contiguous()
        normed = [x[self.piece] for x in self.points.normed[layer]]
        along = [b[self.piece] for b in self.points.along[layer]]
        if norm.centred:
            normed.append(torch.ones_like(normed[0]))
            along.append((summed * weight.mean(-1)[:, None]).sum(-1).T)
        read = torch.bmm(summed, weight)  # reads, tokens, d
        ones, many = torch.stack(normed, 1), torch.stack(along, 1)  # tokens, points, d or reads
        table = self.table[:limit]
        scores = table.flatten(1) @ read.flatten(1).T
        shares = torch.bmm(table.transpose(0, 1), ones.mT)  # tokens, sources, points
        scores -= torch.einsum("tup,tpv->uv", shares, many)
        self.totals.edges[:limit, graph.into_heads(layer)] += self.scale * scores.cpu().double()
        if self.totals.neurons is None:
            return self.table.new_zeros(1, graph.width)
        return read.sum(0) - torch.einsum("tp,tpd->td", many.sum(2), ones)

    def _neurons(self, sources: slice, behind: Tensor) -> None:
        if self.totals.neurons is not None:
            found = torch.einsum("utd,td->ud", self.table[sources], behind)
            self.totals.neurons[sources] += self.scale * found.cpu().double()
