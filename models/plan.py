"""The rows' patches packed into tables for one forward.

Row numbers are resolved here, once: a table holds only the rows that carry an operation, so rows
without one are never touched and the cost does not grow with the number of distinct patches. Rows
of like rank share a table: were all padded to the largest rank, a neighbour's rank would choose the
matrix product's shape, and with it the last bits of a row.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from models.patch import Clamp, Detour, Exit, LowRank, Patch, Positions, Shift
from models.site import block

Named = Mapping[str, tuple[int, ...]]
"""What the named positions (`visual`, `last`, ...) mean in one row."""
Manner = Literal["whole", "spots", "moves"]
"""How what a row carries at a stream is applied: by which table."""


@dataclass(frozen=True)
class Carrying:
    """The rows of a batch that a table has an entry for."""

    rows: tuple[int, ...]
    index: Int[Tensor, " carrying"]

    @cached_property
    def in_order(self) -> bool:
        """Whether they are 0, 1, ...: then a batch of as many rows needs no index."""
        return self.rows == tuple(range(len(self.rows)))


@dataclass(frozen=True)
class LowRanks(Carrying):
    """The LowRanks of one site and width; ranks are padded with zeros, which change nothing."""

    left: Float[Tensor, "carrying out rank"]
    right: Float[Tensor, "carrying rank inner"]


@dataclass(frozen=True)
class Moves(Carrying):
    """Shifts and Clamps of one stream and width, as features: amount(activation) * decoder.

    A Shift is a feature whose amount is always 1; padding is a feature whose amount is always 0.
    `kind` says which amount: an index into `MODES`.
    """

    encoder: Float[Tensor, "carrying features d"]
    bias: Float[Tensor, "carrying features"]
    threshold: Float[Tensor, "carrying features"]
    value: Float[Tensor, "carrying features"]
    kind: Int[Tensor, "carrying features"]
    decoder: Float[Tensor, "carrying features d"]
    columns: tuple[tuple[tuple[int, ...] | None, ...], ...]
    """Per row and feature the token positions; None for all."""


@dataclass(frozen=True)
class Shifts(Carrying):
    """One vector per row that is added to every token of a stream."""

    vector: Float[Tensor, "carrying d"]


@dataclass(frozen=True)
class Spots:
    """One vector per row that is added to some tokens of a stream.

    Attributes:
        rows: That carry one.
        columns: Of each of them, ascending.
        at: Row and column of every place.
        vector: What is added at each place.
    """

    rows: tuple[int, ...]
    columns: tuple[tuple[int, ...], ...]
    at: tuple[Int[Tensor, " places"], Int[Tensor, " places"]]
    vector: Float[Tensor, "places d"]

    @cached_property
    def length(self) -> int:
        """Tokens of the shortest stream that has all places."""
        return 1 + max(columns[-1] for columns in self.columns)


MODES = ("none", "shift", "set", "min", "multiply")


@dataclass(frozen=True)
class Exits:
    """Rows that leave one tower, and the last block that each still runs (-1: none)."""

    after: Mapping[int, int]


@dataclass(frozen=True)
class WriteBack:
    """In `row`, what left block `source` is written after block `target` at the columns."""

    row: int
    source: int
    target: int
    columns: tuple[int, ...] | None
    loops: int = 1


@dataclass(frozen=True)
class Plan:
    """What one forward does to all its rows.

    Attributes:
        size: Rows of the batch.
        low_ranks: Tables by linear site.
        shifts: What is added to whole rows of a stream, by its site: rows that carry nothing else
            there.
        spots: What is added to the same tokens of a stream by all that a row carries there.
        moves: All other shifts and clamps by stream site.
        exits: By tower.
        detours: By tower.
        planned: Per (row, place) the number of tokens of one forward; 0 where every token is meant.
    """

    size: int
    low_ranks: Mapping[str, tuple[LowRanks, ...]] = field(default_factory=dict)
    shifts: Mapping[str, Shifts] = field(default_factory=dict)
    spots: Mapping[str, Spots] = field(default_factory=dict)
    moves: Mapping[str, tuple[Moves, ...]] = field(default_factory=dict)
    exits: Mapping[str, Exits] = field(default_factory=dict)
    detours: Mapping[str, tuple[WriteBack, ...]] = field(default_factory=dict)
    planned: Mapping[tuple[int, str], int] = field(default_factory=dict)

    def ahead(self, rows: Sequence[int]) -> "Plan":
        """What happens to some of the rows in a pass ahead of theirs: all but exits and detours."""
        at = {row: i for i, row in enumerate(rows)}
        return Plan(
            size=len(rows),
            low_ranks=_each(self.low_ranks, at, _only_low_ranks),
            shifts={
                site: _only_shifts(table, at)
                for site, table in self.shifts.items()
                if not at.keys().isdisjoint(table.rows)
            },
            spots={
                site: _only_spots(table, at)
                for site, table in self.spots.items()
                if not at.keys().isdisjoint(table.rows)
            },
            moves=_each(self.moves, at, _only_moves),
        )


def _each(
    tables: Mapping[str, tuple[Any, ...]],
    at: Mapping[int, int],
    only: Callable[[Any, Mapping[int, int]], Any],
) -> dict[str, tuple[Any, ...]]:
    found = {
        site: tuple(only(t, at) for t in of if not at.keys().isdisjoint(t.rows))
        for site, of in tables.items()
    }
    return {site: of for site, of in found.items() if of}


def _kept(rows: Sequence[int], at: Mapping[int, int]) -> tuple[list[int], tuple[int, ...]]:
    """Places in a table whose rows are wanted, and the rows' new numbers."""
    kept = [i for i, row in enumerate(rows) if row in at]
    return kept, tuple(at[rows[i]] for i in kept)


