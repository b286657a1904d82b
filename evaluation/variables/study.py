"""A study of one causal variable: which units, and which of their features, carry it.

Rows are kept where the model is right, split by set, featurizers are fitted on one part and scored
on the other, beside controls: everything swapped, random features of equal number, nothing swapped.
Protocol: MIB's causal-variable track (Mueller et al. 2025). The study owns its model; nothing of it
stays changed.
"""

import random
import resource
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import cast

import numpy as np
import torch

from evaluation.behaviours.pairs import Dropped
from evaluation.behaviours.swaps import PreparedSwaps, SwapIds
from evaluation.variables import surface
from evaluation.variables.benchmark import as_benchmark
from evaluation.variables.errors import BadStudy, NoFeatures, NothingKept
from evaluation.variables.featurizers import FULL, Codes, Featurizer, random_like
from evaluation.variables.fitting import dictionaries_of, fitted, seed_of
from evaluation.variables.keeping import keep
from evaluation.variables.objective import (
    CHECKERS,
    Answers,
    Coefficients,
    Differences,
    least_squares,
)
from evaluation.variables.report import Spent, VariableReport
from evaluation.variables.score import accuracies, differences, errors
from evaluation.variables.settings import FITTED, OF_SAE, VariableStudy
from evaluation.variables.stored import Made
from evaluation.variables.surface import Cell, Surface
from evaluation.variables.table import positions_of, table
from evaluation.variables.trials import Cost, Trial, Trials
from evaluation.variables.units import Handle, Unit, check, sweep, width
from models.hosted import HostedModel
from models.progress import Progress
from steerers.dictionary import Dictionary

