"""A feature of a dictionary as JSON: what it promotes, what it is called, what it scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from service.registry.records import FeatureLabel
from steerers.dictionary import Dictionary
from steerers.lens import LensTokens
from steerers.score import STRONG, USABLE, Score


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """What is known of some features of a dictionary.

    Attributes:
        lens: A row per feature.
        labels, scores, input_scores: Of those features that have one.
    """

    dictionary: Dictionary
    lens: LensTokens
    labels: Mapping[int, tuple[FeatureLabel, ...]]
    scores: Mapping[int, Score]
    input_scores: Mapping[int, float | None]


def shown(
    known: Known, feature: int, spell: Callable[[int], str], most: int | None = None
) -> dict[str, Any]:
    """One feature.

    Args:
        known: What is known of it.
        feature: Its number.
        spell: A token's text.
        most: How many lens tokens are told; all of them if None.
    """
    row = known.lens.features.tolist().index(feature)
    ids, values = known.lens.ids[row][:most], known.lens.values[row][:most]
    low_ids, low_values = known.lens.low_ids[row][:most], known.lens.low_values[row][:most]
    score = known.scores.get(feature)
    return {
        "object": "sae.feature",
        "sae": known.dictionary.id,
        "feature": feature,
        "promotes": _tokens(ids, values, spell),
        "suppresses": _tokens(low_ids, low_values, spell),
        "labels": [
            {"label": one.label, "source": one.source} for one in known.labels.get(feature, ())
        ],
        "scores": None if score is None else score_told(score),
        "input_score": known.input_scores.get(feature),
    }


def score_told(score: Score) -> dict[str, Any]:
    """An output score as JSON; the lens tokens stand elsewhere."""
    told = score.as_dict()
    del told["feature"], told["tokens"]
    reached = score.output_score or 0.0
    return {
        **told,
        "delta_confidence": score.delta_confidence,
        "usable": reached >= USABLE,
        "strong": reached >= STRONG,
    }


def _tokens(ids: Any, values: Any, spell: Callable[[int], str]) -> list[dict[str, Any]]:
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return [{"id": i, "token": spell(i), "logit": round(v, 4)} for i, v in pairs]
