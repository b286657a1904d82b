"""How a change reaches its row: hooks that are installed once and read the forward's own plan.

Covered: LowRank at linear layers; Shift, Clamp, Exit and Detour at the blocks of a tower; reading
streams and inputs. The plan lives in a ContextVar for one forward, so neither threads nor models can
mix. Not covered: `torch.compile`d graphs (a Python hook runs only while they are traced).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.errors import PatchNotApplied
from models.patch import Clamp, Shift
from models.plan import LowRanks, Moves, Plan, expected, pairs
from models.site import block, embedding


@dataclass
class Run:
    """One forward: its plan, and what it really changed (tokens per row and place)."""

    plan: Plan
    owner: int
    changed: Counter[tuple[int, str]] = field(default_factory=Counter)
    detouring: bool = False
    clean: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    def tokens(self, row: int) -> int:
        """Token positions at which the row was changed, over all places."""
        return sum(n for (r, _), n in self.changed.items() if r == row)

    def verify(self, tokens: int | None) -> None:
        """PatchNotApplied, naming the rows, unless every operation did what was planned."""
        wrong = [
            (row, site)
            for row, site in expected(self.plan)
            if not self.changed[row, site]
            or (site in self.plan.low_ranks and tokens and self.changed[row, site] != tokens)
        ]
        if wrong:
            row, site = wrong[0]
            raise PatchNotApplied(
                site,
                frozenset(r for r, _ in wrong),
                f"{'every' if tokens is None else tokens} tokens of row {row}",
                f"{self.changed[row, site]}",
            )


_run: ContextVar[Run | None] = ContextVar("_run", default=None)
_seen: ContextVar[tuple[int, dict[str, list[Tensor]]] | None] = ContextVar("_seen", default=None)


@contextmanager
def running(plan: Plan, owner: int, tokens: int | None) -> Iterator[Run]:
    """The plan holds inside this block, for forwards of `owner` in this thread; then it is checked."""
    run = Run(plan, owner)
    token = _run.set(run)
    try:
        yield run
    finally:
        _run.reset(token)
    run.verify(tokens)


@contextmanager
def seeing(sites: tuple[str, ...], owner: int) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what passes the sites: streams, inputs of linear layers, outputs as `site:out`."""
    seen: dict[str, list[Tensor]] = {site: [] for site in sites}
    token = _seen.set((owner, seen))
    try:
        yield seen
    finally:
        _seen.reset(token)


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
            for index, module in enumerate(blocks):
                before = _before_block(owner, tower, index, blocks)
                after = _after_block(owner, tower, index)
                undo.callback(
                    module.register_forward_pre_hook(before, with_kwargs=True, prepend=True).remove
                )
                undo.callback(
                    module.register_forward_hook(after, with_kwargs=True, prepend=True).remove
                )
        return Hooks(undo.pop_all())


def _mine(owner: int) -> Run | None:
    run = _run.get()
    return run if run is not None and run.owner == owner else None


def _see(owner: int, site: str, value: Tensor) -> None:
    seen = _seen.get()
    if seen is not None and seen[0] == owner and site in seen[1]:
        seen[1][site].append(value)


def _at_linear(owner: int, site: str):  # noqa: ANN202 - torch's own hook signature
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        _see(owner, site, args[0])
        run = _mine(owner)
        table = run.plan.low_ranks.get(site) if run else None
        if run and table:
            output = add_low_ranks(args[0], output, table)
            for row in table.rows.tolist():
                run.changed[row, site] += args[0].shape[1]
        _see(owner, f"{site}:out", output)
        return output if table else None

    return hook


def add_low_ranks(
    x: Float[Tensor, "rows tokens inner"], output: Float[Tensor, "rows tokens out"], table: LowRanks
) -> Float[Tensor, "rows tokens out"]:
    """output + (x . right^T) . left^T for the rows of the table, computed in float32."""
    inner = torch.bmm(x[table.rows].float(), table.right.mT)
    change = torch.bmm(inner, table.left.mT).to(output.dtype)
    return output.index_add(0, table.rows, change)


