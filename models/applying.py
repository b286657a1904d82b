"""How a change reaches its row: hooks that are installed once and read the forward's own plan.

Covered: LowRank at linear layers; Shift, Clamp, Exit and Detour at the blocks of a tower; reading
streams, inputs and outputs. Families that call their blocks one by one lead detours themselves
(`models.detour`): grouped by plan, and no further than the last visual token. The plan lives in a
ContextVar for one forward, so neither threads nor models can mix. Not covered: `torch.compile`d
graphs (Python hooks run only while traced), and detours while decoding from a cache (they belong to
the prefill).
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from models.errors import BadPatch, PatchNotApplied
from models.plan import (
    MODES,
    Carrying,
    Exits,
    LowRanks,
    Moves,
    Plan,
    Shifts,
    Spots,
    WriteBack,
    detour_place,
)
from models.site import block, embedding


@dataclass
class Run:
    """One forward: its plan, and what it really changed.

    Attributes:
        tokens: Tokens that each row has, if the caller knows; then every change must reach all.
        changed: Tokens changed, per (row, place).
        scratch: True while a detour runs blocks ahead: nothing there counts.
        led: The family's own loop makes the detours, so that the hooks do not.
    """

    plan: Plan
    tokens: int | None = None
    changed: Counter[tuple[int, str]] = field(default_factory=Counter)
    scratch: bool = False
    clean: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    led: bool = False

    def count(self, row: int, place: str, tokens: int) -> None:
        """These tokens of the row were changed at the place."""
        self.count_each((row,), place, tokens)

    def count_each(self, rows: Iterable[int], place: str, tokens: int) -> None:
        """So many tokens of each of the rows were changed at the place."""
        if not self.scratch:
            changed = self.changed
            for row in rows:
                changed[row, place] = changed.get((row, place), 0) + tokens

    def tokens_changed(self, row: int) -> int:
        """Changes of single tokens in the row, over all places."""
        return sum(n for (r, _), n in self.changed.items() if r == row)

    @property
    def rows_changed(self) -> frozenset[int]:
        """Rows with at least one change."""
        return frozenset(row for (row, _), n in self.changed.items() if n)

    def verify(self) -> None:
        """PatchNotApplied, naming the rows, unless every operation did what was planned.

        Several forwards under one plan multiply the counts.
        """
        changed, every = self.changed, self.tokens or 1
        wrong = [
            at
            for at, planned in self.plan.planned.items()
            if not (found := changed.get(at, 0)) or found % (planned or every)
        ]
        if wrong:
            unit = self.plan.planned[wrong[0]] or every
            rows, (_, place) = frozenset(row for row, _ in wrong), wrong[0]
            raise PatchNotApplied(rows, place, unit, changed[wrong[0]])


_runs: ContextVar[Mapping[int, Run]] = ContextVar("_runs")
_readers: ContextVar[tuple[tuple[int, dict[str, list[Tensor]]], ...]] = ContextVar("_readers")
_tallies: ContextVar[tuple[tuple[int, list[Run]], ...]] = ContextVar("_tallies")


@contextmanager
def running(plan: Plan, owner: int, tokens: int | None = None) -> Iterator[Run]:
    """The plan holds in this block, for forwards of `owner` in this thread; then it is checked."""
    others, run = _runs.get({}), Run(plan, tokens)
    if owner in others:
        raise RuntimeError("A plan is already in force for this model in this thread.")
    token = _runs.set({**others, owner: run})
    for teller, runs in _tallies.get(()):
        if teller == owner:
            runs.append(run)
    try:
        yield run
    finally:
        _runs.reset(token)
    run.verify()


@contextmanager
def running_ahead(plan: Plan, owner: int) -> Iterator[None]:
    """The plan holds in this block instead of the one in force; nothing is counted or seen."""
    token = _runs.set({**_runs.get({}), owner: Run(plan, scratch=True)})
    try:
        yield
    finally:
        _runs.reset(token)


@contextmanager
def tallying(owner: int) -> Iterator[list[Run]]:
    """Collect the runs of `owner` in this thread: what its forwards really changed."""
    runs: list[Run] = []
    token = _tallies.set((*_tallies.get(()), (owner, runs)))
    try:
        yield runs
    finally:
        _tallies.reset(token)


@contextmanager
def untallying(owner: int) -> Iterator[None]:
    """Runs of `owner` in this block stand in no tally of this thread."""
    token = _tallies.set(tuple(tally for tally in _tallies.get(()) if tally[0] != owner))
    try:
        yield
    finally:
        _tallies.reset(token)


@contextmanager
def seeing(sites: tuple[str, ...], owner: int) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what passes the sites: streams, inputs of linear layers, outputs as `site:out`."""
    seen: dict[str, list[Tensor]] = {site: [] for site in sites}
    token = _readers.set((*_readers.get(()), (owner, seen)))
    try:
        yield seen
    finally:
        _readers.reset(token)


