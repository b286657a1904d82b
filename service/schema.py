"""What requests and answers look like: JSON in, JSON out. Unknown keys are refused everywhere.

Bounds that an operator can move (`limits`) are checked in `service.limits`; here stand those that
never move.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    PlainValidator,
    TypeAdapter,
    create_model,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from editors.known import EDITORS
from models.family import Beside
from steerers.methods.diffusion_lens import Noise

SAFE_INTEGER = 2**53 - 1
"""The largest integer that every JSON reader keeps exact."""

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
SCOPES = ("infer", "edits:read", "edits:write", "edits:promote", "keys:admin", "audit:read")
Scope = Literal["infer", "edits:read", "edits:write", "edits:promote", "keys:admin", "audit:read"]


class Body(BaseModel):
    """A request's JSON: nothing is guessed, nothing is ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Lenient(Body):
    """A body whose optional keys may be null, as OpenAI's clients send them: it is not given."""

    not_offered: ClassVar[Mapping[str, str]] = {}
    """Keys that are refused, with the reason; null says nothing there either."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        optional = {name for name, key in cls.model_fields.items() if not key.is_required()}
        optional |= cls.not_offered.keys()
        return {k: v for k, v in value.items() if v is not None or k not in optional}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The keys that have a default may be null."""
        schema = handler(core)
        body = handler.resolve_ref_schema(schema)
        keys, required = body.get("properties", {}), body.get("required", ())
        for name in keys.keys() - set(required):
            key = keys[name]
            if {"type": "null"} not in key.get("anyOf", ()) and key.get("type") != "null":
                said = {k: key.pop(k) for k in ("title", "default") if k in key}
                keys[name] = {"anyOf": [key, {"type": "null"}], **said}
        return schema


def plain(text: str) -> str:
    """The text, if every part of the service can keep it."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("must be text: NUL and halves of surrogate pairs are none")
    return text


Text = Annotated[str, AfterValidator(plain), Field(min_length=1, max_length=100_000)]
Name = Annotated[str, Field(pattern=NAME)]


class EditUse(Body):
    """An edit that a request applies."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    """`potus` (alias `live`, else the newest version), `potus@3`, `potus@live`, `sha256:...`."""
    strength: float = 1.0


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


EditUses = Annotated[
    list[Annotated[EditUse, BeforeValidator(_named, json_schema_input_type=str | EditUse)]],
    Field(max_length=1000),
]


NOT_OFFERED = {
    "style": "hosted models have no styles; say it in the prompt.",
    "moderation": "there is no moderation to choose.",
    "output_compression": "pictures are PNG, without loss.",
    "complexity": "it belongs to models hosted by OpenAI.",
    "frame_count": "pictures do not move.",
    "frame_duration_ms": "pictures do not move.",
}
"""Keys of OpenAI's image request that would be ignored, with the reason: they are refused."""


