"""What requests to language models look like: OpenAI's keys, and ours as top-level keys.

What a hosted model cannot honour is refused by name (`NOT_OFFERED`, `service.limits_language`),
never ignored; keys without an effect on any answer (`user`, `metadata`, ...) are taken and
forgotten.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainValidator,
    TypeAdapter,
)

from engines.slots.admission import COLDEST, LEAST_REPETITION
from service.schema import SAFE_INTEGER, Body, EditUses, plain

Written = Annotated[str, AfterValidator(plain), Field(max_length=1_000_000)]
"""What people and models write; it may be empty."""

Label = Annotated[str, Field(min_length=1, max_length=200)]


NONE: Any = Field(default_factory=list)
"""An empty list that nobody shares."""


class FeatureUse(Body):
    """One feature of a sparse autoencoder, and how strongly it acts."""

    sae: Label
    feature: Annotated[int, Field(ge=0)]
    strength: float | None = None
    """In the mode's unit; needed by every mode but `ablate`, which takes none."""


class VectorUse(Body):
    """A learned or imported direction: `happy` (alias `live`), `happy@3`, `sha256:...`."""

    name: Label
    strength: float = 1.0


def _worded(concept: str) -> str:
    if not concept.strip():
        raise ValueError("a concept has a word")
    return plain(concept)


class SteeringSettings(Body):
    """Where a row is steered to and how: what a preset keeps and a request says.

    Either `concept` with `strength`, or `features`, or `vectors`; features and vectors go together.
    """

    features: Annotated[list[FeatureUse], Field(max_length=1000)] = NONE
    vectors: Annotated[list[VectorUse], Field(max_length=1000)] = NONE
    concept: Annotated[str, AfterValidator(_worded), Field(max_length=200)] | None = None
    """A word or two; the features that write it are searched and filtered by output score."""
    strength: float | None = None
    """Of the concept's features."""
    sae: Label | None = None
    """Where the concept is searched; every dictionary of the model when left out."""
    count: Annotated[int, Field(ge=1, le=5)] = 1
    """How many features a concept may use, best first."""
    mode: Literal["amp", "max", "raw", "unit", "clamp", "min_clamp", "multiply", "ablate"] = "amp"
    """What a strength means; `amp`: times the largest code of the neutral prompt."""
    a_max: Literal["neutral", "prompt", "live"] = "neutral"
    """Whose largest code `amp` multiplies; `live` is refused."""
    clamp_in: Literal["activation", "a_max", "max"] = "activation"
    """What a strength of `clamp` and `min_clamp` is: an activation, or a multiple of that largest
    code or of the feature's largest activation."""
    unit: Literal["raw", "unit", "stream"] = "raw"
    """What a vector's strength multiplies: it as it is, at length 1, or at the stream's norm."""
    sites: Annotated[list[Label], Field(max_length=1000)] = NONE
    """Where vectors are added; everywhere they are of when left out."""
    positions: Literal["last_and_generated", "all", "prompt", "generated"] = "last_and_generated"
    skip_special: bool = False
    """Leave the prompt's special tokens alone."""
    min_output_score: Annotated[float, Field(ge=0, le=1)] | None = None
    """Features below it are not used; the steerer's own default when left out."""
    on_low_score: Literal["reject", "warn", "allow"] = "reject"


class SteeringBody(SteeringSettings):
    """`steering` of a request: settings, or a preset that keeps them."""

    preset: Label | None = None
    """`winter` (alias `live`), `winter@3`, `sha256:...`; it goes with no other key."""


_STEERING_LIST = TypeAdapter(
    Annotated[list[SteeringBody], Field(max_length=64)], config=ConfigDict(strict=True)
)


def _steerings(value: object) -> object:
    """One or several, so that an error names the key and not the shape."""
    if isinstance(value, dict):
        return [SteeringBody.model_validate(value)]
    if isinstance(value, list):
        return _STEERING_LIST.validate_python(value)
    raise ValueError("use an object, or a list of objects")


Steerings = Annotated[
    list[SteeringBody],
    PlainValidator(_steerings, json_schema_input_type=SteeringBody | list[SteeringBody]),
]


class ImageUrl(Body):
    """A picture in a message."""

    url: Annotated[str, Field(max_length=100_000_000)]
    detail: Literal["auto", "low", "high"] = "auto"


class Part(Body):
    """A part of a message."""

    type: Annotated[str, Field(max_length=64)]
    text: Written | None = None
    image_url: ImageUrl | None = None


