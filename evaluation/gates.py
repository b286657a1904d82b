"""Is an SAE feature, or a set of them, really a handle on a variable?

Two interventions at the dictionary's layer and one position. The swap: the feature comes from the
counterfactual, beside the whole unit and random features that move the stream as far. Steering:
x += c * d_f, and what it does to the answer and to texts about anything else. A gate passes where
iia >= max(tau, iia of the random ones + margin) and the off-target KL stays below kappa.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, MaxLen, MinLen

from evaluation.behaviours.pairs import Dropped
from evaluation.behaviours.swaps import PreparedSwaps
from evaluation.gate_meter import Features, Meter
from evaluation.noted import Noted, Stage, heard, said, within
from evaluation.protocol import bootstrap
from evaluation.variables.errors import BadStudy
from evaluation.variables.keeping import keep
from evaluation.variables.objective import CHECKERS
from evaluation.variables.table import table
from evaluation.variables.trials import Trials
from evaluation.variables.units import Unit, check
from models.hosted import HostedModel
from models.progress import FOUND_BEFORE, Progress
from models.site import Site
from steerers.dictionary import Dictionary

Verdict = Literal["pass", "fail", "inconclusive"]
_SWAPPED = 64
"""Trials of one round, about: as many as share a forward."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What is asked, and the policy that judges.

    Attributes:
        features: Of the SAE, one gate each; `jointly` is one gate for all of them.
        position: Of the swap, as the rows name it.
        strength: Of steering, in units of A, the largest code at the neutral prompt's last token.
        tau: The least IIA; None is half of the whole unit's.
        margin: By how much it must exceed random features.
        kappa: The most nats per token that steering may move texts about anything else.
        least: Rows below which nothing is said.
        draws: Random sets that the control is the mean of.
    """

    variable: Annotated[str, MaxLen(200)]
    features: Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1), MaxLen(1000)]
    jointly: bool = False
    position: str = "last_token"
    strength: Annotated[float, Gt(0), Le(100)] = 1.0
    tau: Annotated[float, Ge(0), Le(1)] | None = None
    margin: Annotated[float, Ge(0), Le(1)] = 0.1
    kappa: Annotated[float, Gt(0)] = 0.1
    least: Annotated[int, Ge(1)] = 50
    draws: Annotated[int, Ge(1), Le(100)] = 5
    checker: Literal["contains", "contains_word", "same_number"] = "contains"
    new_tokens: Annotated[int, Ge(1), Le(8)] = 1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A mean over rows or texts, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    rows: int

    @classmethod
    def of(cls, values: np.ndarray) -> "Measured | None":
        """Of so many values; None of none."""
        return cls.mean(values) if len(values) else None

    @classmethod
    def mean(cls, values: np.ndarray) -> "Measured":
        """Of one value or more."""
        low, high = bootstrap([f"{i:08d}" for i in range(len(values))], values)
        return cls(value=float(values.mean()), low=low, high=high, rows=len(values))


@dataclass(frozen=True, kw_only=True)
class FeatureGate:
    """What was found of one feature, or of one set.

    Attributes:
        iia: Of swapping it.
        iia_random_matched: Of swapping as many others that move the stream as far.
        effect_on_metric: By how much steering raises logit(expected) - logit(base's answer), over
            rows whose counterfactual has more of the feature than the base; None without any.
        off_target_kl: KL(plain, steered) in nats per token, over texts.
        output_score: The mean over the set.
        bar: What `iia` had to reach.
        reasons: Of the verdict, unless it passes.
    """

    features: tuple[int, ...]
    iia: Measured
    iia_random_matched: Measured
    effect_on_metric: Measured | None
    off_target_kl: Measured | None
    output_score: float | None
    bar: float
    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GateReport:
    """All gates of one study.

    Attributes:
        no_op: The share of rows whose expected answer is the base's own.
        coefficient: c, in the SAE's units.
    """

    model: str
    fingerprint: str
    sae: str
    sae_digest: str
    layer: int
    settings: Gate
    kept: int
    dropped: tuple[Dropped, ...]
    iia_full_vector: Measured
    no_op: float
    coefficient: float
    gates: tuple[FeatureGate, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def gate(
    hosted: HostedModel,
    dictionary: Dictionary,
    swaps: PreparedSwaps,
    off_target: Sequence[str],
    settings: Gate,
    noted: Noted | None = None,
) -> Generator[Progress, None, GateReport]:
    """Measure and judge features.

    Args:
        hosted: A model of the evaluation's own.
        dictionary: The SAE; its site says the layer.
        swaps: Interchanges about the concept.
        off_target: Texts about anything else; without any there is no pass.
        settings: What is asked.
        noted: The stages of an equal call that was broken off.

    Raises:
        NothingKept: No row can be used, or the model answers none rightly.
        UnknownUnit, BadStudy, UnknownFeature: The settings do not fit.
        UnknownSite, WrongDictionary: The SAE does not fit the model.
    """
    dictionary.check(hosted)
    dictionary = dictionary.to(hosted.device)
    sets = [settings.features] if settings.jointly else [(f,) for f in settings.features]
    for feature in settings.features:
        dictionary.feature(feature)
    if 2 * max(map(len, sets)) > dictionary.features:
        raise BadStudy("There are not as many other features to compare with.", "features")
    trials, dropped = _trials(hosted, dictionary, swaps, settings)
    yield Progress(stage="rows", done=1, total=1, values={"kept": float(len(trials.table))})
    meter = Meter(
        trials=trials,
        dictionary=dictionary,
        checker=CHECKERS[settings.checker],
        new_tokens=settings.new_tokens,
        strength=settings.strength,
    )
    measuring = _Measuring(meter, sets, off_target, settings, noted or {})
    full, found = yield from measuring.found()
    gates = [judged(one, full, len(trials.table), meter.no_op, settings) for one in found]
    return GateReport(
        model=hosted.name,
        fingerprint=hosted.fingerprint,
        sae=dictionary.id,
        sae_digest=dictionary.to(torch.device("cpu")).digest,
        layer=meter.unit.layer,
        settings=settings,
        kept=len(trials.table),
        dropped=dropped,
        iia_full_vector=full,
        no_op=meter.no_op,
        coefficient=meter.coefficient,
        gates=tuple(gates),
    )


@dataclass(frozen=True, eq=False)
class _Measuring:
    """Sets of features, some at a time; what is noted is not measured again.

    A round is as many sets as fill a forward, swapped together with their random ones: the same
    ones whether or not the work was broken off between, so that it comes to the same bits.
    """

    meter: Meter
    sets: Sequence[Features]
    off_target: Sequence[str]
    settings: Gate
    noted: Noted

    def found(self) -> Generator[Progress, None, tuple[Measured, list[FeatureGate]]]:
        """The whole unit's IIA, and each set without a verdict."""
        done = [n for n, name in enumerate(self._names) if name in self.noted]
        if done:
            total = len(self.sets)
            yield Progress(stage="gates", done=len(done), total=total, message=FOUND_BEFORE)
        full: Measured | None = None
        found: list[FeatureGate] = []
        each = max(1, _SWAPPED // (1 + self.settings.draws))
        for first in range(0, len(self.sets), each):
            places = range(first, min(first + each, len(self.sets)))
            told = yield from self._swapped(places)
            full = full or Measured(**told["full"])
            for place in places:
                one = yield from self._gate(place, told["iia"][place - first])
                found.append(one)
        assert full is not None  # noqa: S101 - there is one set at least
        return full, found

    @property
    def _names(self) -> list[str]:
        return [f"gate {place}" for place in range(len(self.sets))]

    def _swapped(self, places: range) -> Generator[Progress, None, Mapping[str, Any]]:
        """What swaps of one round come to: `full` of the whole unit, `iia` of each set."""
        name = f"swaps {places.start}"
        if name in self.noted:
            return heard(self.noted, name)
        asked, sets = self.settings, [self.sets[place] for place in places]
        drawn = [self.meter.matched(some, asked.draws, asked.seed) for some in sets]
        here = Progress(stage="gates", done=places.start, total=len(self.sets))
        work = self.meter.accuracies([*sets, *(some for each in drawn for some in each)])
        values = yield from within(work, here)
        controls = values[1 + len(sets) :].reshape(len(sets), asked.draws, -1).mean(1)
        iia = [
            [asdict(Measured.mean(own)), asdict(Measured.mean(control))]
            for own, control in zip(values[1 : 1 + len(sets)], controls, strict=True)
        ]
        told = {"full": asdict(Measured.mean(values[0])), "iia": iia}
        yield self._stage(name, places.start, told)
        return told

    def _gate(
        self, place: int, iia: Sequence[Mapping[str, Any]]
    ) -> Generator[Progress, None, FeatureGate]:
        """One set, given what swaps of it and of random ones come to."""
        name, features = self._names[place], self.sets[place]
        told = heard(self.noted, name)
        if told is None:
            moved = Measured.of(self.meter.off_target(features, self.off_target))
            told = {
                "effect_on_metric": _plainly(Measured.of(self.meter.effect(features))),
                "off_target_kl": _plainly(moved),
                "output_score": _mean(self.meter.output_scores(features)),
            }
            yield self._stage(name, place + 1, told)
        effect, moved = told["effect_on_metric"], told["off_target_kl"]
        return FeatureGate(
            features=features,
            iia=Measured(**iia[0]),
            iia_random_matched=Measured(**iia[1]),
            effect_on_metric=None if effect is None else Measured(**effect),
            off_target_kl=None if moved is None else Measured(**moved),
            output_score=told["output_score"],
            bar=0.0,
            verdict="inconclusive",
            reasons=(),
        )

    def _stage(self, name: str, done: int, told: Mapping[str, Any]) -> Stage:
        total = len(self.sets)
        return Stage(stage="gates", done=done, total=total, name=name, data=said(told))


def judged(
    found: FeatureGate, full: Measured, kept: int, no_op: float, settings: Gate
) -> FeatureGate:
    """The same with the policy's word.

    Args:
        found: What was measured.
        full: The whole unit's IIA.
        kept: Rows that it rests on.
        no_op: The share that doing nothing scores.
        settings: The policy.
    """
    tau = settings.tau if settings.tau is not None else full.value / 2
    bar = max(tau, found.iia_random_matched.value + settings.margin)
    open_, wrong = [], []
    if kept < settings.least:
        open_.append(f"{kept} rows are kept, and {settings.least} are needed.")
    if full.value <= no_op:
        open_.append("The whole unit does no better than doing nothing: look at another place.")
    if found.off_target_kl is None:
        open_.append("There were no texts about anything else.")
    elif found.off_target_kl.value > settings.kappa:
        told = f"{found.off_target_kl.value:.3g} nats per token, more than {settings.kappa:g}"
        wrong.append(f"Steering moves other texts by {told}.")
    if found.iia.value < bar:
        wrong.append(f"IIA is {found.iia.value:.3g}, and {bar:.3g} is needed.")
    verdict: Verdict = "inconclusive" if open_ else "fail" if wrong else "pass"
    return replace(found, bar=bar, verdict=verdict, reasons=(*open_, *wrong))


def _trials(
    hosted: HostedModel, dictionary: Dictionary, swaps: PreparedSwaps, settings: Gate
) -> tuple[Trials, tuple[Dropped, ...]]:
    """The rows that can be used, and the others."""
    layer = Site.parse(dictionary.site).block
    if layer is None:
        raise BadStudy(f"{dictionary.id} reads the embedding, which no block leaves.", "sae")
    unit = Unit(layer=layer, position=settings.position)
    check(hosted, [unit], {name for swap in swaps.kept for name in swap.positions})
    kept, dropped = keep(
        hosted,
        swaps,
        settings.variable,
        [settings.position],
        new_tokens=settings.new_tokens,
        right=CHECKERS[settings.checker],
    )
    rows = table(
        kept,
        settings.variable,
        [settings.position],
        new_tokens=settings.new_tokens,
        device=hosted.device,
    )
    return Trials(hosted=hosted, table=rows, units=(unit,)), dropped


def _plainly(found: Measured | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
