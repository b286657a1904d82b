"""Is an SAE feature, or a set of them, really a handle on a variable?

Two interventions at the dictionary's layer and one position. The swap: the feature comes from the
counterfactual, beside the whole unit and random features that move the stream as far. Steering:
x += c * d_f, and what it does to the answer and to texts about anything else. A gate passes where
iia >= max(tau, iia of the random ones + margin) and the off-target KL stays below kappa.
"""

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, MaxLen, MinLen

from evaluation.behaviours.pairs import Dropped
from evaluation.behaviours.swaps import PreparedSwaps
from evaluation.gate_meter import Meter
from evaluation.protocol import bootstrap
from evaluation.variables.errors import BadStudy
from evaluation.variables.keeping import keep
from evaluation.variables.objective import CHECKERS
from evaluation.variables.table import table
from evaluation.variables.trials import Trials
from evaluation.variables.units import Unit, check
from models.hosted import HostedModel
from models.progress import Progress
from models.site import Site
from steerers.dictionary import Dictionary

Verdict = Literal["pass", "fail", "inconclusive"]


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
) -> Generator[Progress, None, GateReport]:
    """Measure and judge features.

    Args:
        hosted: A model of the evaluation's own.
        dictionary: The SAE; its site says the layer.
        swaps: Interchanges about the concept.
        off_target: Texts about anything else; without any there is no pass.
        settings: What is asked.

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
    drawn = [meter.matched(some, settings.draws, settings.seed) for some in sets]
    values = yield from meter.accuracies([*sets, *(d for some in drawn for d in some)])
    full = Measured.mean(values[0])
    gates = []
    for number, features in enumerate(sets):
        first = 1 + len(sets) + number * settings.draws
        found = FeatureGate(
            features=features,
            iia=Measured.mean(values[1 + number]),
            iia_random_matched=Measured.mean(values[first : first + settings.draws].mean(0)),
            effect_on_metric=Measured.of(meter.effect(features)),
            off_target_kl=Measured.of(meter.off_target(features, off_target)),
            output_score=_mean(meter.output_scores(features)),
            bar=0.0,
            verdict="inconclusive",
            reasons=(),
        )
        gates.append(judged(found, full, len(trials.table), meter.no_op, settings))
        yield Progress(stage="gates", done=number + 1, total=len(sets))
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


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
