"""At which layer should a fact be edited, a concept be steered, or a picture be patched back?

Layers are ranked by causal tracing (`evaluation.tracing`) with bootstrap intervals over pairs; for
decoders the summed attribution of each layer's heads and MLP stands beside it. The recommended
range is the run of layers around the best one that the pairs cannot tell from it.

- `refact`: what one layer's MLP alone restores at the subject's last token, among the layers at
  which the subject's stream still restores at least half: behind them the fact has moved on.
- `sae`: what the stream restores at the last token, where steering acts, before the last layer,
  which always restores everything.
- `backpatch`: what the clean picture's stream of a late layer restores when it is written into the
  visual tokens behind an early one (`evaluation.tracing_pictures`). Targets are the layers behind
  which the visual tokens' own stream still restores at least half: above them nobody reads it.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le

from evaluation.behaviours.pairs import Dropped, Pair, PairIds, prepare
from evaluation.circuits.anatomy import find_anatomy
from evaluation.circuits.attribution import Gradually, attribute
from evaluation.circuits.batches import in_batches
from evaluation.errors import NothingToTrace
from evaluation.noted import Noted, Stage, heard, missing, said, within
from evaluation.protocol import bootstrap, resampled
from evaluation.tracing import Trace, prepare_texts, trace_decoder, trace_encoder
from evaluation.tracing_pictures import PicturePair, prepare_pictures, trace_pictures
from models.decoder import TOWER
from models.errors import MethodNotApplicable
from models.hosted import HostedModel
from models.language import Language
from models.progress import FOUND_BEFORE, Progress
from models.text_tower import TextTower
from models.vision_language import VisionLanguage

Operation = Literal["refact", "sae", "backpatch"]
HALF = 0.5
_BY: Mapping[Operation, str] = {"refact": "subject_mlp", "sae": "last", "backpatch": "back"}
"""The effect that ranks."""


@dataclass(frozen=True, kw_only=True)
class LayerAdvice:
    """What is asked.

    Attributes:
        operation: `refact` for text encoders of models that draw, `sae` for decoders, `backpatch`
            for models that see.
        encoder: Which text encoder, by attribute; None is the first.
        least: The smallest mean of m(clean) - m(corrupted) that is looked at, and the least that
            the lower end of its interval must reach for effects to be told.
        steps: Of the attribution's integral.
        answers: Whether a decoder's answers must be one token.
        target: Of `backpatch`, the layer behind which sources are tried.
    """

    operation: Operation
    encoder: str | None = None
    least: Annotated[float, Gt(0)] = 0.01
    steps: Annotated[int, Ge(1), Le(100)] = 5
    answers: Literal["whole", "first"] = "whole"
    target: Annotated[int, Ge(0), Le(1000)] = 0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A ratio of means over pairs, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class LayerEffects:
    """One layer.

    Attributes:
        effects: By name of what is restored.
        score: Of its heads and MLP: how much of the metric they are answerable for; decoders only.
    """

    layer: int
    effects: Mapping[str, Effect]
    score: Effect | None = None


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What was found.

    Attributes:
        lost: m(clean) - m(corrupted), which effects are shares of.
        inconclusive: Why no share can be told: there are no effects then, and nothing is ranked;
            None where they can.
        ranked: Layers, the best first; those that cannot serve are left out.
        recommended: First and last layer of the range; None if no layer can serve. Of `backpatch`
            the range of sources.
        targets: Of `backpatch`: first and last layer where a source may be written.
        by: The effect that ranks.
        encoders: All text encoders of the model, where one of them was looked at.
    """

    model: str
    fingerprint: str
    settings: LayerAdvice
    pairs: int
    dropped: tuple[Dropped, ...]
    m_clean: float
    m_corrupted: float
    lost: Effect
    inconclusive: str | None
    by: str
    layers: tuple[LayerEffects, ...]
    ranked: tuple[int, ...]
    recommended: tuple[int, int] | None
    targets: tuple[int, int] | None = None
    notes: tuple[str, ...] = field(default=())
    encoders: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def advise(
    hosted: HostedModel,
    pairs: Sequence[Pair] | Sequence[PicturePair],
    settings: LayerAdvice,
    noted: Noted | None = None,
) -> Generator[Progress, None, Advice]:
    """Trace the pairs, those of `backpatch` with pictures, and rank the layers.

    Args:
        hosted: A model of the evaluation's own.
        pairs: What is traced.
        settings: What is asked.
        noted: The stages of an equal call that was broken off.

    Raises:
        MethodNotApplicable: The operation is for models of another kind.
        NothingToTrace: No pair is left, or the model does not decide between the answers.
        NoGraph: A decoder that attribution cannot take apart.
    """
    noted = noted or {}
    kept, dropped, trace = _traced(hosted, pairs, settings)
    if not kept:
        raise NothingToTrace(f"No pair can be used: {dropped[0].reason if dropped else 'none'}.")
    told = yield from _traces(kept, trace, noted)
    lost, why = _lost(told, settings)
    effects = {} if why else _effects(told, settings)
    scores: dict[int, Effect] = {}
    if settings.operation == "sae":
        decoded = [p for p in kept if isinstance(p, PairIds)]
        scores = yield from _scores(hosted, decoded, settings, noted)
    found = _advice(hosted, settings, told, lost, effects, scores)
    return replace(found, dropped=dropped, inconclusive=why)