def in_force(owner: int) -> Run | None:
    """The run of this model in this thread, if a plan is in force."""
    return _runs.get({}).get(owner)


@dataclass(frozen=True)
class Hooks:
    """What is installed in one model; `remove` takes all of it out."""

    undo: ExitStack

    def remove(self) -> None:
        """Take every hook out again."""
        self.undo.close()


def install(
    owner: int, linears: Mapping[str, nn.Module], towers: Mapping[str, nn.ModuleList]
) -> Hooks:
    """Put hooks at every site: all or none."""
    with ExitStack() as undo:
        for site, module in linears.items():
            undo.callback(module.register_forward_hook(_at_linear(owner, site)).remove)
        for tower, blocks in towers.items():
            first = _before_first(owner, embedding(tower))
            _push(undo, blocks[0].register_forward_pre_hook, first)
            for index, module in enumerate(blocks):
                # In front of the library's own hooks, so that its hidden_states show the change.
                _push(undo, module.register_forward_hook, _after_block(owner, tower, index, blocks))
        return Hooks(undo.pop_all())


def _push(undo: ExitStack, register: Callable[..., Any], hook: Callable[..., Any]) -> None:
    undo.callback(register(hook, with_kwargs=True, prepend=True).remove)


def _see(owner: int, site: str, value: Tensor) -> None:
    readers = _readers.get(())
    run = in_force(owner) if readers else None
    for reader, seen in readers:
        if reader == owner and site in seen and not (run and run.scratch):
            seen[site].append(value)


def _at_linear(owner: int, site: str) -> Callable[..., Tensor | None]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        run = in_force(owner)
        tables = run.plan.low_ranks.get(site, ()) if run else ()
        if not tables and not _readers.get(()):
            return None  # there are hundreds of these layers, and most steps want none of them
        _see(owner, site, args[0])
        changed = output
        if run and args[0].shape[0] == run.plan.size:
            for table in tables:
                changed = _add(args[0], changed, table)
                tokens = args[0].shape[1] if args[0].ndim == 3 else 1
                run.count_each(table.rows, site, tokens)
        _see(owner, f"{site}:out", changed)
        return None if changed is output else changed

    return hook


def _add(x: Tensor, output: Tensor, table: LowRanks) -> Tensor:
    """Projections of pooled states have no token axis."""
    if x.ndim == 2:
        return add_low_ranks(x[:, None], output[:, None], table)[:, 0]
    return add_low_ranks(x, output, table)


def add_low_ranks(
    x: Float[Tensor, "rows tokens inner"], output: Float[Tensor, "rows tokens out"], table: LowRanks
) -> Float[Tensor, "rows tokens out"]:
    """Output + (x . right^T) . left^T for the rows of the table, computed in float32."""
    inner = torch.bmm(x[table.index].float(), table.right.mT)
    return _added(output, table, torch.bmm(inner, table.left.mT).to(output.dtype))