def _only_low_ranks(table: LowRanks, at: Mapping[int, int]) -> LowRanks:
    kept, rows = _kept(table.rows, at)
    return LowRanks(rows, table.index.new_tensor(rows), table.left[kept], table.right[kept])


def _only_shifts(table: Shifts, at: Mapping[int, int]) -> Shifts:
    kept, rows = _kept(table.rows, at)
    return Shifts(rows, table.index.new_tensor(rows), table.vector[kept])


def _only_spots(table: Spots, at: Mapping[int, int]) -> Spots:
    rows, columns = table.at
    kept = [i for i, row in enumerate(rows.tolist()) if row in at]
    wanted, numbers = _kept(table.rows, at)
    return Spots(
        rows=numbers,
        columns=tuple(table.columns[i] for i in wanted),
        at=(rows.new_tensor([at[row] for row in rows[kept].tolist()]), columns[kept]),
        vector=table.vector[kept],
    )


def _only_moves(table: Moves, at: Mapping[int, int]) -> Moves:
    kept, rows = _kept(table.rows, at)
    return Moves(
        rows=rows,
        index=table.index.new_tensor(rows),
        encoder=table.encoder[kept],
        bias=table.bias[kept],
        threshold=table.threshold[kept],
        value=table.value[kept],
        kind=table.kind[kept],
        decoder=table.decoder[kept],
        columns=tuple(table.columns[i] for i in kept),
    )


