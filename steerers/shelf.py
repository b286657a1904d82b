"""What is known of one SAE on one model, as functions: a plan asks, whoever knows answers.

The service answers from its registry and computes what is missing on the model's own thread;
`Shelf.of` computes everything on the spot and keeps it for as long as it lives.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from models.hosted import HostedModel
from steerers.dictionary import Dictionary
from steerers.lens import LensIndex, lens
from steerers.output_score import Scorer, neutral_of
from steerers.prompted import prompted
from steerers.score import REFERENCE, Neutral, Score, ScoreSettings


def _no_labels(_concept: str) -> Mapping[int, str]:
    return {}


def _any(_feature: int) -> bool:
    return True


def _no_activation(_feature: int) -> float | None:
    return None


@dataclass(frozen=True, kw_only=True, eq=False)
class Shelf:
    """One SAE and what can be asked about it.

    Attributes:
        neutral: What the neutral prompt's last token says.
        at_prompt: The same of the last token of a prompt; for `a_max: prompt`.
        scores: Output scores of features, all of them: stored, or measured now.
        index: The lens of the whole dictionary, turned around; for concepts.
        labels: Labels that may mention a concept, by feature.
        max_activation: The largest activation that was seen of a feature; None if nobody looked.
        permits: Whether a feature may be chosen for a concept; others are passed over.
    """

    dictionary: Dictionary
    neutral: Callable[[], Neutral]
    at_prompt: Callable[[Sequence[int]], Neutral]
    scores: Callable[[Sequence[int]], Mapping[int, Score]]
    index: Callable[[], LensIndex]
    labels: Callable[[str], Mapping[int, str]] = _no_labels
    max_activation: Callable[[int], float | None] = _no_activation
    permits: Callable[[int], bool] = _any

    @classmethod
    def of(
        cls,
        hosted: HostedModel,
        dictionary: Dictionary,
        settings: ScoreSettings = REFERENCE,
        *,
        labels: Mapping[int, str] | None = None,
        max_activations: Mapping[int, float] | None = None,
    ) -> "Shelf":
        """Everything from the model itself, in this thread, when it is first asked for."""
        scorer = Scorer(hosted=hosted, dictionary=dictionary, settings=settings)
        known: dict[int, Score] = {}

        def scores(features: Sequence[int]) -> Mapping[int, Score]:
            if missing := [f for f in dict.fromkeys(features) if f not in known]:
                known.update((s.feature, s) for s in scorer.score(missing))
            return {f: known[f] for f in features}

        @cache
        def index() -> LensIndex:
            found = lens(hosted, dictionary, range(dictionary.features), settings.tokens)
            return LensIndex.of(found.features, found.ids)

        return cls(
            dictionary=dictionary,
            neutral=lambda: scorer.neutral,
            at_prompt=lambda ids: at_prompt(hosted, dictionary, ids),
            scores=scores,
            index=index,
            labels=lambda _: labels or {},
            max_activation=lambda feature: (max_activations or {}).get(feature),
        )


def at_prompt(hosted: HostedModel, dictionary: Dictionary, ids: Sequence[int]) -> Neutral:
    """What the last token of these says at the dictionary's site, unsteered: one forward.

    Raises:
        NothingToSteer: There is no token.
    """
    return neutral_of(prompted(hosted, ids, [dictionary.site]), dictionary)