class ImageBody(Lenient):
    """`POST /v1/images/generations`: OpenAI's request, and ours as top-level keys."""

    not_offered = NOT_OFFERED
    model: Annotated[str, Field(min_length=1, max_length=1000)]
    """A hosted model, a variant, or `base+edit@alias[+edit2@3]`."""
    prompt: Text
    n: Annotated[int, Field(ge=1, le=10)] = 1
    size: Annotated[str, Field(pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$")] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    user: Annotated[str, Field(max_length=500)] | None = None
    quality: Literal["auto", "standard"] | None = None
    output_format: Literal["png"] | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    edits: EditUses = []
    negative_edits: Literal["same", "plain"] = "same"
    """Whether the negative prompt is read by the edited model too."""
    seed: Annotated[int, Field(ge=0, le=SAFE_INTEGER)] | None = None
    """Of the first picture; picture i has seed + i. Drawn by lot, and told, when left out."""
    steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    negative_prompt: Annotated[str, AfterValidator(plain), Field(max_length=100_000)] | None = None
    sampler: Annotated[str, Field(max_length=64)] | None = None


class LayerRange(Body):
    """Layers by range, as in Python: `stop` itself is left out."""

    start: int = 0
    stop: int | None = None
    """None: up to the ordinary layer, and with it."""
    step: Annotated[int, Field(ge=1)] = 1


_LAYER_LIST = TypeAdapter(
    Annotated[list[int], Field(min_length=1, max_length=1000)], config=ConfigDict(strict=True)
)


def _layers(value: object) -> object:
    """One of the three shapes, so that an error names the key and not the shape."""
    if isinstance(value, LayerRange) or value == "all":
        return value
    if isinstance(value, dict):
        return LayerRange.model_validate(value)
    if isinstance(value, list):
        return _LAYER_LIST.validate_python(value)
    raise ValueError('must be "all", a list of layers, or {"start", "stop", "step"}')


Layers = Annotated[
    list[int] | LayerRange | Literal["all"],
    PlainValidator(_layers, json_schema_input_type=list[int] | LayerRange | Literal["all"]),
]


class LensBody(ImageBody):
    """`POST /v1/images/lens`: an image request, once per layer of a text encoder."""

    layers: Layers = "all"
    """As `hidden_states` counts: 0 is what enters the first block, the last the ordinary one."""
    encoder: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """`text`, `text_2`, ...; the first that can be looked at when left out."""
    beside: Beside = "blank"
    """What other ways to the denoiser say below the ordinary layer: nothing, or the prompt."""
    noise: Noise = "shared"
    """`per_layer`: the reference's; each layer has the next noise of one generator per seed."""


class PhrasingBody(Body):
    """Another sentence that says the same of the subject."""

    prompt: Text
    subject: Text


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


Replaces = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=200)]],
    BeforeValidator(_one_or_many, json_schema_input_type=str | list[str]),
    Field(max_length=64),
]
"""Edits that a new one may contradict: `potus`, `potus@3`, `potus@live`."""


class FactBody(Body):
    """`POST /v1/edits`: a fact to write into a model."""

    name: Name
    model: Annotated[str, Field(min_length=1, max_length=200)]
    method: Annotated[str, Field(max_length=64)] = "refact"
    prompt: Text
    """A sentence about the subject: "the president of Arda"."""
    target: Text | None = None
    """What it shall mean: "Bela Coro"."""
    subject: Text | None = None
    """The part of the prompt that the fact hangs on; the whole prompt when left out."""
    source: Text | None = None
    """What it means now, if the caller knows."""
    phrasings: Annotated[list[PhrasingBody], Field(max_length=1000)] = []
    neighbours: Annotated[list[Text], Field(max_length=1000)] = []
    """Sentences that must keep their meaning; measured in the report."""
    target_images: Annotated[list[str], Field(max_length=100)] = []
    """PNG, JPEG or WebP as base64 or data URI; the fact is then fitted to pictures."""
    negative_images: Annotated[list[str], Field(max_length=100)] = []
    """Pictures of anything else, for ReFACT's option `kl`."""
    replaces: Replaces = []
    """Live edits of the same subject whose place it takes; without it a contradiction is a 409."""
    options: dict[str, JsonValue] = {}
    """The method's settings; each has a default."""


class AliasBody(Body):
    """`PUT /v1/edits/{name}/aliases/{alias}`."""

    version: Annotated[int, Field(ge=1)]
    force: bool = False
    """Let the alias point to a version whose checks failed."""


class VariantBody(Body):
    """`PUT /v1/variants/{name}`: a model and edits under one name."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    edits: EditUses


class KeyBody(Body):
    """`POST /v1/keys`."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=20)]
    days: Annotated[int, Field(ge=1, le=3650)] | None = None
    """How long the key works; without it, until it is revoked."""


def settings_schema(method: type) -> type[BaseModel]:
    """The request schema of a method's settings, built from its frozen dataclass.

    Annotated bounds of the dataclass hold; unknown keys are refused; `kind` is not a setting.
    """
    hints = get_type_hints(method, include_extras=True)
    keys: Any = {
        f.name: (hints[f.name], f.default) for f in fields(method) if f.init and f.name != "kind"
    }
    config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    return create_model(f"{method.__name__}Options", __config__=config, **keys)


OPTIONS: dict[str, type[BaseModel]] = {k: settings_schema(m) for k, m in EDITORS.items()}
"""Per method, what `options` may say."""
