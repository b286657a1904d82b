"""Ways to steer towards a topic: features of SAEs, learned directions, and asking for it in words.

A topic's features are those whose lens has a word of it, and those that are most active on its
texts: the first kind writes, the second reads, and the scores are to tell them apart.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.steering_result import Depth, SteeringSettings, Way
from evaluation.topics import Labelled
from evaluation.writing import Writer
from models.hosted import HostedModel
from models.patch import Patch, Shift
from models.site import Site
from steerers.activations import Activations, collect
from steerers.dictionary import Dictionary
from steerers.input_score import InputScore, InputSettings, input_score
from steerers.lens import LensIndex, LensTokens, lens
from steerers.mean_difference import mean_difference
from steerers.output_score import BATCH, Scorer
from steerers.score import Score
from steerers.search import candidates, tokens_of
from steerers.streams import read

_TOKENS, _TOKENS_AT_ONCE = 128, 4096
INPUT = InputSettings()


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A topic: its name in the judge's labels, and how people say it."""

    name: str
    about: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """What one dictionary says about the texts and about itself.

    Attributes:
        active: Mean code per topic over the tokens of its texts.
        scores: Output scores of all features.
        inputs: Input scores of all features.
        tokens: The lens of all features.
    """

    dictionary: Dictionary
    scorer: Scorer
    active: Float[Tensor, "topics features"]
    scores: tuple[Score, ...]
    inputs: tuple[InputScore, ...]
    tokens: LensTokens


def read_dictionary(
    hosted: HostedModel,
    dictionary: Dictionary,
    topics: Sequence[Topic],
    texts: Sequence[Labelled],
    tell: Callable[[str], None] = lambda _stage: None,
) -> Read:
    """Score every feature, and find where each is active."""
    every = range(dictionary.features)
    scorer = Scorer(hosted=hosted, dictionary=dictionary)
    tell(f"{dictionary.id}: output scores")
    parts = [scorer.score(every[i : i + BATCH]) for i in range(0, len(every), BATCH)]
    tell(f"{dictionary.id}: activations")
    seen = _drained(collect(hosted, dictionary, [t.text for t in texts], keep=50))
    tokens = lens(hosted, dictionary, every)
    ids = tokens.ids.tolist()
    inputs = [input_score(f, seen.most_active(f), ids[f], INPUT) for f in every]
    return Read(
        dictionary=dictionary,
        scorer=scorer,
        active=_active(hosted, dictionary, topics, texts),
        scores=tuple(score for part in parts for score in part),
        inputs=tuple(inputs),
        tokens=tokens,
    )


def _drained(steps: object) -> Activations:
    try:
        while True:
            next(steps)  # type: ignore[call-overload]
    except StopIteration as end:
        return end.value


@torch.inference_mode()
def _active(
    hosted: HostedModel, dictionary: Dictionary, topics: Sequence[Topic], texts: Sequence[Labelled]
) -> Float[Tensor, "topics features"]:
    sums = torch.zeros(len(topics), dictionary.features)
    counts = torch.zeros(len(topics))
    for some in read(hosted, [t.text for t in texts], [dictionary.site], _TOKENS, _TOKENS_AT_ONCE):
        codes = dictionary.encode(some.streams[dictionary.site]).cpu() * some.meant[..., None]
        for row, place in enumerate(some.index):
            for column, topic in enumerate(topics):
                if topic.name in texts[place].topics:
                    sums[column] += codes[row].sum(0)
                    counts[column] += some.meant[row].sum()
    return sums / counts.clamp(min=1)[:, None]


def depth_of(hosted: HostedModel, one: Read) -> Depth:
    """The dictionary's scores, at its place in the stack."""
    site = Site.parse(one.dictionary.site)
    layer = -1 if site.block is None else site.block
    return Depth(
        dictionary=one.dictionary.id,
        layer=layer,
        depth=(layer + 1) / len(hosted.towers[site.tower]),
        output=tuple(s.output_score or 0.0 for s in one.scores),
        input=tuple(s.input_score for s in one.inputs),
    )


def feature_ways(
    hosted: HostedModel,
    topics: Sequence[Topic],
    reads: Sequence[Read],
    settings: SteeringSettings,
    *,
    each: int = 4,
) -> Iterator[Way]:
    """Per topic and dictionary, half of `each` by their lens, half by where they are active."""
    for one in reads:
        index = LensIndex.of(one.tokens.features, one.tokens.ids)
        other = one.active.sum(0)
        for column, topic in enumerate(topics):
            ids, _ = tokens_of(hosted, topic.about)
            by_lens = [c.feature for c in candidates(ids, index, topic.about)]
            rest = (other - one.active[column]) / max(1, len(topics) - 1)
            by_text: list[int] = (one.active[column] - rest).argsort(descending=True).tolist()
            chosen = dict.fromkeys(by_lens[: each // 2])
            for feature in by_text:
                if len(chosen) >= each:
                    break
                chosen.setdefault(feature)
            for feature in chosen:
                yield _feature_way(topic, one, feature, settings)


def _feature_way(topic: Topic, one: Read, feature: int, settings: SteeringSettings) -> Way:
    site, row = one.dictionary.site, one.dictionary.decoder[feature]
    largest = one.scorer.neutral.a_max

    def patch(strength: float) -> Patch:
        vector = strength * largest * row
        return Patch((Shift(site=site, vector=vector, positions="last_and_generated"),))

    return Way(
        topic=topic.name,
        kind="feature",
        name=f"{one.dictionary.id}/{feature}",
        strengths=settings.strengths,
        patch=patch,
        lens=frozenset(one.tokens.ids[feature].tolist()),
        output_score=one.scores[feature].output_score,
        input_score=one.inputs[feature].input_score,
        site=site,
    )


def direction_ways(
    hosted: HostedModel,
    topics: Sequence[Topic],
    texts: Sequence[Labelled],
    sites: Sequence[str],
    settings: SteeringSettings,
) -> Iterator[Way]:
    """Per topic and site the mean-difference vector, at multiples of the stream's norm."""
    for topic in topics:
        about = [t.text for t in texts if topic.name in t.topics]
        others = [t.text for t in texts if topic.name not in t.topics]
        spread = others[:: max(1, len(others) // (2 * len(about)))]
        learned = _learned(hosted, about, spread, sites)
        for site in sites:
            unit = learned[0][site] / learned[0][site].norm().clamp(min=1e-30)
            yield Way(
                topic=topic.name,
                kind="direction",
                name=f"mean difference at {site}",
                strengths=settings.norms,
                patch=partial(_added, site, unit * learned[1][site]),
                site=site,
            )


def _added(site: str, vector: Tensor, strength: float) -> Patch:
    shift = Shift(site=site, vector=strength * vector, positions="last_and_generated")
    return Patch((shift,))


def _learned(
    hosted: HostedModel, about: Sequence[str], others: Sequence[str], sites: Sequence[str]
) -> tuple[Mapping[str, Tensor], Mapping[str, float]]:
    steps = mean_difference(hosted, about, others, sites)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value.vectors, end.value.stream_norms


def prompt_ways(topics: Sequence[Topic], writer: Writer, request: str) -> Iterator[Way]:
    """Per topic the unsteered model, asked for it in words."""
    for topic in topics:
        yield Way(
            topic=topic.name,
            kind="prompt",
            name=request,
            strengths=(1.0,),
            patch=lambda _strength: Patch(),
            prompt=writer.conversation(request.format(about=topic.about)),
        )