def pack(
    patches: Sequence[Patch],
    blocks: Mapping[str, int],
    positions: Sequence[Named] = (),
    device: str | torch.device = "cpu",
) -> Plan:
    """The plan for a batch.

    Args:
        patches: One per row, already checked against the model.
        blocks: The number of blocks of each tower.
        positions: Per row, what named positions mean; missing names are a KeyError.
        device: Where the tables live.
    """
    low_ranks, streams = _by_site(patches, LowRank), _by_site(patches, Shift, Clamp)
    named = [positions[row] if positions else {} for row in range(len(patches))]
    shifts, spots, moves = (_apart(streams, named, m) for m in ("whole", "spots", "moves"))
    # Tables outlive this forward: made under inference mode they could not enter a fit's graph.
    with torch.inference_mode(False):
        low_rank_tables = {
            site: tuple(_low_ranks(alike, width, device) for width, alike in _alike(by, _rank))
            for site, by in low_ranks.items()
        }
        shift_tables = {site: _shifts(by, device) for site, by in shifts.items()}
        spot_tables = {site: _spots(by, named, device) for site, by in spots.items()}
        move_tables = {
            site: tuple(_moves(alike, width, named, device) for width, alike in _alike(by, len))
            for site, by in moves.items()
        }
    exits, detours = _exits(patches), _detours(patches, blocks, named)
    planned = {(row, s): 0 for of in (low_ranks, shifts) for s, by in of.items() for row in by}
    for site, table in spot_tables.items():
        planned |= {
            (row, site): len(columns)
            for row, columns in zip(table.rows, table.columns, strict=True)
        }
    for site, table in ((site, table) for site, of in move_tables.items() for table in of):
        planned |= {
            (row, site): _total(of) for row, of in zip(table.rows, table.columns, strict=True)
        }
    for tower, leaving in exits.items():
        gone = {row for row, after in leaving.after.items() if after < blocks[tower] - 1}
        planned |= {(row, f"{tower}.exit"): 0 for row in gone}
    for tower, backs in detours.items():
        for end in {(b.row, b.target) for b in backs}:
            here = [b.columns for b in backs if (b.row, b.target) == end]
            planned[end[0], detour_place(tower, end[1])] = _total(here)
    return Plan(
        size=len(patches),
        low_ranks=low_rank_tables,
        shifts=shift_tables,
        spots=spot_tables,
        moves=move_tables,
        exits=exits,
        detours=detours,
        planned=planned,
    )


def detour_place(tower: str, target: int) -> str:
    """Where a detour's writes are counted."""
    return f"{block(tower, target)}:detour"


def _total(columns: Sequence[tuple[int, ...] | None]) -> int:
    """Tokens that are meant by any of them; 0 if that depends on the length of the forward."""
    return 0 if None in columns else len({at for of in columns if of is not None for at in of})


