"""What sources write, kept small: a head's values at head width, never at the stream's.

Two runs need 2d numbers per token and layer; only a chunk of tokens at a time is spread out to one
vector of the stream's width per source.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluation.circuits.anatomy import Anatomy
from evaluation.circuits.passes import Seen, forward


@dataclass(frozen=True, eq=False, kw_only=True)
class Written:
    """The outputs of all sources in one run, or the difference of two runs.

    Attributes:
        embedding, heads, mlps: (rows, tokens, numbers), or what can be spread over them.
        offsets: Added to each source at every token, for replacements that no head could write.
        sums: What leaves the output matrices; where given, heads are carried through the norm
            behind it, linearly (Gemma 2).
        centred: Whether each source's vector loses its mean over the stream, as it does where
            writing weights are centred.
    """

    embedding: Float[Tensor, "*rows d"]
    heads: tuple[Float[Tensor, "*rows wide"], ...]
    mlps: tuple[Float[Tensor, "*rows d"], ...]
    offsets: Float[Tensor, "sources d"] | None = None
    sums: tuple[Float[Tensor, "*rows d"], ...] | None = None
    centred: bool = False

    def minus(self, other: "Written", sums: tuple[Tensor, ...] | None = None) -> "Written":
        """The difference of both, source by source."""
        return Written(
            embedding=self.embedding - other.embedding,
            heads=tuple(a - b for a, b in zip(self.heads, other.heads, strict=True)),
            mlps=tuple(a - b for a, b in zip(self.mlps, other.mlps, strict=True)),
            offsets=self.offsets,
            sums=sums,
        )

    def flat(self) -> "Written":
        """Rows and tokens in one axis."""
        sums = None if self.sums is None else tuple(x.flatten(0, 1) for x in self.sums)
        return Written(
            embedding=self.embedding.flatten(0, 1),
            heads=tuple(x.flatten(0, 1) for x in self.heads),
            mlps=tuple(x.flatten(0, 1) for x in self.mlps),
            offsets=self.offsets,
            sums=sums,
            centred=self.centred,
        )


def written(anatomy: Anatomy, ids: Int[Tensor, "rows tokens"], seen: Seen) -> Written:
    """What the sources of a forward wrote."""
    return Written(
        embedding=anatomy.embedded(ids).detach(),
        heads=tuple(x.detach() for x in seen.heads),
        mlps=tuple(x.detach() for x in seen.mlps),
    )


@torch.no_grad()
def run(anatomy: Anatomy, ids: Int[Tensor, "rows tokens"]) -> tuple[Seen, Written]:
    """A plain forward, and what its sources wrote."""
    seen = forward(anatomy, anatomy.entering(ids))
    return seen, written(anatomy, ids, seen)


def spread(
    anatomy: Anatomy, flat: Written, piece: slice, out: Tensor | None = None
) -> Float[Tensor, "sources tokens d"]:
    """One vector of the stream's width per source, for a chunk of tokens.

    Args:
        anatomy: Of the model.
        flat: With rows and tokens in one axis.
        piece: Which of them.
        out: Where the vectors go, if there is a place for them already.
    """
    graph, dtype = anatomy.graph, anatomy.dtype
    tokens = len(flat.embedding[piece])
    table = flat.embedding.new_empty(graph.sources, tokens, graph.width, dtype=dtype)
    table = table if out is None else out[:, :tokens]
    table[0] = flat.embedding[piece]
    for layer in range(graph.layers):
        first = graph.before(layer)
        values = flat.heads[layer][piece].to(dtype).unflatten(-1, (graph.heads, -1))
        torch.bmm(
            values.transpose(0, 1),
            anatomy.writing(layer).to(dtype),
            out=table[first : first + graph.heads],
        )
        _carry(anatomy, layer, flat.sums, piece, table[first : first + graph.heads])
        table[first + graph.heads] = flat.mlps[layer][piece]
    if flat.offsets is not None:
        table += flat.offsets[:, None].to(dtype)
    if flat.centred:
        table -= table.mean(-1, keepdim=True)
    return table


def folded(anatomy: Anatomy, some: Written) -> Written:
    """What sources write where value biases are folded away and writing weights are centred."""
    heads = list(some.heads)
    for layer in range(anatomy.graph.layers):
        if (biases := anatomy.value_biases(layer)) is not None:
            heads[layer] = heads[layer] - biases.flatten()
    return replace(some, heads=tuple(heads), centred=anatomy.centred)


def _carry(anatomy: Anatomy, layer: int, sums: Any, piece: slice, heads: Tensor) -> None:
    after = anatomy.after_norms[layer]
    if sums is None or after is None:
        return
    normed, scale = after.split(sums[layer][piece].to(heads.dtype))
    heads.copy_(after.pushed(normed, scale, heads))
