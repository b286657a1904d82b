"""What requests about dictionaries and vectors look like."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.schema import NAME, Body, Name, Text, plain, settings_schema
from steerers.input_score import INPUT_VARIANTS, InputSettings
from steerers.score import VARIANTS, ScoreSettings

Variant = Literal["reference", "paper"]
Search = Annotated[str, Field(min_length=1, max_length=200)]
SiteName = Annotated[str, Field(min_length=1, max_length=200)]
_MOST_FEATURES, _MOST_TEXTS, _MOST_LABELS = 100_000, 100_000, 100_000


class OfModel(BaseModel):
    """`?model=`: for an id that several hosted models use."""

    model_config = ConfigDict(extra="forbid")
    model: Annotated[str, Field(max_length=200)] | None = None


class FeatureQuery(OfModel):
    """`GET /v1/saes/{sae}/features`."""

    concept: Search | None = None
    token: Search | None = None
    label: Search | None = None
    min_output_score: Annotated[float, Field(ge=0, le=1)] | None = None
    settings: Variant = "reference"
    """How output scores are taken."""
    limit: Annotated[int, Field(ge=1, le=200)] = 20
    after: Annotated[str, Field(max_length=100)] | None = None


class OneFeature(OfModel):
    """`GET /v1/saes/{sae}/features/{feature}`."""

    settings: Variant = "reference"


def _named(variants: Mapping[str, Any]) -> Callable[[object], object]:
    """A validator: the name of a variant stands for its keys."""

    def spelt_out(value: object) -> object:
        return asdict(variants[value]) if isinstance(value, str) and value in variants else value

    return spelt_out


ScoreKeys: Any = settings_schema(ScoreSettings)
InputKeys: Any = settings_schema(InputSettings)
Settings = Annotated[
    ScoreKeys, BeforeValidator(_named(VARIANTS), json_schema_input_type=Variant | ScoreKeys)
]
CountSettings = Annotated[
    InputKeys, BeforeValidator(_named(INPUT_VARIANTS), json_schema_input_type=Variant | InputKeys)
]


class ScoresBody(Body):
    """`POST /v1/saes/{sae}/scores`."""

    features: (
        Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=_MOST_FEATURES)]
        | None
    ) = None
    """All of them when left out."""
    settings: Settings = Field(default_factory=lambda: ScoreKeys(**asdict(VARIANTS["reference"])))
    """`reference`, `paper`, or the keys that make them up."""


class LabelBody(Body):
    """What one feature is about; an empty text removes the label."""

    feature: Annotated[int, Field(ge=0)]
    label: Annotated[str, Field(max_length=500)]
    source: Annotated[str, Field(min_length=1, max_length=100)] | None = None


class LabelsBody(Body):
    """`PUT /v1/saes/{sae}/labels`; with `application/jsonl`, a `LabelBody` a line."""

    labels: Annotated[list[LabelBody], Field(max_length=_MOST_LABELS)]
    source: Annotated[str, Field(min_length=1, max_length=100)] = "user"
    """Who says so, where a label does not."""


class SnippetsBody(Body):
    """`POST /v1/saes/{sae}/snippets`."""

    texts: Annotated[list[Text], Field(min_length=1, max_length=_MOST_TEXTS)] | None = None
    """The model's own corpus when left out."""
    settings: CountSettings = Field(default_factory=lambda: InputKeys())
    """How input scores are counted: `reference`, `paper`, or the keys that make them up."""
    per_feature: Annotated[int, Field(ge=1, le=50)] = 10
    tokens: Annotated[int, Field(ge=8, le=1024)] = 128
    """Where longer texts are cut."""


class VectorBody(Body):
    """`POST /v1/vectors`: a direction from what is meant to what is not."""

    name: Name
    model: Annotated[str, Field(min_length=1, max_length=200)]
    positives: Annotated[list[Text], Field(min_length=1, max_length=_MOST_TEXTS)]
    negatives: Annotated[list[Text], Field(min_length=1, max_length=_MOST_TEXTS)]
    sites: Annotated[list[SiteName], Field(max_length=256)] = Field(default_factory=list)
    """Streams such as `lm.block.12`, one direction each; the middle block when left out."""
    pool: Literal["tokens", "last"] = "tokens"
    """Which tokens of a text count."""
    tokens: Annotated[int, Field(ge=1, le=4096)] = 128
    """Where longer texts are cut."""


class VectorForm(BaseModel):
    """The fields of `POST /v1/vectors/import`."""

    model_config = ConfigDict(extra="forbid")
    file: UploadFile
    name: Annotated[str, Field(pattern=NAME)]
    model: Annotated[str, Field(max_length=200)]
    site: SiteName | None = None


def scoring_of(body: ScoresBody) -> Mapping[str, Any]:
    """The settings of a scores job, checked: all of `ScoreSettings`."""
    told = body.settings.model_dump()
    plain(told["prompt"])
    return asdict(ScoreSettings(**told))
