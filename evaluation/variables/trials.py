"""Many swaps on many rows: clean parts are read once, units that begin alike share a forward.

One forward of the counterfactuals gives what all units hold there; one of the bases gives what
stands below and before the swaps. Where that is more than the budget, it is read again batch by
batch. Sharing changes no answer: each trial has its own rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluation.variables.clean import Clean, Rows, held, read
from evaluation.variables.interchange import Change, Swap, run
from evaluation.variables.table import Table
from evaluation.variables.units import Handle, Unit, width
from models.hosted import HostedModel

BUDGET = 2**30
"""Bytes of clean activations that are kept."""
ROWS = 64
"""Rows of a forward that reads."""
TOKENS = 16384
"""Tokens, filling included, of a forward that several trials share."""


@dataclass
class Cost:
    """What was run: forwards and backwards of a batch, whole or in part."""

    forwards: int = 0
    backwards: int = 0


@dataclass(frozen=True, eq=False)
class Trial:
    """Units that are swapped together, and how each is changed."""

    handle: Handle
    changes: tuple[Change, ...]

    @property
    def first(self) -> int:
        """The first layer that computes anything else."""
        return min(unit.first for unit in self.handle)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trials:
    """The rows of a table on a model, ready to be swapped.

    Attributes:
        hosted: A model of the evaluation's own.
        units: That trials may swap.
        budget: Bytes of clean activations that are kept.
    """

    hosted: HostedModel
    table: Table
    units: tuple[Unit, ...]
    budget: int = BUDGET
    cost: Cost = field(default_factory=Cost)
    _sources: dict[Unit, Tensor] = field(default_factory=dict)
    _bases: dict[Unit, Tensor] = field(default_factory=dict)
    _kept: dict[int, Clean] = field(default_factory=dict)
    _fitting: dict[int, bool] = field(default_factory=dict)

    def sources(self, units: Iterable[Unit]) -> Mapping[Unit, Float[Tensor, "rows k width"]]:
        """What units hold in the counterfactuals, those that were asked for at least."""
        columns = {name: there for name, (_, there) in self.table.columns.items()}
        return self._of_units(self._sources, self.table.others, columns, set(units))

    def bases(self, units: Iterable[Unit]) -> Mapping[Unit, Float[Tensor, "rows k width"]]:
        """What units hold in the bases, before anything is swapped."""
        columns = {name: own for name, (own, _) in self.table.columns.items()}
        return self._of_units(self._bases, self.table.rows, columns, set(units))

    def logits(
        self, trials: Sequence[Trial], index: Int[Tensor, " some"]
    ) -> Float[Tensor, "trials some m vocab"]:
        """Behind the wanted tokens of some rows, under each trial in one forward.

        Gradients flow into what the trials' changes learn.
        """
        n, first = len(index), min(trial.first for trial in trials)
        own = {name: columns[index] for name, (columns, _) in self.table.columns.items()}
        again = torch.arange(n, device=index.device).repeat(len(trials))
        wanted = self.table.wanted[index]
        clean = self._clean(first, index)[again]
        found = run(self.hosted, clean, self._swaps(trials, index, own), wanted[again])
        self.cost.forwards += 1
        return found.unflatten(0, (len(trials), n))

    def further(
        self, trial: Trial, index: Int[Tensor, " some"], longer: Table
    ) -> Float[Tensor, "some vocab"]:
        """Behind the last wanted token of the same bases with more behind them."""
        own = {name: columns[index] for name, (columns, _) in self.table.columns.items()}
        clean = read(self.hosted, longer.rows, [trial.first])
        self.cost.forwards += 2
        swaps = self._swaps([trial], index, own)
        return run(self.hosted, clean, swaps, longer.wanted[:, -1:])[:, 0]

    def _swaps(
        self, trials: Sequence[Trial], index: Tensor, columns: Mapping[str, Tensor]
    ) -> list[Swap]:
        """The trials' swaps on some rows, one trial's rows behind the other's."""
        n = len(index)
        sources = self.sources(unit for trial in trials for unit in trial.handle)
        return [
            Swap(
                layer=unit.layer,
                head=unit.head,
                columns=columns[unit.position],
                source=sources[unit][index],
                change=change,
                rows=slice(number * n, (number + 1) * n),
            )
            for number, trial in enumerate(trials)
            for unit, change in zip(trial.handle, trial.changes, strict=True)
        ]

    def together(self, trials: Sequence[Trial], rows: int) -> Iterator[list[int]]:
        """Places of trials that may share forwards of so many rows.

        They begin at one layer, their tails are of like length, and they fit `TOKENS`.
        """
        tails = [self._tail(trial) for trial in trials]
        order = sorted(range(len(trials)), key=lambda i: (trials[i].first, tails[i], i))
        some: list[int] = []
        for i in order:
            if some and not (
                trials[i].first == trials[some[0]].first
                and tails[i] <= 2 * tails[some[0]]
                and (len(some) + 1) * rows * tails[i] <= TOKENS
            ):
                yield some
                some = []
            some.append(i)
        if some:
            yield some

    def batches(self, order: Int[Tensor, " rows"], rows: int) -> Iterable[Int[Tensor, " some"]]:
        """The rows in their order, so many at a time."""
        return order.to(self.table.labels.device).split(rows)

    def _tail(self, trial: Trial) -> int:
        """Tokens of a row that are computed anew, at most."""
        starts = self.table.wanted.amin(1)
        for unit in trial.handle:
            columns = self.table.columns[unit.position][0]
            starts = torch.minimum(starts, columns.masked_fill(columns < 0, 2**30).amin(1))
        return int((self.table.rows.lengths - starts).max())

    def _clean(self, first: int, index: Int[Tensor, " some"]) -> Clean:
        """The clean part of some rows below the layer: kept, or read now."""
        if first not in self._kept and self._fits(first):
            self._kept.clear()
            self._kept[first] = _joined(
                [self._read(first, i) for i in self._chunks(len(self.table))]
            )
        if first in self._kept:
            return self._kept[first][index]
        return self._read(first, index)[torch.arange(len(index), device=index.device)]

    def _read(self, first: int, index: Tensor) -> Clean:
        self.cost.forwards += 1
        rows = self.table.rows
        return read(self.hosted, Rows(rows.ids[index], rows.lengths[index]), [first])

    def _fits(self, first: int) -> bool:
        if first not in self._fitting:
            one = self._read(first, torch.arange(1, device=self.table.labels.device))
            self._fitting[first] = one.nbytes * len(self.table) <= self.budget
        return self._fitting[first]

    def _of_units(
        self, kept: dict[Unit, Tensor], rows: Rows, columns: Mapping[str, Tensor], wanted: set[Unit]
    ) -> Mapping[Unit, Tensor]:
        """All units from one forward where the budget allows; else those that are wanted now."""
        if not wanted <= kept.keys():
            kept.clear()
            sizes = (columns[u.position].numel() * width(self.hosted, u) for u in self.units)
            every = sum(sizes) * self.hosted.dtype.itemsize <= self.budget
            kept.update(self._held(rows, columns, self.units if every else tuple(wanted)))
        return kept

    def _held(
        self, rows: Rows, columns: Mapping[str, Tensor], units: Sequence[Unit]
    ) -> dict[Unit, Tensor]:
        parts = []
        for index in self._chunks(len(rows)):
            self.cost.forwards += 1
            here = {name: some[index] for name, some in columns.items()}
            parts.append(held(self.hosted, rows[index], units, here))
        return {unit: torch.cat([part[unit] for part in parts]) for unit in parts[0]}

    def _chunks(self, n: int) -> Iterable[Tensor]:
        return torch.arange(n, device=self.table.labels.device).split(ROWS)


def _joined(parts: Sequence[Clean]) -> Clean:
    """Rows of one width, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    one = parts[0]
    return Clean(
        rows=Rows(
            torch.cat([part.rows.ids for part in parts]),
            torch.cat([part.rows.lengths for part in parts]),
        ),
        entering={i: torch.cat([p.entering[i] for p in parts]) for i in one.entering},
        keys={i: torch.cat([p.keys[i] for p in parts]) for i in one.keys},
        values={i: torch.cat([p.values[i] for p in parts]) for i in one.values},
    )
