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

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from evaluation.behaviours.pairs import Dropped, Pair, PairIds, prepare
from evaluation.circuits.anatomy import find_anatomy
from evaluation.circuits.attribution import Gradually, attribute
from evaluation.circuits.batches import in_batches
from evaluation.errors import NothingToTrace
from evaluation.protocol import resampled
from evaluation.tracing import Trace, prepare_texts, trace_decoder, trace_encoder
from evaluation.tracing_pictures import PicturePair, prepare_pictures, trace_pictures
from models.decoder import TOWER
from models.errors import MethodNotApplicable
from models.hosted import HostedModel
from models.language import Language
from models.progress import Progress
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
        least: The smallest mean of m(clean) - m(corrupted) that effects are told of.
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
    hosted: HostedModel, pairs: Sequence[Pair] | Sequence[PicturePair], settings: LayerAdvice
) -> Generator[Progress, None, Advice]:
    """Trace the pairs, those of `backpatch` with pictures, and rank the layers.

    Raises:
        MethodNotApplicable: The operation is for models of another kind.
        NothingToTrace: No pair is left, or the model does not decide between the answers.
        NoGraph: A decoder that attribution cannot take apart.
    """
    kept, dropped, traces = _traced(hosted, pairs, settings)
    if not kept:
        raise NothingToTrace(f"No pair can be used: {dropped[0].reason if dropped else 'none'}.")
    told: list[Trace] = []
    for trace in traces:
        told.append(trace)
        yield Progress(stage="tracing", done=len(told), total=len(kept))
    effects = _effects(told, settings)
    scores: dict[int, Effect] = {}
    if settings.operation == "sae":
        scores = yield from _scores(hosted, [p for p in kept if isinstance(p, PairIds)], settings)
    return _advice(hosted, settings, told, dropped, effects, scores)


def _traced(
    hosted: HostedModel, pairs: Sequence[Any], settings: LayerAdvice
) -> tuple[Sequence[Any], tuple[Dropped, ...], Iterator[Trace]]:
    """The pairs that can be used, those that cannot, and the traces, made as they are asked for."""
    if settings.operation == "sae":
        prepared = _decoding(hosted, pairs, settings)
        return prepared.kept, prepared.dropped, trace_decoder(hosted, prepared.kept)
    if settings.operation == "backpatch":
        _check_seeing(hosted, settings)
        shown, dropped = prepare_pictures(hosted, pairs)
        return shown, dropped, trace_pictures(hosted, shown, settings.target)
    tower = _tower(hosted, settings)
    texts, dropped = prepare_texts(tower, pairs)
    return texts, dropped, trace_encoder(hosted, tower, texts)


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


def _effects(traces: Sequence[Trace], settings: LayerAdvice) -> dict[str, list[Effect]]:
    """Per place and layer: the mean that is restored over the mean that was lost."""
    lost = np.array([t.clean - t.corrupted for t in traces])
    if lost.mean() < settings.least:
        raise NothingToTrace(
            f"m(clean) - m(corrupted) is {lost.mean():.3g}, below {settings.least:g}."
        )
    rows = [str(i) for i in range(len(traces))]
    found: dict[str, list[Effect]] = {}
    for name in traces[0].restored:
        back = np.array([t.restored[name].numpy() - t.corrupted for t in traces])
        drawn = resampled(rows, np.column_stack([lost, back]), seed=settings.seed)
        # A draw of pairs that lose nothing has no share.
        each = drawn[:, 1:] / np.maximum(drawn[:, :1], 1e-9)
        low, high = np.percentile(each, [2.5, 97.5], axis=0)
        value = back.mean(0) / lost.mean()
        found[name] = [
            Effect(value=float(v), low=float(a), high=float(b))
            for v, a, b in zip(value, low, high, strict=True)
        ]
    return found


def _scores(
    hosted: HostedModel, pairs: Sequence[PairIds], settings: LayerAdvice
) -> Generator[Progress, None, dict[int, Effect]]:
    """Per layer the attribution of its heads and MLP, pair by pair."""
    anatomy = find_anatomy(hosted)
    graph, each = anatomy.graph, []
    batches = list(in_batches(pairs, 1, hosted.device, [1.0] * len(pairs)))
    for i, batch in enumerate(batches):
        found = yield from attribute(anatomy, [batch], Gradually(steps=settings.steps))
        assert found.nodes is not None  # noqa: S101 - gradients score nodes
        layers = [
            [*(graph.head(layer, h) for h in range(graph.heads)), graph.mlp(layer)]
            for layer in range(graph.layers)
        ]
        each.append([float(found.nodes[own].sum()) for own in layers])
        yield Progress(stage="attribution", done=i + 1, total=len(batches))
    values = np.array(each)
    drawn = resampled([str(i) for i in range(len(values))], values, seed=settings.seed)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    told = zip(values.mean(0), low, high, strict=True)
    return {
        i: Effect(value=float(v), low=float(a), high=float(b)) for i, (v, a, b) in enumerate(told)
    }


def _advice(
    hosted: HostedModel,
    settings: LayerAdvice,
    traces: Sequence[Trace],
    dropped: tuple[Dropped, ...],
    effects: Mapping[str, Sequence[Effect]],
    scores: Mapping[int, Effect],
) -> Advice:
    by = _BY[settings.operation]
    layers = range(len(effects[by]))
    able = [layer for layer in layers if _can_serve(settings, layer, effects)]
    ranked = sorted(able, key=lambda layer: -effects[by][layer].value)
    return Advice(
        model=hosted.name,
        fingerprint=hosted.fingerprint,
        settings=settings,
        pairs=len(traces),
        dropped=dropped,
        m_clean=float(np.mean([t.clean for t in traces])),
        m_corrupted=float(np.mean([t.corrupted for t in traces])),
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
        recommended=_range(ranked, effects[by]),
        targets=_targets(effects["visual"]) if settings.operation == "backpatch" else None,
        notes=() if ranked else ("No layer restores half of the behaviour.",),
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
