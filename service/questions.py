"""What routes ask a host about its dictionaries and vectors: plain data, also over Ray.

`Host.answer` takes one of these; `service.dictionaries` answers. Every answer is JSON, unless it
says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.orders import SteeringOrder
from steerers.score import REFERENCE, ScoreSettings


@dataclass(frozen=True, kw_only=True)
class ListSaes:
    """Every dictionary of the model, as a list; empty for a model without."""

    tenant: str


@dataclass(frozen=True, kw_only=True)
class ShowSae:
    """One dictionary: what it is, and how much of it is scored and labelled."""

    tenant: str
    sae: str


@dataclass(frozen=True, kw_only=True)
class FindFeatures:
    """Features of a dictionary, a page of them: `{"items", "has_more", "next_cursor", "search"}`.

    At most one of `concept`, `token` and `label` is given; without any, all features are meant, or
    with `least` those that are scored so high.

    Attributes:
        concept: A word or a few; found in lens tokens and labels, scored, the best first.
        token: A text that is one token of the model; features that promote it.
        label: A part of a label.
        least: The output score that is asked for; candidates without one are scored now.
        settings: How output scores are taken.
    """

    tenant: str
    sae: str
    concept: str | None = None
    token: str | None = None
    label: str | None = None
    least: float | None = None
    settings: ScoreSettings = REFERENCE
    limit: int = 20
    after: str | None = None


@dataclass(frozen=True, kw_only=True)
class ShowFeature:
    """One feature with all that is known of it; it is scored now if nobody has."""

    tenant: str
    sae: str
    feature: int
    settings: ScoreSettings = REFERENCE


@dataclass(frozen=True, kw_only=True)
class CheckFeatures:
    """Refuse features that the dictionary does not have; its id and digest, if it has them all."""

    sae: str
    features: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SettleSteering:
    """What steering means now, for a preset to keep: `{"features", "report"}`.

    `features` has those of a concept with the named ones, each by the digest of its dictionary.
    Steering that no request could use is refused.
    """

    tenant: str
    steering: tuple[SteeringOrder, ...]


@dataclass(frozen=True, kw_only=True)
class CheckVector:
    """Refuse what learning a vector would refuse: `site`, and texts that are too short."""

    payload: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class AdoptVector:
    """A control-vector file from outside: an `AdoptedVector`.

    Attributes:
        file: Its name, whose ending says how it is read.
        site: Where a file without sites is meant; None if it says so itself.
    """

    file: str
    data: bytes = field(repr=False)
    site: str | None = None


@dataclass(frozen=True, kw_only=True)
class AdoptedVector:
    """What became of it: a file of ours, its header, and what was measured."""

    data: bytes = field(repr=False)
    header: Mapping[str, Any]
    report: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class CheckRows:
    """How many rows of a data set the model's tokens allow: `{"pairs", "swaps"}` with the dropped.

    Attributes:
        dataset: As it is kept.
    """

    dataset: bytes = field(repr=False)


Question = (
    ListSaes
    | ShowSae
    | FindFeatures
    | ShowFeature
    | CheckFeatures
    | SettleSteering
    | CheckVector
    | AdoptVector
    | CheckRows
)