_NOTHING = "the mask chose no feature, so nothing is swapped."
_SIGNS = ("output_token", "output_position")
"""The variables of the indirect object's task, in the order of signs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted(Progress):
    """The step at which all featurizers are there, per handle one for each of its units."""

    made: Made


def study(
    hosted: HostedModel,
    swaps: PreparedSwaps,
    settings: VariableStudy,
    *,
    held_out: PreparedSwaps | None = None,
    dictionaries: Mapping[str, Dictionary] | None = None,
    made: Made | None = None,
) -> Generator[Progress, None, VariableReport]:
    """Find out where a variable sits.

    Args:
        hosted: A model of the evaluation's own.
        swaps: Interchanges; if `held_out` is given, all of them are for fitting.
        settings: What is asked.
        held_out: Interchanges to score.
        dictionaries: SAEs by id, for kinds that need them.
        made: What an equal study told in `Fitted` before it was broken off.

    Raises:
        BadStudy, UnknownUnit: The settings do not fit.
        NothingKept: No row can be used.
        NoFeatures: No mask chose anything, anywhere.
    """
    started, settings = time.monotonic(), as_benchmark(settings, hosted)
    rows = _Rows.of(hosted, swaps, held_out, settings)
    yield Progress(stage="rows", done=1, total=1, values={"kept": float(rows.kept)})
    handles, of_unit = _handles(hosted, settings, rows.all, dictionaries or {})
    units = tuple(dict.fromkeys(unit for handle in handles for unit in handle))
    fit = _trials(hosted, rows.train, units, settings)
    scored = fit if rows.test is rows.train else _trials(hosted, rows.test, units, settings)
    coefficients = _coefficients(fit, handles, settings)
    objective = _objective(fit, coefficients)
    if made is None:
        found = yield from fitted(fit, handles, settings, objective, of_unit)
        made = tuple(zip(handles, found, strict=True))
        yield Fitted(stage="fitted", done=1, total=1, made=made)
    some_of = [some for _, some in made]
    if all(any(f.empty for f in some) for some in some_of):
        raise NoFeatures(", ".join(sorted({unit.name for unit in units})[:4]))
    scorer = _Scorer(scored, handles, settings, coefficients)
    found, controls = yield from scorer.surfaces(some_of)
    return VariableReport(
        model=hosted.name,
        fingerprint=hosted.fingerprint,
        settings=settings,
        trained=0 if rows.test is rows.train else len(rows.train),
        scored=len(rows.test),
        dropped=rows.dropped,
        found=found,
        controls=controls,
        no_op=scorer.no_op() if "no_op" in settings.controls else {},
        indistinct=_indistinct(rows.test, settings.variable),
        coefficients=coefficients,
        featurizers=tuple(made),
        spent=_spent(started, fit.cost, scored.cost),
        versions={name: version(name) for name in ("tiller", "torch", "transformers")},
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """Rows to fit on and rows to score, the same where nothing is fitted."""

    train: tuple[SwapIds, ...]
    test: tuple[SwapIds, ...]
    dropped: tuple[Dropped, ...]

    @classmethod
    def of(
        cls,
        hosted: HostedModel,
        swaps: PreparedSwaps,
        held_out: PreparedSwaps | None,
        settings: VariableStudy,
    ) -> "_Rows":
        kept, dropped = _usable(hosted, swaps, settings)
        if held_out is not None:
            more, lost = _usable(hosted, held_out, settings, len(swaps.kept) + len(swaps.dropped))
            return cls(train=kept, test=more, dropped=(*dropped, *lost))
        if settings.featurizer.kind not in FITTED:
            return cls(train=kept, test=kept, dropped=dropped)
        train, test = _split(kept, settings.held_out, settings.seed)
        return cls(train=train, test=test, dropped=dropped)

    @property
    def all(self) -> tuple[SwapIds, ...]:
        return self.train if self.test is self.train else (*self.train, *self.test)

    @property
    def kept(self) -> int:
        return len(self.all)


def _usable(
    hosted: HostedModel, swaps: PreparedSwaps, settings: VariableStudy, first: int = 0
) -> tuple[tuple[SwapIds, ...], tuple[Dropped, ...]]:
    return keep(
        hosted,
        swaps,
        settings.variable,
        _positions(settings),
        new_tokens=settings.new_tokens,
        right=CHECKERS[settings.checker],
        first=first,
    )


def _positions(settings: VariableStudy) -> tuple[str, ...]:
    if isinstance(settings.units, str):
        return settings.positions
    return tuple(dict.fromkeys(unit.position for unit in settings.units))


def _split(
    swaps: Sequence[SwapIds], held_out: float, seed: int
) -> tuple[tuple[SwapIds, ...], tuple[SwapIds, ...]]:
    """(train, test), so many of each set; a set of one row is scored."""
    draw, train, test = random.Random(seed), list[SwapIds](), list[SwapIds]()  # noqa: S311
    for name in sorted({swap.of_set for swap in swaps}):
        own = [swap for swap in swaps if swap.of_set == name]
        draw.shuffle(own)
        scored = max(1, round(held_out * len(own)))
        test += own[:scored]
        train += own[scored:]
    if not train:
        raise NothingKept("all rows are needed for scoring; none is left to fit on.")
    return tuple(train), tuple(test)


def _handles(
    hosted: HostedModel,
    settings: VariableStudy,
    swaps: Sequence[SwapIds],
    dictionaries: Mapping[str, Dictionary],
) -> tuple[tuple[Handle, ...], Mapping[Unit, Dictionary]]:
    named = positions_of(swaps)
    if isinstance(settings.units, str):
        handles = sweep(hosted, settings.positions or named)
        wanted = set(settings.layers)
        handles = tuple(h for h in handles if not wanted or h[0].layer in wanted)
    else:
        handles = tuple((unit,) for unit in settings.units)
    units = [unit for handle in handles for unit in handle]
    check(hosted, units, named)
    of_unit = dictionaries_of(hosted, units, settings.featurizer, dictionaries)
    if settings.featurizer.kind in OF_SAE:
        handles = tuple(handle for handle in handles if handle[0] in of_unit)
    if not handles:
        raise BadStudy("No unit is left: name a layer, a position, or an SAE of a unit.", "units")
    return ((tuple(u for h in handles for u in h),) if settings.jointly else handles), of_unit


def _trials(
    hosted: HostedModel,
    swaps: Sequence[SwapIds],
    units: tuple[Unit, ...],
    settings: VariableStudy,
) -> Trials:
    positions = dict.fromkeys(unit.position for unit in units)
    rows = table(
        swaps,
        settings.variable,
        positions,
        new_tokens=settings.new_tokens,
        device=hosted.device,
    )
    return Trials(hosted=hosted, table=rows, units=units, budget=settings.budget)


def _objective(trials: Trials, coefficients: Coefficients | None) -> Answers | Differences:
    if coefficients is None:
        return Answers(trials.table)
    return Differences(trials.table, coefficients)


def _coefficients(
    trials: Trials, handles: Sequence[Handle], settings: VariableStudy
) -> Coefficients | None:
    """As asked, or fitted to full swaps of all units; None where answers are the metric."""
    if settings.metric == "iia":
        return None
    swaps = trials.table.swaps
    if not all(swap.distractor and settings.variable in swap.signs for swap in swaps):
        raise BadStudy("The rows have no distractor and signs, so no logit difference.", "metric")
    if settings.coefficients is not None:
        return settings.coefficients
    if any(name not in swap.signs for swap in swaps for name in _SIGNS):
        raise BadStudy(f"The rows need the signs of {' and '.join(_SIGNS)}.", "coefficients")
    every = tuple(dict.fromkeys(unit for handle in handles for unit in handle))
    full = differences(trials, Trial(every, (FULL,) * len(every)))
    # Everything is swapped: the token's sign is the counterfactual's own, and the position's too.
    signs = [(s.signs[_SIGNS[0]][0], s.signs[_SIGNS[1]][1]) for s in swaps]
    bare = [(1, 1)] * len(swaps)
    plain = differences(trials, Trial(every, (_kept,) * len(every)))
    return least_squares([*full, *plain], [*signs, *bare])


def _kept(base: torch.Tensor, _source: torch.Tensor) -> torch.Tensor:
    return base


@dataclass(frozen=True, eq=False)
class _Scorer:
    """Scores of featurizers and of their controls, on the same rows."""

    trials: Trials
    handles: Sequence[Handle]
    settings: VariableStudy
    coefficients: Coefficients | None
    _sets: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = tuple(swap.of_set for swap in self.trials.table.swaps)
        object.__setattr__(self, "_sets", names)

    def surfaces(
        self, made: Sequence[tuple[Featurizer, ...]]
    ) -> Generator[Progress, None, tuple[Surface, dict[str, Surface]]]:
        """Of the featurizers, and by name of the controls that were asked for."""
        rows: dict[str, Sequence[tuple[Featurizer, ...]]] = {"": made}
        if "full" in self.settings.controls:
            rows["full"] = [(FULL,) * len(handle) for handle in self.handles]
        if "random_features" in self.settings.controls and self.settings.featurizer.kind != "full":
            rows["random_features"] = [
                tuple(map(self._random, handle, some))
                for handle, some in zip(self.handles, made, strict=True)
            ]
        names = [(name, i) for name, some in rows.items() for i in range(len(some))]
        kept = [(n, i) for n, i in names if not any(f.empty for f in rows[n][i])]
        trials = [Trial(self.handles[i], rows[name][i]) for name, i in kept]
        values = dict(zip(kept, (yield from self._values(trials)), strict=True))
        found = {
            name: Surface(
                cells=tuple(self._cell(values.get((name, i)), i, f) for i, f in enumerate(some)),
                lower=self.coefficients is not None,
            )
            for name, some in rows.items()
        }
        return found.pop(""), found

    def no_op(self) -> dict[str, float]:
        """By set the score of doing nothing."""
        swaps, variable = self.trials.table.swaps, self.trials.table.variable
        if self.coefficients is None:
            right = CHECKERS[self.settings.checker]
            score = [float(right(s.expected_text[variable], s.base_answer_text)) for s in swaps]
        else:
            handle = self.handles[0]
            nothing = Trial(handle, (_kept,) * len(handle))
            score = list(errors(self.trials, [nothing], self._differences)[0])
        return {
            name: float(np.mean([v for v, s in zip(score, self._sets, strict=True) if s == name]))
            for name in sorted(set(self._sets))
        }

    def _random(self, unit: Unit, featurizer: Featurizer) -> Featurizer:
        seed = seed_of(self.settings.seed, f"random {unit.name}")
        return random_like(featurizer, width(self.trials.hosted, unit), seed)

    def _values(self, wanted: Sequence[Trial]) -> Generator[Progress, None, np.ndarray]:
        if self.coefficients is None:
            right = CHECKERS[self.settings.checker]
            found = yield from accuracies(self.trials, wanted, self.settings.new_tokens, right)
            return found
        yield Progress(stage="scores", done=0, total=1)
        return errors(self.trials, wanted, self._differences)

    @property
    def _differences(self) -> Differences:
        return Differences(self.trials.table, cast(Coefficients, self.coefficients))

    def _cell(self, values: np.ndarray | None, i: int, some: tuple[Featurizer, ...]) -> Cell:
        read = [f.features.dictionary.id for f in some if isinstance(f.features, Codes)]
        return replace(self._scored(values, i, some), saes=tuple(dict.fromkeys(read)))

    def _scored(self, values: np.ndarray | None, i: int, some: tuple[Featurizer, ...]) -> Cell:
        if values is None:
            return surface.refused(self.handles[i], _NOTHING)
        counts = [featurizer.count for featurizer in some]
        whole = any(count is None for count in counts)
        features = None if whole else sum(count or 0 for count in counts)
        return surface.cell(self.handles[i], values, self._sets, features)


def _indistinct(swaps: Sequence[SwapIds], variable: str) -> dict[str, tuple[str, ...]]:
    """By set what would give the same expected outputs in all its rows."""
    found: dict[str, tuple[str, ...]] = {}
    for name in sorted({swap.of_set for swap in swaps}):
        own = [swap for swap in swaps if swap.of_set == name]
        expected = [_outcome(swap, variable) for swap in own]
        same = [] if expected != [_outcome(swap, None) for swap in own] else ["nothing"]
        others = set.intersection(*(set(swap.expected) for swap in own)) - {variable}
        same += [o for o in sorted(others) if [_outcome(s, o) for s in own] == expected]
        if same:
            found[name] = tuple(same)
    return found


def _outcome(swap: SwapIds, variable: str | None) -> tuple[str, tuple[int, int] | None]:
    """What is expected when a variable is swapped, or nothing."""
    if variable is None:
        return swap.base_answer_text, (1, 1) if swap.signs else None
    return swap.expected_text[variable], swap.signs.get(variable)


def _spent(started: float, *costs: Cost) -> Spent:
    distinct: Iterable[Cost] = {id(cost): cost for cost in costs}.values()
    some = list(distinct)
    return Spent(
        forwards=sum(cost.forwards for cost in some),
        backwards=sum(cost.backwards for cost in some),
        seconds=round(time.monotonic() - started, 3),
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