def _before_block(owner: int, tower: str, index: int, blocks: nn.ModuleList):  # noqa: ANN202
    def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]):  # noqa: ANN202
        run = _mine(owner)
        stream = args[0] if args else kwargs["hidden_states"]
        if not isinstance(stream, Tensor) or (run and run.detouring):
            return None
        changed = stream
        if index == 0:
            if run and (moves := run.plan.moves.get(embedding(tower))):
                changed = _move(run, embedding(tower), moves, stream)
            _see(owner, embedding(tower), changed)
        elif run and tower in run.plan.detours:
            changed = _detour(run, tower, index - 1, blocks, changed, kwargs)
        if changed is stream:
            return None
        return ((changed, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": changed})

    return hook


def _after_block(owner: int, tower: str, index: int):  # noqa: ANN202
    site = block(tower, index)

    def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object], output):  # noqa: ANN001, ANN202
        run = _mine(owner)
        stream = output[0] if isinstance(output, tuple) else output
        changed = stream
        if run and (exits := run.plan.exits.get(tower)):
            entered = args[0] if args else kwargs["hidden_states"]
            changed = _pass_through(run, tower, index, exits, entered, changed)
        if run and (moves := run.plan.moves.get(site)):
            changed = _move(run, site, moves, changed)
        if not (run and run.detouring):
            _see(owner, site, changed)
        if changed is stream:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


def _pass_through(  # noqa: PLR0913 - one hook's whole situation
    run: Run, tower: str, index: int, exits: Mapping[int, int], entered: object, left: Tensor
) -> Tensor:
    """Rows that have left the tower keep the stream they entered the block with."""
    gone = [row for row, after in exits.items() if index > after]
    for row, after in exits.items():
        run.changed[row, f"{tower}.exit"] += 1 if after >= index else left.shape[1]
    if not gone or not isinstance(entered, Tensor):
        return left
    rows = torch.tensor(gone, device=left.device)
    return left.index_copy(0, rows, entered[rows])


def _move(run: Run, site: str, moves: Moves, stream: Tensor) -> Tensor:
    """Shifts and clamps of one stream: all deltas come from one read of it."""
    changed = stream.clone()
    for row, operations in moves.by_row.items():
        before = stream[row]
        for operation in operations:
            columns = run.plan.named(row, operation.positions)
            change = delta(before[columns], operation)
            changed[row, columns] = changed[row, columns] + change.to(stream.dtype)
            run.changed[row, site] += change.shape[0]
    return changed


def delta(
    x: Float[Tensor, "tokens d"], operation: Shift | Clamp
) -> Float[Tensor, "tokens d"]:
    """What a Shift or a Clamp adds to these tokens of the stream, in float32."""
    if isinstance(operation, Shift):
        vector = operation.vector.to(x.device, torch.float32)
        return vector.expand(x.shape[0], -1)
    encoder, decoder = (v.to(x.device, torch.float32) for v in (operation.encoder, operation.decoder))
    z = x.float() @ encoder + operation.encoder_bias
    active = torch.where(z > operation.threshold, z, torch.zeros_like(z))
    match operation.mode:
        case "set":
            wanted = torch.full_like(active, operation.value)
        case "min":
            wanted = active.clamp(min=operation.value)
        case "multiply":
            wanted = active * operation.value
    return (wanted - active)[:, None] * decoder


def _detour(  # noqa: PLR0913 - one hook's whole situation
    run: Run, tower: str, left: int, blocks: nn.ModuleList, stream: Tensor, kwargs: dict[str, object]
) -> Tensor:
    """After block `left`: rows whose detour ends here get their clean later stream written back.

    At the lowest target, before anything is written, the later blocks run once in scratch on the
    clean stream, without a cache; edits and steering act there as they will in the real pass.
    """
    ends = {
        row: [(s, t, d) for d in detours for s, t in pairs(d, len(blocks))]
        for row, detours in run.plan.detours[tower].items()
    }
    flat = [pair for found in ends.values() for pair in found]
    if left not in {target for _, target, _ in flat}:
        return stream
    if left == min(target for _, target, _ in flat):
        furthest = max(source for source, _, _ in flat)
        run.clean[tower] = _run_ahead(run, blocks, left, furthest, stream, kwargs)
    changed = stream.clone()
    for row, found in ends.items():
        for source, target, detour in found:
            if target == left:
                columns = run.plan.named(row, detour.positions)
                written = run.clean[tower][source][row, columns]
                changed[row, columns] = written
                run.changed[row, block(tower, detour.target)] += written.shape[0]
    return changed


def _run_ahead(  # noqa: PLR0913
    run: Run, blocks: nn.ModuleList, left: int, last: int, stream: Tensor, kwargs: dict[str, object]
) -> dict[int, Tensor]:
    quiet = {**kwargs, "use_cache": False} if "use_cache" in kwargs else dict(kwargs)
    if "past_key_values" in quiet:
        quiet["past_key_values"] = None
    quiet.pop("hidden_states", None)
    found, counted, run.detouring = {}, run.changed.copy(), True
    try:
        for index in range(left + 1, last + 1):
            output = blocks[index](stream, **quiet)
            stream = output[0] if isinstance(output, tuple) else output
            found[index] = stream
    finally:
        run.detouring, run.changed = False, counted
    return found
