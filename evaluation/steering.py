"""Does steering work: is the text about the concept, and is it still a text?

Each way of steering towards a topic is tried at several strengths. Half of the openers choose the
strength, the other half are reported (AxBench's protocol; Arad et al. 2025, section 5). Success is
the judge's word, coherence is likelihood under the unsteered model times variety; a text's score is
their harmonic mean, 0 if either is 0. Filters are subsets of the same runs, and what they leave out
is told beside what they gain.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from evaluation.errors import NothingToJudge
from evaluation.protocol import Estimate, bootstrap
from evaluation.topics import PRESENT, TopicJudge
from evaluation.writing import Asked, Writer
from models.patch import Patch

Kind = Literal["feature", "direction", "prompt"]
OPENERS = (
    "I believe that",
    "Back in the day,",
    "From my experience,",
    "It is often said that",
    "Once upon a time,",
    "To be honest,",
    "As far as I know,",
    "One day,",
    "People say that",
    "In the end,",
)


@dataclass(frozen=True, kw_only=True)
class SteeringSettings:
    """What is run.

    Attributes:
        openers: Neutral beginnings; the 1st, 3rd, ... choose strengths, the others are reported.
        repeats: Texts of each opener, with different seeds.
        tokens: New tokens of a text.
        temperature: Of sampling.
        seed: The first of each opener.
        strengths: Factors of A that features are tried at.
        norms: Multiples of the stream's norm that directions are tried at.
        usable, strong: Thresholds of the output score.
        input: Threshold of the input score.
    """

    openers: tuple[str, ...] = OPENERS
    repeats: int = 1
    tokens: int = 20
    temperature: float = 0.7
    seed: int = 0
    strengths: tuple[float, ...] = (0.4, 0.8, 1.2, 1.6, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
    norms: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
    usable: float = 0.01
    strong: float = 0.1
    input: float = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Way:
    """One way to steer towards a topic.

    Attributes:
        name: Of the feature or direction.
        strengths: What it is tried at; one for a way without strength.
        patch: What a strength means.
        prompt: What stands in front of the text instead of an opener; None is the opener.
        lens: Tokens whose number is counted (GenSucc).
        output_score, input_score: Of a feature.
        site: Where it acts.
    """

    topic: str
    kind: Kind
    name: str
    strengths: tuple[float, ...]
    patch: Callable[[float], Patch]
    prompt: tuple[int, ...] | None = None
    lens: frozenset[int] = frozenset()
    output_score: float | None = None
    input_score: float | None = None
    site: str = ""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One text.

    Attributes:
        place: Of its opener.
        present: Whether the judge says that it is about the topic.
        coherence: Likelihood under the unsteered model relative to its own texts (at most 1), times
            the share of pairs of tokens that are not repeated.
        hits: Tokens among the feature's lens tokens.
    """

    text: str
    place: int
    present: bool
    coherence: float
    hits: int

    @property
    def score(self) -> float:
        """Harmonic mean of success and coherence."""
        both = float(self.present), self.coherence
        return 0.0 if min(both) == 0 else 2 * both[0] * both[1] / sum(both)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One way at the strength that one half of the openers chose, told by the other half."""

    topic: str
    kind: Kind
    name: str
    site: str
    output_score: float | None
    input_score: float | None
    strength: float
    chosen_by: float
    score: float
    success: float
    coherence: float
    hits: float
    sample: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of the table: some of the results, averaged per topic, then over topics.

    Attributes:
        topics: How many topics are left, of all.
        kept: Share of the ways that are left.
        ratio: Score divided by the unfiltered features' own, over the same bootstrap draws.
    """

    name: str
    score: Estimate | None
    success: float
    coherence: float
    hits: float
    topics: int
    kept: float
    ratio: tuple[float, float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Depth:
    """Scores of all features of one dictionary."""

    dictionary: str
    layer: int
    depth: float
    output: tuple[float, ...]
    input: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class SteeringReport:
    """Everything that was found."""

    header: Mapping[str, Any]
    settings: SteeringSettings
    topics: tuple[str, ...]
    plain: Mapping[str, float]
    results: tuple[Result, ...]
    depths: tuple[Depth, ...] = ()

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """The table."""
        return tuple(_lines(self))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; features' scores by depth are summed up."""
        told = asdict(self)
        told["depths"] = [depth_told(d, self.settings) for d in self.depths]
        return told | {"lines": [asdict(line) for line in self.lines]}


def labels_found(
    results: Sequence[Result], *, success: float = 0.5, coherence: float = 0.4
) -> dict[str, dict[int, str]]:
    """By dictionary the features that were seen to steer, each with the topic it does best.

    Args:
        results: Of features named `dictionary/number`.
        success: What a feature reaches on the openers that did not choose its strength.
        coherence: The same.
    """
    found: dict[str, dict[int, str]] = {}
    for result in sorted(results, key=lambda r: r.score):
        if result.kind != "feature" or result.success < success or result.coherence < coherence:
            continue
        dictionary, _, number = result.name.rpartition("/")
        found.setdefault(dictionary, {})[int(number)] = result.topic  # the best comes last
    return found


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


_RUNS_AT_ONCE = 64


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
    chosen = max(range(len(halves)), key=lambda i: _mean(j.score for j in halves[i][0]))
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
        chosen_by=_mean(j.score for j in choosing),
        score=_mean(j.score for j in told),
        success=_mean(float(j.present) for j in told),
        coherence=_mean(j.coherence for j in told),
        hits=_mean(float(j.hits) for j in told),
        sample=best.text,
    )


