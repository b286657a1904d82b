"""The rows' patches packed into tables for one forward.

Row numbers are resolved here, once: a table holds only the rows that carry an operation, so rows
without one are never touched and the cost does not grow with the number of distinct patches.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.patch import Clamp, Detour, Exit, LowRank, Patch, Positions, Shift, digest_of
from models.site import block


@dataclass(frozen=True)
class LowRanks:
    """Every LowRank of one site; ranks are padded with zeros, which change nothing."""

    rows: Int[Tensor, " carrying"]
    left: Float[Tensor, "carrying out rank"]
    right: Float[Tensor, "carrying rank inner"]


@dataclass(frozen=True)
class Moves:
    """Shifts and clamps of one stream, row by row, in digest order."""

    by_row: Mapping[int, tuple[Shift | Clamp, ...]]


@dataclass(frozen=True)
class Plan:
    """What one forward does to all its rows.

    Attributes:
        patches: One per batch row.
        low_ranks: Tables by linear site.
        moves: Shifts and clamps by stream site.
        exits: Per tower, the row numbers and the last block that each still runs (-1: none).
        detours: Per tower, row number to its detours.
        positions: Per row, what the named positions mean (`visual`, `prompt`, ...).
    """

    patches: tuple[Patch, ...]
    low_ranks: Mapping[str, LowRanks] = field(default_factory=dict)
    moves: Mapping[str, Moves] = field(default_factory=dict)
    exits: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    detours: Mapping[str, Mapping[int, tuple[Detour, ...]]] = field(default_factory=dict)
    positions: Sequence[Mapping[str, tuple[int, ...]]] = ()

    def named(self, row: int, positions: Positions) -> slice | list[int]:
        """The columns that `positions` means in a row; KeyError if nobody said."""
        if positions == "all":
            return slice(None)
        if isinstance(positions, tuple):
            return list(positions)
        return list(self.positions[row][positions])


def pack(
    patches: Sequence[Patch],
    positions: Sequence[Mapping[str, tuple[int, ...]]] = (),
    device: str | torch.device = "cpu",
) -> Plan:
    """The plan for a batch with these patches, one per row."""
    low_ranks: dict[str, dict[int, list[LowRank]]] = defaultdict(lambda: defaultdict(list))
    moves: dict[str, dict[int, list[Shift | Clamp]]] = defaultdict(lambda: defaultdict(list))
    exits: dict[str, dict[int, int]] = defaultdict(dict)
    detours: dict[str, dict[int, list[Detour]]] = defaultdict(lambda: defaultdict(list))
    for row, patch in enumerate(patches):
        for operation in sorted(patch, key=digest_of):
            match operation:
                case LowRank(site=site):
                    low_ranks[site][row].append(operation)
                case Shift(site=site) | Clamp(site=site):
                    moves[site][row].append(operation)
                case Exit(tower=tower, after=after):
                    exits[tower][row] = -1 if after is None else after
                case Detour(tower=tower):
                    detours[tower][row].append(operation)
    return Plan(
        patches=tuple(patches),
        low_ranks={site: _table(of_row, device) for site, of_row in low_ranks.items()},
        moves={s: Moves({r: tuple(ops) for r, ops in by.items()}) for s, by in moves.items()},
        exits={t: dict(by) for t, by in exits.items()},
        detours={t: {r: tuple(d) for r, d in by.items()} for t, by in detours.items()},
        positions=positions,
    )


def _table(of_row: Mapping[int, list[LowRank]], device: str | torch.device) -> LowRanks:
    left = [torch.cat([o.left for o in ops], dim=1) for ops in of_row.values()]
    right = [torch.cat([o.right for o in ops], dim=0) for ops in of_row.values()]
    rank = max(piece.shape[0] for piece in right)
    pad = torch.nn.functional.pad
    return LowRanks(
        rows=torch.tensor(list(of_row), device=device),
        left=torch.stack([pad(p, (0, rank - p.shape[1])) for p in left]).to(device, torch.float32),
        right=torch.stack([pad(p, (0, 0, 0, rank - p.shape[0])) for p in right]).to(
            device, torch.float32
        ),
    )


def pairs(detour: Detour, blocks: int) -> list[tuple[int, int]]:
    """(source, target) of every pair in the window that lies inside the tower."""
    reach = detour.window // 2
    shifted = [(detour.source + i, detour.target + i) for i in range(-reach, reach + 1)]
    return [(s, t) for s, t in shifted if 0 <= t and s < blocks]


def expected(plan: Plan) -> list[tuple[int, str]]:
    """Every (row, place) that must report a change after the forward."""
    found = [(r, site) for site, table in plan.low_ranks.items() for r in table.rows.tolist()]
    found += [(r, site) for site, moves in plan.moves.items() for r in moves.by_row]
    found += [(r, f"{tower}.exit") for tower, by in plan.exits.items() for r in by]
    for tower, by in plan.detours.items():
        found += [(r, block(tower, d.target)) for r, ds in by.items() for d in ds]
    return found
