"""`steering` of a request: an entry per steerer, built from the frozen dataclass that it is.

Entries are told apart by `kind`. One without a kind is of the steerer whose keys it has; features
and vectors may then stand in one entry, as presets keep them. A steerer that is found
(`steerers.known`) has its entry, its bounds and its place in the API's schema without a line here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache, reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pydantic
from pydantic import AfterValidator, ConfigDict, PlainValidator, TypeAdapter, create_model
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from service.schema import Lenient, plain
from steerers.known import STEERERS
from steerers.methods.back_patch import BackPatch
from steerers.methods.control_vector import ControlVector
from steerers.methods.sae import SAE

Label = Annotated[str, AfterValidator(plain), pydantic.Field(min_length=1, max_length=200)]


@cache
def body_of(settings: type) -> type[Lenient]:
    """The request schema of a frozen dataclass: its keys, defaults and bounds, as strict JSON."""
    return create_model(
        settings.__name__, __base__=Lenient, __doc__=settings.__doc__, **_keys(settings)
    )


def _keys(settings: type) -> dict[str, Any]:
    hints = get_type_hints(settings, include_extras=True)
    return {f.name: (_wired(hints[f.name]), _default(f)) for f in fields(settings) if f.init}


def _wired(hint: Any) -> Any:
    """A type of a dataclass as JSON has it: lists for tuples, objects for dataclasses."""
    origin, of = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[(_wired(of[0]), *of[1:])]
    if origin is tuple:
        length = None if of[-1] is Ellipsis else len(of)  # of a pair, say, whose parts are alike
        return Annotated[list[_wired(of[0])], pydantic.Field(min_length=length, max_length=length)]
    if origin in (Union, UnionType):
        return reduce(or_, map(_wired, of))
    if is_dataclass(hint) and isinstance(hint, type):
        return body_of(hint)
    return Annotated[str, AfterValidator(plain)] if hint is str else hint


def _default(field: Field[Any]) -> Any:
    if field.default == ():
        return pydantic.Field(default_factory=list)
    if field.default_factory is not MISSING:
        return pydantic.Field(default_factory=field.default_factory)
    return ... if field.default is MISSING else field.default


class VectorUse(Lenient):
    """A learned or imported direction: `happy` (alias `live`), `happy@3`, `sha256:...`."""

    name: Label
    strength: float = 1.0


class PresetUse(Lenient):
    """Steering that is kept under a name: `winter` (alias `live`), `winter@3`, `sha256:...`.

    It goes with no other key; one that stands there is refused by name, so it is taken here.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": False})
    preset: Label
    kind: Literal["preset"] = "preset"

    @property
    def beside(self) -> list[str]:
        """Keys that do not belong there."""
        return sorted(self.model_extra or {})


ENTRIES: Mapping[str, type[Lenient]] = {kind: body_of(m) for kind, m in STEERERS.items()}
"""Per steerer, what an entry with its `kind` may say."""

_OF_VECTORS = {k: v for k, v in _keys(ControlVector).items() if k not in ("vector", "strength")}
Features: Any = ENTRIES["sae"]
Vector: Any = ENTRIES["control_vector"]
Together: Any = create_model(
    "FeaturesAndVectors",
    __base__=Lenient,
    __doc__="An entry without a kind: a concept, or features and vectors; it has the keys of both.",
    vectors=(
        Annotated[list[VectorUse], pydantic.Field(max_length=1000)],
        pydantic.Field(default_factory=list),
    ),
    **{k: v for k, v in (_OF_VECTORS | _keys(SAE)).items() if k != "kind"},
)

Entry = Lenient
"""Of a request: one of `ENTRIES`, `Together` or `PresetUse`."""

_Kept: Any = (
    Annotated[reduce(or_, ENTRIES.values()), pydantic.Field(discriminator="kind")] | Together
)
_Asked: Any = (
    Annotated[
        reduce(or_, (*ENTRIES.values(), PresetUse)),
        pydantic.Field(discriminator="kind"),
    ]
    | Together
)


def kept_entry(value: object) -> Entry:
    """What a preset may keep: an entry that is no preset.

    Raises:
        ValidationError, ValueError: With the path of the key; pydantic puts it into its own.
    """
    if isinstance(value, Lenient):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("must be an object")  # noqa: TRY004 - pydantic hears this one
    told = _without_nulls(value)
    if "kind" in told:
        return _of_kind(told["kind"], ENTRIES).model_validate(told)
    return (Vector if "vector" in told else Together).model_validate(told)