def _parts(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Message(Body):
    """Who said what. `developer` is read as `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[list[Part], Field(max_length=1000)] | None,
        BeforeValidator(_parts, json_schema_input_type=str | list[Part] | None),
    ] = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[JsonValue], Field(max_length=0)] | None = None
    annotations: Annotated[list[JsonValue], Field(max_length=0)] | None = None


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


Stops = Annotated[
    list[Annotated[str, AfterValidator(plain), Field(min_length=1, max_length=1000)]],
    BeforeValidator(_one_or_many, json_schema_input_type=str | list[str]),
    Field(max_length=1000),
]


class StreamOptions(Body):
    """What a stream tells besides the text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None
    """Taken and forgotten: there is no padding."""


def _bias(value: object) -> object:
    """JSON's keys are strings: here they are token ids."""
    if not isinstance(value, dict):
        return value
    return {int(k) if isinstance(k, str) and k.isdecimal() else k: v for k, v in value.items()}


def _warm(value: float) -> float:
    if 0 < value < COLDEST:
        raise ValueError(f"use 0 for the likeliest token, or {COLDEST:g} to 2")
    return value


class GenerationBody(Body):
    """What chat and completions share."""

    model: Annotated[str, Field(min_length=1, max_length=1000)]
    """A hosted model, a variant, or `base+name@alias[+name2@3]` (edits, presets, vectors)."""
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2), AfterValidator(_warm)] | None = None
    """0 takes the likeliest token, 0.0001 is the least above it; 1 when left out."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    """The k likeliest tokens; 0 for all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Tokens at least so likely as this share of the likeliest."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=LEAST_REPETITION, le=10)] | None = None
    """As transformers has it: 1 is none."""
    logit_bias: (
        Annotated[
            dict[int, Annotated[float, Field(ge=-100, le=100)]],
            BeforeValidator(_bias, json_schema_input_type=dict[str, float]),
        ]
        | None
    ) = None
    stop: Stops | None = None
    seed: Annotated[int, Field(ge=0, le=SAFE_INTEGER)] | None = None
    """Drawn by lot, and told, when left out."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=500)] | None = None
    edits: EditUses = NONE
    steering: Steerings = NONE
    compare: bool = False
    """Also answer without edits and steering, from the same seed."""


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=100_000)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: JsonValue = None
    modalities: list[str] | None = None
    tools: list[JsonValue] | None = None
    tool_choice: JsonValue = None
    functions: list[JsonValue] | None = None
    function_call: JsonValue = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    service_tier: Annotated[str, Field(max_length=64)] | None = None
    safety_identifier: Annotated[str, Field(max_length=500)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=500)] | None = None
    prompt_cache_retention: Annotated[str, Field(max_length=64)] | None = None


Ids = list[Annotated[int, Field(ge=0)]]
_TEXTS = TypeAdapter(list[Written], config=ConfigDict(strict=True))
_MANY_IDS = TypeAdapter(list[Ids], config=ConfigDict(strict=True))


def _prompts(value: object) -> list[Any]:
    """One text, several texts, token ids, or several lists of them: always a list."""
    kinds = {type(item) for item in value} if isinstance(value, list) else set()
    if isinstance(value, str):
        return list(_TEXTS.validate_python([value]))
    if kinds == {int}:
        return list(_MANY_IDS.validate_python([value]))
    if kinds == {str}:
        return list(_TEXTS.validate_python(value))
    if kinds == {list}:
        return list(_MANY_IDS.validate_python(value))
    raise ValueError("use a text, a list of texts, a list of token ids, or a list of those")


_PromptShapes = str | list[str] | list[int] | list[list[int]]


class CompletionBody(GenerationBody):
    """`POST /v1/completions`: text goes on, without a chat template."""

    prompt: Annotated[list[Any], PlainValidator(_prompts, json_schema_input_type=_PromptShapes)]
    echo: bool | None = None
    """The prompt stands before its continuation."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    suffix: Annotated[str, Field(max_length=100_000)] | None = None


NOT_OFFERED = {
    "audio": "hosted models answer in text.",
    "moderation": "there is no moderation to choose.",
    "prediction": "nothing is speculated here, so a prediction would change nothing.",
    "prompt_cache_options": "prefixes are cached by themselves, keyed by their content.",
    "reasoning_effort": "hosted models do not reason apart from their answer.",
    "verbosity": "say in a message how long the answer shall be.",
    "web_search_options": "hosted models do not search.",
}
"""Keys of OpenAI's requests that would be ignored, with the reason: they are refused."""
