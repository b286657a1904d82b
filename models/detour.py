"""Back-patching inside one forward (Nikankin et al. 2025): later states written back early.

Where a family calls its layers one by one, it leads detours itself. When the smallest target of a
plan is done, the rows that carry it run ahead together, no further than their last written column,
through the layers up to the largest source; what is written back is kept from there, and the
forward goes on. It is the two-pass definition: everything up to the smallest target is shared, and
the run ahead is the clean pass. Edits and steering act there as they do in the real pass; nothing
is counted there, and no key or value of it is kept. Rows without a plan pay nothing.

The stream behind a layer is what enters the next one, features that a model adds between its layers
included; so it is read and written there.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.plan import WriteBack, detour_place
from models.sight import Span


class Way(ABC):
    """A forward's way through the layers, as detours need it."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Columns of the forward."""

    @abstractmethod
    def layer(self, index: int, stream: Tensor) -> Tensor:
        """One layer, with all that the model adds behind it."""

    @abstractmethod
    def ahead(self, rows: Sequence[int], stop: int) -> "Way":
        """Some of the rows, cut behind a column; nothing that they add is kept."""

    @abstractmethod
    def joint(self, row: int) -> Sequence[Span]:
        """Columns of the row whose tokens see each other in both directions."""

    @abstractmethod
    def quiet(self, rows: Sequence[int]) -> AbstractContextManager[None]:
        """In this block the rows' other changes happen to them, uncounted."""


@dataclass(frozen=True, eq=False)
class Group:
    """Rows that make the same detour.

    Attributes:
        rows: In the forward.
        source_of: Per target its source.
        loops: Runs ahead.
        columns: Per row what is written back.
        stop: One past the last column that must be run ahead.
    """

    rows: tuple[int, ...]
    source_of: Mapping[int, int]
    loops: int
    columns: tuple[tuple[int, ...], ...]
    stop: int

    @property
    def first(self) -> int:
        """The smallest target: behind it the detour begins."""
        return min(self.source_of)

    @property
    def last(self) -> int:
        """The largest source."""
        return max(self.source_of.values())

    @property
    def extra(self) -> int:
        """Token-layers beyond those of a plain forward."""
        return self.loops * len(self.rows) * self.stop * (self.last - self.first)

    @cached_property
    def places(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Of every token that is written: its place in the group, its row, its column."""
        triples = [
            (i, row, column)
            for i, (row, columns) in enumerate(zip(self.rows, self.columns, strict=True))
            for column in columns
        ]
        inside, rows, columns = map(torch.tensor, zip(*triples, strict=True))
        return inside, rows, columns


class Detours:
    """The detours of one forward, from its first layer to its last.

    Args:
        backs: What is written back, from the forward's plan.
        lead: The forward.
        count: Told of every row, place and number of tokens that were written.
    """

    def __init__(
        self, backs: Sequence[WriteBack], lead: Way, count: Callable[[int, str, int], None]
    ) -> None:
        self.lead, self.count = lead, count
        self.groups = tuple(_groups(backs, lead))
        self._kept: dict[int, Mapping[int, Tensor]] = {}

    def behind(
        self, index: int, stream: Float[Tensor, "rows tokens d"]
    ) -> Float[Tensor, "rows tokens d"]:
        """The stream that enters the next layer."""
        changed = stream
        for number, group in enumerate(self.groups):
            if index == group.first:
                self._kept[number] = self._ahead(group, stream)
            if index in group.source_of:
                kept = self._kept[number][group.source_of[index]]
                inside, rows, columns = group.places
                changed = changed.index_put((rows, columns), kept[inside, columns])
                self._count(group, index)
        return changed

    def _count(self, group: Group, target: int) -> None:
        for row, columns in zip(group.rows, group.columns, strict=True):
            self.count(row, detour_place("lm", target), len(columns))

    def _ahead(self, group: Group, stream: Tensor) -> Mapping[int, Tensor]:
        """Per source layer the stream (group, stop, d) of the last run ahead."""
        rows = torch.tensor(group.rows, device=stream.device)
        begun = stream[rows, : group.stop]
        going = self.lead.ahead(group.rows, group.stop)
        kept: Mapping[int, Tensor] = {}
        with self.lead.quiet(group.rows):
            for _ in range(group.loops):
                kept = self._once(group, begun, going, kept)
        return kept

    @staticmethod
    def _once(
        group: Group, begun: Tensor, going: Way, kept: Mapping[int, Tensor]
    ) -> Mapping[int, Tensor]:
        """One run: patched with what the run before kept, overwritten first and then kept."""
        write = _writer(group, kept)
        found: dict[int, Tensor] = {}
        sources = set(group.source_of.values())
        stream = write(group.first, begun)
        for index in range(group.first + 1, group.last + 1):
            stream = write(index, going.layer(index, stream))
            if index in sources:
                found[index] = stream
        return found


def _writer(group: Group, kept: Mapping[int, Tensor]) -> Callable[[int, Tensor], Tensor]:
    inside, _, columns = group.places

    def write(index: int, stream: Tensor) -> Tensor:
        if not kept or index not in group.source_of:
            return stream
        values = kept[group.source_of[index]][inside, columns]
        return stream.index_put((inside, columns), values)

    return write


def _groups(backs: Sequence[WriteBack], lead: Way) -> Iterator[Group]:
    by_row: dict[int, list[WriteBack]] = defaultdict(list)
    for back in backs:
        by_row[back.row].append(back)
    alike: dict[Any, dict[int, tuple[int, ...]]] = defaultdict(dict)
    for row, of in by_row.items():
        columns = _columns(of[0].columns, lead.tokens)  # a patch's detours all mean the same
        if columns:
            pairs = tuple(sorted((back.target, back.source) for back in of))
            alike[pairs, of[0].loops][row] = columns
    for (pairs, loops), rows in alike.items():
        stop = max(_stop(columns, lead.joint(row)) for row, columns in rows.items())
        yield Group(tuple(rows), dict(pairs), loops, tuple(rows.values()), stop)


def _columns(columns: tuple[int, ...] | None, tokens: int) -> tuple[int, ...]:
    if columns is None:
        return tuple(range(tokens))
    return tuple(column for column in columns if column < tokens)


def _stop(columns: tuple[int, ...], joint: Sequence[Span]) -> int:
    """One past the last column that the written ones can see."""
    stop = columns[-1] + 1
    for first, end in sorted(joint):
        if first < stop:
            stop = max(stop, end)
    return stop
