"""What steering did: every way with its strengths, and the table of what filters keep.

Filters are subsets of the same runs, and what they leave out is told beside what they gain.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from evaluation.protocol import Estimate, bootstrap
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
    scores = {t: mean(r.score for r in of) for t, of in by_topic.items()}
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
        success=mean(mean(r.success for r in of) for of in by_topic.values()),
        coherence=mean(mean(r.coherence for r in of) for of in by_topic.values()),
        hits=mean(mean(r.hits for r in of) for of in by_topic.values()),
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
    plain = {t: mean(r.score for r in of) for t, of in _by_topic(features).items()}
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


def mean(values: Any) -> float:
    """Of some numbers; 0 of none."""
    found = list(values)
    return float(np.mean(found)) if found else 0.0
