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
from service.schema import SAFE_INTEGER, EditUses, Lenient, plain
from service.schema_steering import BackPatching, Steerings

Written = Annotated[str, AfterValidator(plain), Field(max_length=1_000_000)]
"""What people and models write; it may be empty."""

NONE: Any = Field(default_factory=list)
"""An empty list that nobody shares."""


class ImageUrl(Lenient):
    """A picture in a message: PNG, JPEG or WebP."""

    url: Annotated[str, AfterValidator(str.strip), Field(max_length=1_000_000_000)]
    """`data:image/png;base64,...`, or an address at a host that the operator named."""
    detail: Literal["auto", "low", "high"] = "auto"
    """Taken; a model looks as closely as its own processor does, and the answer says so."""


class Part(Lenient):
    """A part of a message."""

    type: Annotated[str, Field(max_length=64)]
    text: Written | None = None
    image_url: ImageUrl | None = None
    video_url: JsonValue = None
    """These are refused by what they are, not as unknown keys."""
    video: JsonValue = None
    input_audio: JsonValue = None
    file: JsonValue = None


def _parts(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Message(Lenient):
    """Who said what. `developer` is read as `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    """Of these, `tool` and `function` are refused by name: there are no tools."""
    content: Annotated[
        Annotated[list[Part], Field(max_length=1000)] | None,
        BeforeValidator(_parts, json_schema_input_type=str | list[Part] | None),
    ] = None
    refusal: None = None
    audio: None = None
    name: JsonValue = None
    function_call: JsonValue = None
    tool_calls: JsonValue = None
    tool_call_id: JsonValue = None
    annotations: Annotated[list[JsonValue], Field(max_length=0)] | None = None


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


Stops = Annotated[
    list[Annotated[str, AfterValidator(plain), Field(min_length=1, max_length=1000)]],
    BeforeValidator(_one_or_many, json_schema_input_type=str | list[str]),
    Field(max_length=1000),
]


class StreamOptions(Lenient):
    """What a stream tells besides the text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None
    """Taken and forgotten: there is no padding."""


def _bias(value: object) -> object:
    """JSON's keys are strings: here they are token ids."""
    if not isinstance(value, dict):
        return value
    for key in value:
        if not (str(key).isascii() and str(key).isdecimal() and len(str(key)) <= 15):
            raise ValueError(f"{str(key)[:40]!r} is no token: its keys are token ids like '42'")
    return {int(key): bias for key, bias in value.items()}


def _warm(value: float) -> float:
    if 0 < value < COLDEST:
        raise ValueError(f"must be 0 for the likeliest token, or {COLDEST:g} to 2")
    return value


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


class GenerationBody(Lenient):
    """What chat and completions share."""

    not_offered = NOT_OFFERED
    model: Annotated[str, Field(min_length=1, max_length=1000)]
    """A hosted model, a variant, or `base+name@alias[+name2@3]` (edits, presets, vectors)."""
    n: Annotated[int, Field(ge=1)] | None = None
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
    unverified: Literal["refuse", "allow"] = "refuse"
    """`allow`: features that no gate speaks for steer all the same, if the model's policy permits
    it."""
    compare: bool = False
    """Also answer without edits, steering and back-patching, from the same seed."""


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=100_000)]
    backpatch: BackPatching | None = None
    """Late representations of the pictures' tokens written back into an early layer."""
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
    raise ValueError("must be a text, a list of texts, a list of token ids, or a list of those")


_PromptShapes = str | list[str] | list[int] | list[list[int]]


class CompletionBody(GenerationBody):
    """`POST /v1/completions`: text goes on, without a chat template."""

    prompt: Annotated[list[Any], PlainValidator(_prompts, json_schema_input_type=_PromptShapes)]
    echo: bool | None = None
    """The prompt stands before its continuation."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    suffix: Annotated[str, Field(max_length=100_000)] | None = None