def _traced(
    hosted: HostedModel, pairs: Sequence[Any], settings: LayerAdvice
) -> tuple[Sequence[Any], tuple[Dropped, ...], Callable[[Sequence[Any]], Iterator[Trace]]]:
    """The pairs that can be used, those that cannot, and what traces some, one by one."""
    if settings.operation == "sae":
        prepared = _decoding(hosted, pairs, settings)
        return prepared.kept, prepared.dropped, lambda some: trace_decoder(hosted, some)
    if settings.operation == "backpatch":
        _check_seeing(hosted, settings)
        shown, dropped = prepare_pictures(hosted, pairs)
        return shown, dropped, lambda some: trace_pictures(hosted, some, settings.target)
    tower = _tower(hosted, settings)
    texts, dropped = prepare_texts(tower, pairs)
    return texts, dropped, lambda some: trace_encoder(hosted, tower, some)


def _traces(
    kept: Sequence[Any], trace: Callable[[Sequence[Any]], Iterator[Trace]], noted: Noted
) -> Generator[Progress, None, list[Trace]]:
    """Of all pairs; what is noted is not traced again."""
    names = [f"trace {place}" for place in range(len(kept))]
    found = {place: _read(heard(noted, name)) for place, name in enumerate(names) if name in noted}
    left = list(missing(noted, names))
    if found:
        yield Progress(stage="tracing", done=len(found), total=len(kept), message=FOUND_BEFORE)
    for place, fresh in zip(left, trace([kept[place] for place in left]), strict=True):
        found[place] = fresh
        yield Stage(
            stage="tracing",
            done=len(found),
            total=len(kept),
            name=names[place],
            data=said(_written(fresh)),
        )
    return [found[place] for place in range(len(kept))]


def _written(trace: Trace) -> dict[str, Any]:
    restored = {name: each.tolist() for name, each in trace.restored.items()}
    return {"clean": trace.clean, "corrupted": trace.corrupted, "restored": restored}


def _read(told: Mapping[str, Any]) -> Trace:
    restored = {
        name: torch.tensor(each, dtype=torch.float64) for name, each in told["restored"].items()
    }
    return Trace(clean=told["clean"], corrupted=told["corrupted"], restored=restored)


def _check_seeing(hosted: HostedModel, settings: LayerAdvice) -> None:
    if not isinstance(hosted.family, VisionLanguage):
        raise MethodNotApplicable("back_patch", hosted.family.title, "it sees nothing.")
    layers = len(hosted.towers[TOWER])
    if settings.target + 1 >= layers:
        why = f"no layer of its {layers} is above target {settings.target}."
        raise MethodNotApplicable("back_patch", hosted.family.title, why)


def _decoding(hosted: HostedModel, pairs: Sequence[Pair], settings: LayerAdvice) -> Any:
    if not isinstance(hosted.family, Language):
        raise MethodNotApplicable("sae", hosted.family.title, "it writes nothing.")
    return prepare(pairs, hosted, settings.answers)


def _tower(hosted: HostedModel, settings: LayerAdvice) -> TextTower:
    if not hosted.text_towers:
        why = "it has no text encoder of CLIP's kind."
        raise MethodNotApplicable("refact", hosted.family.title, why)
    name = settings.encoder or next(iter(hosted.text_towers))
    if name not in hosted.text_towers:
        raise MethodNotApplicable("refact", hosted.family.title, f"it has no {name}.")
    return hosted.text_towers[name]


def _lost(traces: Sequence[Trace], settings: LayerAdvice) -> tuple[Effect, str | None]:
    """m(clean) - m(corrupted), and why nothing can be divided by it; None if it can.

    A ratio over draws of pairs explodes where some of them lose nothing: no number is told then.
    """
    each = np.array([t.clean - t.corrupted for t in traces])
    mean, told = float(each.mean()), "m(clean) - m(corrupted)"
    if mean < settings.least:
        raise NothingToTrace(f"{told} is {mean:.3g}, below {settings.least:g}.")
    low, high = bootstrap([str(i) for i in range(len(each))], each, seed=settings.seed)
    lost = Effect(value=mean, low=low, high=high)
    if low >= settings.least:
        return lost, None
    why = "covers 0" if low <= 0 <= high else f"begins below {settings.least:g}"
    return lost, f"the interval [{low:.3g}, {high:.3g}] of {told} {why}"


