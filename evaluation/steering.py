"""Does steering work: is the text about the concept, and is it still a text?

Each way of steering towards a topic is tried at several strengths. Half of the openers choose the
strength, the other half are reported (AxBench's protocol; Arad et al. 2025, section 5). Success is
the judge's word, coherence is likelihood under the unsteered model times variety; a text's score is
their harmonic mean, 0 if either is 0.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.errors import NothingToJudge
from evaluation.steering_result import Judged, Result, SteeringSettings, Way, mean
from evaluation.topics import PRESENT, TopicJudge
from evaluation.writing import Asked, Writer
from models.patch import Patch

_RUNS_AT_ONCE = 64


def evaluate_steering(
    ways: Sequence[Way],
    writer: Writer,
    judge: TopicJudge,
    settings: SteeringSettings,
    *,
    tell: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[dict[str, float], tuple[Result, ...]]:
    """Write, judge and choose.

    Args:
        ways: What is tried.
        writer: Writes texts on the model.
        judge: Says what they are about.
        settings: What is run.
        tell: Called with texts written and texts in all.

    Returns:
        How often an unsteered text is about each topic, and one result per way.

    Raises:
        NothingToJudge: There is no way, or too few openers to keep a half apart.
    """
    if not ways or len(settings.openers) < 2:
        raise NothingToJudge
    openers = [writer.tokens(opener) for opener in settings.openers]
    total = sum(len(way.strengths) for way in ways) + 1
    plain = _written(writer, [_asks(settings, openers, Patch(), None)])[0]
    usual = float(np.median([said.perplexity for said in plain]))
    often = judge.probabilities([said.text for said in plain]) >= PRESENT
    chance = {topic: float(often[:, judge.column(topic)].mean()) for topic in judge.topics}
    results = []
    done = 1
    tell(done, total)
    for some in _in_parts(ways):
        runs = [(way, strength) for way in some for strength in way.strengths]
        asks = [_asks(settings, openers, way.patch(s), way.prompt) for way, s in runs]
        texts = _written(writer, asks)
        judged: dict[int, list[list[Judged]]] = {}
        for (way, _), written in zip(runs, texts, strict=True):
            judged.setdefault(id(way), []).append(_judged(way, written, judge, usual, settings))
        results += [_result(way, judged[id(way)]) for way in some]
        done += len(runs)
        tell(done, total)
    return chance, tuple(results)


def _in_parts(ways: Sequence[Way]) -> Iterator[list[Way]]:
    part: list[Way] = []
    for way in ways:
        part.append(way)
        if sum(len(w.strengths) for w in part) >= _RUNS_AT_ONCE:
            yield part
            part = []
    if part:
        yield part


@dataclass(frozen=True, kw_only=True)
class _Said:
    text: str
    ids: tuple[int, ...]
    perplexity: float


def _asks(
    settings: SteeringSettings,
    openers: Sequence[tuple[int, ...]],
    patch: Patch,
    prompt: tuple[int, ...] | None,
) -> list[Asked]:
    """One text per opener and repeat; with a prompt of its own as many, with the same seeds."""
    return [
        Asked(
            prompt=opener if prompt is None else prompt,
            patch=patch,
            seed=settings.seed + place + repeat * len(openers),
            tokens=settings.tokens,
            temperature=settings.temperature,
        )
        for repeat in range(settings.repeats)
        for place, opener in enumerate(openers)
    ]


def _written(writer: Writer, runs: Sequence[Sequence[Asked]]) -> list[list[_Said]]:
    flat = [ask for run in runs for ask in run]
    texts = writer.write(flat)
    surprise = writer.perplexities([(a.prompt, t.ids) for a, t in zip(flat, texts, strict=True)])
    said = iter(
        [_Said(text=t.text, ids=t.ids, perplexity=p) for t, p in zip(texts, surprise, strict=True)]
    )
    return [[next(said) for _ in run] for run in runs]


def _judged(
    way: Way,
    written: Sequence[_Said],
    judge: TopicJudge,
    usual: float,
    settings: SteeringSettings,
) -> list[Judged]:
    column = judge.column(way.topic)
    about = judge.probabilities([said.text for said in written])[:, column] >= PRESENT
    return [
        Judged(
            text=said.text,
            place=i % len(settings.openers),
            present=bool(present),
            coherence=coherence(said.ids, said.perplexity, usual),
            hits=sum(token in way.lens for token in said.ids),
        )
        for i, (said, present) in enumerate(zip(written, about, strict=True))
    ]


def coherence(ids: Sequence[int], perplexity: float, usual: float) -> float:
    """From 0 to 1: likelihood relative to the model's own texts, times variety of token pairs."""
    pairs = list(itertools.pairwise(ids))
    variety = len(set(pairs)) / len(pairs) if pairs else 1.0
    if not math.isfinite(perplexity) or perplexity <= 0 or not ids:
        return 0.0
    return min(1.0, usual / perplexity) * variety


def _result(way: Way, by_strength: Sequence[Sequence[Judged]]) -> Result:
    """The strength that is best on the first half, told by the second."""
    halves = [_halves(judged) for judged in by_strength]
    chosen = max(range(len(halves)), key=lambda i: mean(j.score for j in halves[i][0]))
    choosing, told = halves[chosen]
    best = max(told, key=lambda j: j.score)
    return Result(
        topic=way.topic,
        kind=way.kind,
        name=way.name,
        site=way.site,
        output_score=way.output_score,
        input_score=way.input_score,
        strength=way.strengths[chosen],
        chosen_by=mean(j.score for j in choosing),
        score=mean(j.score for j in told),
        success=mean(float(j.present) for j in told),
        coherence=mean(j.coherence for j in told),
        hits=mean(float(j.hits) for j in told),
        sample=best.text,
    )


def _halves(judged: Sequence[Judged]) -> tuple[list[Judged], list[Judged]]:
    return [j for j in judged if j.place % 2 == 0], [j for j in judged if j.place % 2]
