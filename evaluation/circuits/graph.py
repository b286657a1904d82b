"""A decoder as sources that write to the residual stream and destinations that read from it.

The graph of MIB's circuit track (Mueller et al. 2025): the input, every query head and every MLP
write; queries, keys and values of every head, every MLP and the logits read, each its own copy of
the stream. Keys and values that heads share count once per query head. A graph is three numbers
and index arithmetic; no edge is an object.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from evaluation.circuits.errors import UnknownEdge

Letter = Literal["q", "k", "v"]
LETTERS: tuple[Letter, ...] = ("q", "k", "v")


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The sources and destinations of a decoder, by index.

    Attributes:
        layers: Decoder layers.
        heads: Query heads of each.
        width: Of the residual stream.
        parallel: Whether a layer's MLP reads beside its heads instead of behind them.
    """

    layers: int
    heads: int
    width: int
    parallel: bool = False

    @property
    def sources(self) -> int:
        """How many write: the input, and each layer's heads and MLP."""
        return 1 + self.layers * (self.heads + 1)

    @property
    def destinations(self) -> int:
        """How many read: three per head, one per MLP, and the logits."""
        return self.layers * (3 * self.heads + 1) + 1

    @property
    def edges(self) -> int:
        """How many pairs of a source and a destination behind it there are."""
        return int(self.limits.sum())

    def before(self, layer: int) -> int:
        """Sources that stand before the layer: its heads read rows [0, before)."""
        return 1 + layer * (self.heads + 1)

    def head(self, layer: int, head: int) -> int:
        """The source of a head."""
        return self.before(layer) + head

    def mlp(self, layer: int) -> int:
        """The source of an MLP."""
        return self.before(layer) + self.heads

    def into_heads(self, layer: int) -> slice:
        """The destinations of the layer's heads: all queries, then keys, then values."""
        first = layer * (3 * self.heads + 1)
        return slice(first, first + 3 * self.heads)

    def into(self, layer: int, head: int, letter: Letter) -> int:
        """The destination of a head's queries, keys or values."""
        return self.into_heads(layer).start + LETTERS.index(letter) * self.heads + head

    def into_mlp(self, layer: int) -> int:
        """The destination of an MLP."""
        return self.into_heads(layer).stop

    @property
    def logits(self) -> int:
        """The last destination."""
        return self.destinations - 1

    def read_by_mlp(self, layer: int) -> int:
        """How many sources the layer's MLP may read."""
        return self.before(layer) + (0 if self.parallel else self.heads)

    @cached_property
    def limits(self) -> Int[Tensor, " destinations"]:
        """Each destination may read the sources before this one."""
        found: list[int] = []
        for layer in range(self.layers):
            found += [self.before(layer)] * (3 * self.heads) + [self.read_by_mlp(layer)]
        return torch.tensor([*found, self.sources])

    @cached_property
    def real(self) -> Bool[Tensor, "sources destinations"]:
        """Which pairs are edges."""
        return torch.arange(self.sources)[:, None] < self.limits[None, :]

    @cached_property
    def owners(self) -> Int[Tensor, " destinations"]:
        """The source whose output each destination serves; `sources` for the logits."""
        found: list[int] = []
        for layer in range(self.layers):
            found += [self.head(layer, h) for h in range(self.heads)] * 3 + [self.mlp(layer)]
        return torch.tensor([*found, self.sources])

    @cached_property
    def source_names(self) -> tuple[str, ...]:
        """`input`, `a0.h0`, ..., `m0`, ...: in the order of their indices."""
        found = ["input"]
        for layer in range(self.layers):
            found += [f"a{layer}.h{h}" for h in range(self.heads)] + [f"m{layer}"]
        return tuple(found)

    @cached_property
    def destination_names(self) -> tuple[str, ...]:
        """`a0.h0<q>`, ..., `m0`, ..., `logits`."""
        found: list[str] = []
        for layer in range(self.layers):
            found += [f"a{layer}.h{h}<{x}>" for x in LETTERS for h in range(self.heads)]
            found.append(f"m{layer}")
        return (*found, "logits")

    def edge(self, name: str) -> tuple[int, int]:
        """The indices of an edge such as `a0.h1->m2` or `input->a0.h3<q>`.

        Raises:
            UnknownEdge: The graph has no such edge.
        """
        source, _, destination = name.partition("->")
        try:
            pair = self._source[source], self._destination[destination]
        except KeyError as unknown:
            raise UnknownEdge(name) from unknown
        if pair[0] >= int(self.limits[pair[1]]):
            raise UnknownEdge(name)
        return pair

    def named_edges(self) -> Iterator[tuple[str, int, int]]:
        """Every edge with its name and its indices."""
        for v, (limit, into) in enumerate(
            zip(self.limits.tolist(), self.destination_names, strict=True)
        ):
            for u in range(limit):
                yield f"{self.source_names[u]}->{into}", u, v

    def layer_of(self, source: int) -> int:
        """The layer of a source; -1 for the input."""
        return -1 if source == 0 else (source - 1) // (self.heads + 1)

    @cached_property
    def _source(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.source_names)}

    @cached_property
    def _destination(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.destination_names)}