def _by_site(patches: Sequence[Patch], *verbs: type[Any]) -> dict[str, dict[int, list[Any]]]:
    found: dict[str, dict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for row, patch in enumerate(patches):
        wanted: list[Any] = [o for o in patch if isinstance(o, verbs)]
        for operation in wanted:
            found[operation.site][row].append(operation)
    return found


def _apart(
    streams: Mapping[str, Mapping[int, list[Any]]], named: Sequence[Named], manner: Manner
) -> dict[str, dict[int, list[Any]]]:
    """The rows whose operations at a site are applied in one manner."""
    apart = {
        site: {row: of for row, of in by.items() if _manner(of, named[row]) == manner}
        for site, by in streams.items()
    }
    return {site: by for site, by in apart.items() if by}


def _manner(operations: Sequence[Shift | Clamp], named: Named) -> Manner:
    """Vectors for one and the same tokens are summed up beforehand."""
    if not all(isinstance(o, Shift) for o in operations):
        return "moves"
    columns = {_columns(o.positions, named) for o in operations}
    if columns == {None}:
        return "whole"
    return "moves" if len(columns) > 1 or () in columns else "spots"


def _summed(operations: Sequence[Shift], device: str | torch.device) -> Tensor:
    """A row's vectors are added up in digest order: its sum is the same in any company."""
    first, *rest = (o.vector.to(device) for o in operations)
    return sum(rest, first)


def _shifts(by_row: Mapping[int, list[Shift]], device: str | torch.device) -> Shifts:
    return Shifts(
        rows=tuple(by_row),
        index=torch.tensor(list(by_row), device=device),
        vector=torch.stack([_summed(of, device) for of in by_row.values()]),
    )


def _spots(
    by_row: Mapping[int, list[Shift]], named: Sequence[Named], device: str | torch.device
) -> Spots:
    columns = [_columns(of[0].positions, named[row]) or () for row, of in by_row.items()]
    each = [len(of) for of in columns]
    rows = [row for row, n in zip(by_row, each, strict=True) for _ in range(n)]
    sums = torch.stack([_summed(of, device) for of in by_row.values()])
    one_each = max(each) == 1
    return Spots(
        rows=tuple(by_row),
        columns=tuple(columns),
        at=(
            torch.tensor(rows, device=device),
            torch.tensor([column for of in columns for column in of], device=device),
        ),
        vector=sums if one_each else sums.repeat_interleave(torch.tensor(each).to(device), dim=0),
    )


def _rank(operations: list[LowRank]) -> int:
    return sum(operation.rank for operation in operations)


def _alike(
    by_row: Mapping[int, list[Any]], size: Callable[[list[Any]], int]
) -> list[tuple[int, dict[int, list[Any]]]]:
    """Rows grouped by the power of two, at least 4, that their size is padded to."""
    found: dict[int, dict[int, list[Any]]] = defaultdict(dict)
    for row, operations in by_row.items():
        found[max(4, 1 << (size(operations) - 1).bit_length())][row] = operations
    return sorted(found.items())


def _low_ranks(
    by_row: Mapping[int, list[LowRank]], width: int, device: str | torch.device
) -> LowRanks:
    left = [torch.cat([o.left.to(device) for o in of], dim=1) for of in by_row.values()]
    right = [torch.cat([o.right.to(device) for o in of], dim=0) for of in by_row.values()]
    return LowRanks(
        rows=tuple(by_row),
        index=torch.tensor(list(by_row), device=device),
        left=torch.stack([pad(p, (0, width - p.shape[1])) for p in left]),
        right=torch.stack([pad(p, (0, 0, 0, width - p.shape[0])) for p in right]),
    )


def _as_clamp(operation: Shift | Clamp) -> Clamp:
    """A Shift written as a feature, so that one table holds both."""
    if isinstance(operation, Clamp):
        return operation
    vector = operation.vector
    return Clamp(
        site=operation.site,
        encoder=torch.zeros_like(vector),
        encoder_bias=0.0,
        decoder=vector,
        value=0.0,
        positions=operation.positions,
    )


def _moves(
    by_row: Mapping[int, list[Shift | Clamp]],
    width: int,
    named: Sequence[Named],
    device: str | torch.device,
) -> Moves:
    features = [[_as_clamp(o) for o in of] for of in by_row.values()]
    kinds = [["shift" if isinstance(o, Shift) else o.mode for o in of] for of in by_row.values()]

    def numbers(rows: list[list[float]]) -> Tensor:
        return torch.tensor([row + [0.0] * (width - len(row)) for row in rows], device=device)

    def vectors(rows: list[list[Tensor]]) -> Tensor:
        stacked = [torch.stack([v.to(device) for v in row]) for row in rows]
        return torch.stack([pad(row, (0, 0, 0, width - row.shape[0])) for row in stacked])

    return Moves(
        rows=tuple(by_row),
        index=torch.tensor(list(by_row), device=device),
        encoder=vectors([[f.encoder for f in row] for row in features]),
        bias=numbers([[f.encoder_bias for f in row] for row in features]),
        threshold=numbers([[f.threshold for f in row] for row in features]),
        value=numbers([[f.value for f in row] for row in features]),
        kind=numbers([[float(MODES.index(k)) for k in row] for row in kinds]).long(),
        decoder=vectors([[f.decoder for f in row] for row in features]),
        columns=tuple(
            tuple(_columns(o.positions, named[row]) for o in of) for row, of in by_row.items()
        ),
    )


def _exits(patches: Sequence[Patch]) -> dict[str, Exits]:
    found: dict[str, dict[int, int]] = defaultdict(dict)
    for row, patch in enumerate(patches):
        for operation in patch:
            if isinstance(operation, Exit):
                found[operation.tower][row] = -1 if operation.after is None else operation.after
    return {tower: Exits(after) for tower, after in found.items()}


def _detours(
    patches: Sequence[Patch], blocks: Mapping[str, int], named: Sequence[Named]
) -> dict[str, tuple[WriteBack, ...]]:
    found: dict[str, list[WriteBack]] = defaultdict(list)
    for row, patch in enumerate(patches):
        for operation in patch:
            if isinstance(operation, Detour):
                columns = _columns(operation.positions, named[row])
                found[operation.tower] += [
                    WriteBack(row, source, target, columns, operation.loops)
                    for source, target in operation.pairs(blocks[operation.tower])
                ]
    return {tower: tuple(backs) for tower, backs in found.items()}


def _columns(positions: Positions, named: Named) -> tuple[int, ...] | None:
    if positions == "all":
        return None
    return positions if isinstance(positions, tuple) else named[positions]