def _added(
    values: Float[Tensor, "rows tokens d"], table: Carrying, change: Float[Tensor, "carrying _ d"]
) -> Float[Tensor, "rows tokens d"]:
    """The table's rows with their change; others are copied: to add zero makes 0.0 of -0.0."""
    if table.in_order and len(table.rows) == values.shape[0]:
        return values + change
    # Not `index_add`, which takes the rows one after another.
    return values.index_copy(0, table.index, values.index_select(0, table.index) + change)


def _before_first(owner: int, site: str) -> Callable[..., Any]:
    """What enters block 0 is read and moved here."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = in_force(owner)
        stream = args[0] if args else kwargs["hidden_states"]
        changed = _move(run, site, stream) if run else stream
        _see(owner, site, changed)
        if changed is stream:
            return None
        return (
            ((changed, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": changed})
        )

    return hook


def _after_block(owner: int, tower: str, index: int, blocks: nn.ModuleList) -> Callable[..., Any]:
    """What leaves the block: exits first, then moves, then what a detour writes back."""
    site = block(tower, index)

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        run = in_force(owner)
        stream = output[0] if isinstance(output, tuple) else output
        changed = stream
        if run and stream.shape[0] == run.plan.size:
            if exits := run.plan.exits.get(tower):
                entered = args[0] if args else kwargs["hidden_states"]
                changed = _pass_through(run, tower, index, exits, (entered, changed))
            changed = _move(run, site, changed)
            if tower in run.plan.detours and not run.scratch and not run.led:
                changed = _write_back(run, tower, index, changed, _Ahead(blocks, args[1:], kwargs))
        _see(owner, site, changed)
        if changed is stream:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


def _pass_through(
    run: Run, tower: str, index: int, exits: Exits, streams: tuple[Tensor, Tensor]
) -> Tensor:
    """Rows that have left the tower keep the stream with which they entered the block."""
    entered, left = streams
    gone = [row for row, after in exits.after.items() if index > after]
    if not gone:
        return left
    for row in gone:
        run.count(row, f"{tower}.exit", left.shape[1])
    rows = torch.tensor(gone, device=left.device)
    return left.index_copy(0, rows, entered[rows])


def _move(run: Run, site: str, stream: Tensor) -> Tensor:
    """Shifts and clamps of one stream."""
    if stream.shape[0] == run.plan.size:
        if shifts := run.plan.shifts.get(site):
            stream = add_shifts(stream, shifts)
            run.count_each(shifts.rows, site, stream.shape[1])
        if spots := run.plan.spots.get(site):
            stream = _add_spots(run, site, stream, spots)
        for moves in run.plan.moves.get(site, ()):
            stream = _move_alike(run, site, moves, stream)
    return stream


def add_shifts(
    stream: Float[Tensor, "rows tokens d"], shifts: Shifts
) -> Float[Tensor, "rows tokens d"]:
    """Each carrying row's vector added to all its tokens; other rows are copied."""
    return _added(stream, shifts, shifts.vector.to(stream.dtype)[:, None])


def _add_spots(
    run: Run, site: str, stream: Float[Tensor, "rows tokens d"], spots: Spots
) -> Float[Tensor, "rows tokens d"]:
    """Each place's vector added; places behind the end are left out and not counted."""
    (rows, columns), vector, tokens = spots.at, spots.vector, stream.shape[1]
    for row, of in zip(spots.rows, spots.columns, strict=True):
        run.count(row, site, bisect_left(of, tokens))
    if spots.length > tokens:
        inside = columns < tokens
        rows, columns, vector = rows[inside], columns[inside], vector[inside]
    changed = stream[rows, columns] + vector.to(stream.dtype)
    return stream.index_put((rows, columns), changed)