def _halves(judged: Sequence[Judged]) -> tuple[list[Judged], list[Judged]]:
    return [j for j in judged if j.place % 2 == 0], [j for j in judged if j.place % 2]


def _mean(values: Any) -> float:
    found = list(values)
    return float(np.mean(found)) if found else 0.0


@dataclass(frozen=True, kw_only=True)
class _Subset:
    name: str
    results: Sequence[Result]
    of: int
    compared: bool = field(default=False)


def _lines(report: SteeringReport) -> Iterator[Line]:
    features = [r for r in report.results if r.kind == "feature"]
    settings = report.settings

    def scored(least: float) -> list[Result]:
        return [r for r in features if (r.output_score or 0.0) >= least]

    inputs = [r for r in features if (r.input_score or 0.0) >= settings.input]
    n = len(features)
    subsets = [
        _Subset(name="SAE features, unfiltered", results=features, of=n),
        _Subset(
            name=f"output score >= {settings.usable}",
            results=scored(settings.usable),
            of=n,
            compared=True,
        ),
        _Subset(
            name=f"output score >= {settings.strong}",
            results=scored(settings.strong),
            of=n,
            compared=True,
        ),
        _Subset(name=f"input score >= {settings.input}", results=inputs, of=n, compared=True),
        _Subset(
            name="the best output score of each topic",
            results=_best(scored(settings.usable)),
            of=n,
            compared=True,
        ),
    ]
    for kind, name in (("direction", "mean-difference vector"), ("prompt", "prompting")):
        some = [r for r in report.results if r.kind == kind]
        best = _chosen(some)
        subsets.append(_Subset(name=name, results=best, of=len(best), compared=True))
    for subset in subsets:
        yield _line(subset, features, report.topics)


def _best(results: Sequence[Result]) -> list[Result]:
    """Per topic the feature with the highest output score: what the steerer itself takes."""
    by_topic: dict[str, Result] = {}
    for result in results:
        known = by_topic.get(result.topic)
        if known is None or (result.output_score or 0) > (known.output_score or 0):
            by_topic[result.topic] = result
    return list(by_topic.values())


def _chosen(results: Sequence[Result]) -> list[Result]:
    """Per topic the one that did best on the half that chooses."""
    by_topic: dict[str, Result] = {}
    for result in results:
        known = by_topic.get(result.topic)
        if known is None or result.chosen_by > known.chosen_by:
            by_topic[result.topic] = result
    return list(by_topic.values())


def _line(subset: _Subset, features: Sequence[Result], topics: Sequence[str]) -> Line:
    by_topic = _by_topic(subset.results)
    if not by_topic:
        return Line(
            name=subset.name, score=None, success=0.0, coherence=0.0, hits=0.0, topics=0, kept=0.0
        )
    scores = {t: _mean(r.score for r in of) for t, of in by_topic.items()}
    values = np.array(list(scores.values()))
    low, high = bootstrap(list(scores), values)
    return Line(
        name=subset.name,
        score=Estimate(
            value=float(values.mean()),
            low=low,
            high=high,
            deviation=float(values.std()),
            rows=len(scores),
            pictures=len(subset.results),
        ),
        success=_mean(_mean(r.success for r in of) for of in by_topic.values()),
        coherence=_mean(_mean(r.coherence for r in of) for of in by_topic.values()),
        hits=_mean(_mean(r.hits for r in of) for of in by_topic.values()),
        topics=len(scores),
        kept=len(subset.results) / max(1, subset.of),
        ratio=_ratio(scores, features, topics) if subset.compared else None,
    )


def _by_topic(results: Sequence[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.topic, []).append(result)
    return found


def _ratio(
    scores: Mapping[str, float], features: Sequence[Result], topics: Sequence[str]
) -> tuple[float, float, float] | None:
    """Mean over the topics that are left / mean over all, with its 95 % bootstrap interval."""
    plain = {t: _mean(r.score for r in of) for t, of in _by_topic(features).items()}
    names = [t for t in topics if t in plain]
    if not names or not any(plain.values()):
        return None
    draws = np.random.default_rng(0).integers(len(names), size=(2000, len(names)))
    ours = np.array([scores.get(t, np.nan) for t in names])
    theirs = np.array([plain[t] for t in names])
    with np.errstate(invalid="ignore", divide="ignore"):
        sums, counts = np.nansum(ours[draws], 1), (~np.isnan(ours[draws])).sum(1)
        found = (sums / counts) / theirs[draws].mean(1)
    found = found[np.isfinite(found)]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(np.nanmean(ours) / theirs.mean()), float(low), float(high)


def depth_told(depth: Depth, settings: SteeringSettings) -> dict[str, Any]:
    """One dictionary's scores in a few numbers."""
    output = np.array(depth.output)
    known = np.array([s for s in depth.input if s is not None])
    return {
        "dictionary": depth.dictionary,
        "layer": depth.layer,
        "depth": depth.depth,
        "features": len(output),
        "output_median": float(np.median(output)),
        "output_90": float(np.percentile(output, 90)),
        "usable": float((output >= settings.usable).mean()),
        "strong": float((output >= settings.strong).mean()),
        "input_known": len(known),
        "input_mean": float(known.mean()) if len(known) else None,
    }