def _effects(traces: Sequence[Trace], settings: LayerAdvice) -> dict[str, list[Effect]]:
    """Per place and layer: the mean that is restored over the mean that was lost."""
    lost = np.array([t.clean - t.corrupted for t in traces])
    rows = [str(i) for i in range(len(traces))]
    found: dict[str, list[Effect]] = {}
    for name in traces[0].restored:
        back = np.array([t.restored[name].numpy() - t.corrupted for t in traces])
        drawn = resampled(rows, np.column_stack([lost, back]), seed=settings.seed)
        each = drawn[:, 1:] / drawn[:, :1]
        low, high = np.percentile(each, [2.5, 97.5], axis=0)
        value = back.mean(0) / lost.mean()
        found[name] = [
            Effect(value=float(v), low=float(a), high=float(b))
            for v, a, b in zip(value, low, high, strict=True)
        ]
    return found


def _scores(
    hosted: HostedModel, pairs: Sequence[PairIds], settings: LayerAdvice, noted: Noted
) -> Generator[Progress, None, dict[int, Effect]]:
    """Per layer the attribution of its heads and MLP, pair by pair."""
    names = [f"attribution {place}" for place in range(len(pairs))]
    each = {place: heard(noted, name) for place, name in enumerate(names) if name in noted}
    for place in missing(noted, names):
        here = Progress(stage="attribution", done=len(each), total=len(pairs))
        each[place] = yield from within(_attributed(hosted, pairs[place], settings), here)
        yield Stage(
            stage="attribution",
            done=len(each),
            total=len(pairs),
            name=names[place],
            data=said(each[place]),
        )
    values = np.array([each[place] for place in range(len(pairs))])
    drawn = resampled([str(i) for i in range(len(values))], values, seed=settings.seed)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    told = zip(values.mean(0), low, high, strict=True)
    return {
        i: Effect(value=float(v), low=float(a), high=float(b)) for i, (v, a, b) in enumerate(told)
    }


def _attributed(
    hosted: HostedModel, pair: PairIds, settings: LayerAdvice
) -> Generator[Progress, None, list[float]]:
    """One pair's: the sum of each layer's heads and MLP."""
    anatomy = find_anatomy(hosted)
    graph = anatomy.graph
    batches = list(in_batches([pair], 1, hosted.device, [1.0]))
    found = yield from attribute(anatomy, batches, Gradually(steps=settings.steps))
    assert found.nodes is not None  # noqa: S101 - gradients score nodes
    own = [
        [*(graph.head(layer, h) for h in range(graph.heads)), graph.mlp(layer)]
        for layer in range(graph.layers)
    ]
    return [float(found.nodes[some].sum()) for some in own]


def _advice(
    hosted: HostedModel,
    settings: LayerAdvice,
    traces: Sequence[Trace],
    lost: Effect,
    effects: Mapping[str, Sequence[Effect]],
    scores: Mapping[int, Effect],
) -> Advice:
    by = _BY[settings.operation]
    layers = range(len(traces[0].restored[by]))
    able = [layer for layer in layers if effects and _can_serve(settings, layer, effects)]
    ranked = sorted(able, key=lambda layer: -effects[by][layer].value)
    none = "No layer restores half of the behaviour."
    return Advice(
        model=hosted.name,
        fingerprint=hosted.fingerprint,
        settings=settings,
        pairs=len(traces),
        dropped=(),
        m_clean=float(np.mean([t.clean for t in traces])),
        m_corrupted=float(np.mean([t.corrupted for t in traces])),
        lost=lost,
        inconclusive=None,
        by=by,
        layers=tuple(
            LayerEffects(
                layer=layer,
                effects={name: each[layer] for name, each in effects.items()},
                score=scores.get(layer),
            )
            for layer in layers
        ),
        ranked=tuple(ranked),
        recommended=_range(ranked, effects[by]) if effects else None,
        targets=_targets(effects["visual"]) if "visual" in effects else None,
        notes=() if ranked or not effects else (none,),
        encoders=tuple(hosted.text_towers) if settings.operation == "refact" else (),
    )


def _can_serve(settings: LayerAdvice, layer: int, effects: Mapping[str, Sequence[Effect]]) -> bool:
    if settings.operation == "refact":
        return effects["subject"][layer].value >= HALF
    if settings.operation == "backpatch":
        return layer > settings.target and effects["back"][layer].value >= HALF
    return layer + 1 < len(effects["last"]) and effects["last"][layer].value >= HALF


def _targets(visual: Sequence[Effect]) -> tuple[int, int] | None:
    """From the first layer to the last behind which the visual tokens are still read."""
    able = [layer for layer, effect in enumerate(visual) if effect.value >= HALF]
    return (able[0], able[-1]) if able else None


def _range(ranked: Sequence[int], effects: Sequence[Effect]) -> tuple[int, int] | None:
    """The neighbours of the best layer whose intervals reach its value's lower bound."""
    if not ranked:
        return None
    best = first = last = ranked[0]
    while first - 1 in ranked and effects[first - 1].high >= effects[best].low:
        first -= 1
    while last + 1 in ranked and effects[last + 1].high >= effects[best].low:
        last += 1
    return first, last