def _move_alike(run: Run, site: str, moves: Moves, stream: Tensor) -> Tensor:
    """Rows of one table; a row's amounts all come from one read of its stream."""
    meant = _meant(moves, stream.shape[1]).to(stream.device)
    for row, tokens in zip(moves.rows, meant.any(dim=1).sum(dim=1).tolist(), strict=True):
        run.count(row, site, tokens)
    before = stream[moves.index]
    amount = amounts(before.float(), moves).masked_fill(~meant, 0.0)
    change = torch.bmm(amount.mT, moves.decoder).to(stream.dtype)
    # Adding zero would still turn -0.0 into 0.0: tokens that are not meant are copied.
    touched = meant.any(dim=1)[..., None]
    return stream.index_copy(0, moves.index, torch.where(touched, before + change, before))


def _meant(moves: Moves, tokens: int) -> Bool[Tensor, "carrying features tokens"]:
    """Which tokens each feature moves; positions behind the end are left out and not counted."""
    found = torch.zeros(*moves.bias.shape, tokens, dtype=torch.bool)
    for row, of in enumerate(moves.columns):
        for feature, columns in enumerate(of):
            inside = slice(None) if columns is None else [c for c in columns if c < tokens]
            found[row, feature, inside] = True
    return found


def amounts(
    x: Float[Tensor, "carrying tokens d"], moves: Moves
) -> Float[Tensor, "carrying features tokens"]:
    """How much of each decoder is added: 1 for a shift, g(a) - a for a clamp, 0 for padding."""
    z = torch.bmm(moves.encoder, x.mT) + moves.bias[..., None]
    active = torch.where(z > moves.threshold[..., None], z, torch.zeros_like(z))
    value = moves.value[..., None]
    by_mode = {
        "none": torch.zeros_like(z),
        "shift": torch.ones_like(z),
        "set": value - active,
        "min": active.clamp(min=value) - active,
        "multiply": active * value - active,
    }
    kind = moves.kind[..., None].expand_as(z)
    return torch.stack([by_mode[mode] for mode in MODES]).gather(0, kind[None])[0]


@dataclass(frozen=True)
class _Ahead:
    """How to call the blocks behind a detour's end: with what the target's own call brought."""

    blocks: nn.ModuleList
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def run(self, first: int, last: int, stream: Tensor) -> dict[int, Tensor]:
        """The streams that leave blocks `first` to `last`; the real cache is not touched."""
        quiet = {k: v for k, v in self.kwargs.items() if k != "hidden_states"}
        quiet |= {k: v for k, v in (("use_cache", False), ("past_key_values", None)) if k in quiet}
        found = {}
        for index in range(first, last + 1):
            output = self.blocks[index](stream, *self.args, **quiet)
            stream = output[0] if isinstance(output, tuple) else output
            found[index] = stream
        return found


def _write_back(run: Run, tower: str, index: int, stream: Tensor, ahead: _Ahead) -> Tensor:
    """Behind block `index`: rows whose detour ends here get their clean later stream written back.

    At the lowest target, before anything is written, the later blocks run once in scratch on the
    clean stream; edits and steering act there as they will in the real pass.
    """
    backs = run.plan.detours[tower]
    if any(back.loops > 1 for back in backs):
        raise BadPatch("Only a family that leads its own detours can loop them.")
    if index == min(back.target for back in backs):
        run.scratch = True
        try:
            furthest = max(back.source for back in backs)
            run.clean[tower] = ahead.run(index + 1, furthest, stream)
        finally:
            run.scratch = False
    due = [back for back in backs if back.target == index]
    if not due:
        return stream
    changed = stream.clone()
    for back in due:
        _write(run, tower, back, changed)
    return changed


def _write(run: Run, tower: str, back: WriteBack, stream: Tensor) -> None:
    tokens = stream.shape[1]
    columns = range(tokens) if back.columns is None else [c for c in back.columns if c < tokens]
    here = list(columns)
    stream[back.row, here] = run.clean[tower][back.source][back.row, here]
    run.count(back.row, detour_place(tower, back.target), len(here))