def asked_entry(value: object) -> Entry:
    """What a request may say: a preset, too.

    Raises:
        As `kept_entry`.
    """
    if not isinstance(value, Mapping):
        return kept_entry(value)
    told = _without_nulls(value)
    if "kind" in told:
        return _of_kind(told["kind"], {**ENTRIES, "preset": PresetUse}).model_validate(told)
    return PresetUse.model_validate(told) if "preset" in told else kept_entry(told)


def _without_nulls(value: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys that are null, whichever steerer has them: they say nothing of the kind."""
    bodies = (*ENTRIES.values(), Together, PresetUse)
    known = {key for body in bodies for key in body.model_fields}
    return {k: v for k, v in value.items() if v is not None or k not in known}


def _of_kind(kind: object, known: Mapping[str, type[Lenient]]) -> type[Lenient]:
    if isinstance(kind, str) and kind in known:
        return known[kind]
    problem = PydanticCustomError("kind", f"must be one of {', '.join(sorted(known))}")  # type: ignore[arg-type]
    found = InitErrorDetails(type=problem, loc=("kind",), input=kind)
    raise ValidationError.from_exception_data("steering", [found])


KeptSteering = Annotated[Any, PlainValidator(kept_entry, json_schema_input_type=_Kept)]

_LIST: TypeAdapter[list[Entry]] = TypeAdapter(
    Annotated[list[Annotated[Any, PlainValidator(asked_entry)]], pydantic.Field(max_length=64)],
    config=ConfigDict(strict=True),
)


def _steerings(value: object) -> object:
    """One or several, so that an error names the key and not the shape."""
    if isinstance(value, list):
        return _LIST.validate_python(value)
    if isinstance(value, Mapping):
        return [asked_entry(value)]
    raise ValueError("must be an object, or a list of objects")


Steerings = Annotated[
    list[Any], PlainValidator(_steerings, json_schema_input_type=_Asked | list[_Asked])
]


def _kept_plan(value: object) -> Entry:
    """A plan of back-patching; its kind goes without saying."""
    if isinstance(value, Lenient):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("must be an object")  # noqa: TRY004 - pydantic hears this one
    return Plan.model_validate({"kind": BackPatch.kind, **_without_nulls(value)})


def _asked_plan(value: object) -> Entry:
    """A preset of one, too."""
    if isinstance(value, Mapping) and value.get("preset") is not None:
        return PresetUse.model_validate(_without_nulls(value))
    return _kept_plan(value)


Plan: Any = ENTRIES[BackPatch.kind]
KeptPlan = Annotated[Any, PlainValidator(_kept_plan, json_schema_input_type=Plan)]
BackPatching = Annotated[Any, PlainValidator(_asked_plan, json_schema_input_type=Plan | PresetUse)]
"""`backpatch` of a request."""


def places_of(entries: Sequence[Entry]) -> list[str]:
    """How refusals name the entries: by their number where there are several."""
    return [f"steering[{i}]" if len(entries) > 1 else "steering" for i in range(len(entries))]


def methods_of(entry: Entry) -> list[tuple[Any, str]]:
    """The steerers that an entry means, and by which of its keys.

    Features and vectors of one entry are several.
    """
    if not isinstance(entry, Together):
        kind = entry.kind  # type: ignore[attr-defined]
        return [(_built(STEERERS[kind], entry.model_dump()), "vector")]
    told = entry.model_dump()
    vectors = told.pop("vectors")
    found = []
    if told["features"] or told["concept"] is not None:
        found.append((_built(SAE, {k: told[k] for k in _keys(SAE) if k in told}), "features"))
    shared = {k: told[k] for k in _OF_VECTORS if k in told}
    for i, use in enumerate(vectors):
        own = {"vector": use["name"], "strength": use["strength"]}
        found.append((_built(ControlVector, {**shared, **own}), f"vectors[{i}].name"))
    return found


def _built(method: type, told: Mapping[str, Any]) -> Any:
    return _adapter(method).validate_python(told)


@cache
def _adapter(method: type) -> TypeAdapter[Any]:
    return TypeAdapter(method)
