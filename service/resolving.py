"""Names become digests once, at the door. Behind it only digests travel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.errors import Refusal
from service.backpatching import KIND, check_once, told_apart
from service.errors import (
    EditTwice,
    NamedTwice,
    NoBackPatch,
    PresetStrength,
    UnknownModel,
    WrongKind,
    WrongModel,
)
from service.orders import PresetOrder, SteeringOrder, VectorOrder
from service.registry import Registry
from service.registry.errors import NAME, OF_REFERENCES, BadReference, UnknownVariant
from service.registry.records import Variant, Version
from service.schema import EditUse
from service.schema_steering import Entry, PresetUse, kept_entry, methods_of, places_of
from steerers.methods.control_vector import ControlVector

EDIT, VECTOR, PRESET = "edit", "vector", "steering"
"""Kinds of names in the registry that a request may use."""
BACKPATCH = "backpatch"
"""The request's key for a plan, which is a steerer like others."""


@dataclass(frozen=True, kw_only=True)
class Applied:
    """An edit as one request applies it: what the answer's `tiller` object repeats."""

    name: str
    version: int
    digest: str
    strength: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "strength": self.strength,
        }


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The hosted model, the edits and the steering of one request."""

    model: str
    edits: tuple[Applied, ...]
    variant: str | None = None
    steering: tuple[SteeringOrder, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Resolver:
    """Knows what is hosted, and asks the registry for the rest."""

    registry: Registry
    hosted: Sequence[str]

    def resolve(
        self,
        tenant: str,
        model: str,
        edits: Sequence[EditUse],
        steering: Sequence[Entry] = (),
        backpatch: Entry | None = None,
    ) -> Wanted:
        """What `model="base+name@alias"`, `edits`, `steering` and `backpatch` mean now.

        A variant and a model name may name edits, presets and vectors alike. All of them add up, in
        this order: the variant's, the model name's, the request's.

        Raises:
            UnknownModel: Neither a hosted model nor a variant.
            BadReference: Nothing stands behind a `+`.
            UnknownEdit, UnknownName: No such name, version or alias in the tenant or in `public`.
            VersionRetired, VersionBlocked: It may not be used any more.
            WrongModel: It was made for another model.
            WrongKind: `edits` names a preset, `preset` names an edit, ...
            EditTwice, NamedTwice: Two names of one version.
            BackPatchTwice: Two plans of back-patching.
        """
        base, *appended = model.split("+")
        if not all(appended):
            raise BadReference(model, what=NAME, param="model")
        named = [EditUse(name=text) for text in appended]
        variant = None
        if base not in self.hosted:
            bundle = self._variant(tenant, base)
            variant, base = base, bundle.model
            named = uses_of(bundle) + named
            if base not in self.hosted:
                raise UnknownModel(base, ", ".join(self.hosted))
        placed = list(zip(places_of(steering), steering, strict=True))
        if backpatch is not None:
            placed.append((BACKPATCH, backpatch))
        return replace(self._wanted(tenant, base, named, edits, placed), variant=variant)

    def refuse_changed(self, tenant: str, model: str) -> None:
        """For what reads a model as it is: name the model that a name changes.

        Raises:
            UnknownModel: It is no hosted model; of a variant, or of base+name@alias, with the base.
        """
        base, plus, _ = model.partition("+")
        if base not in self.hosted:
            base = self._variant(tenant, base).model
        if plus or base != model:
            raise UnknownModel(model, ", ".join(self.hosted), base)

    def bundle(self, tenant: str, model: str, uses: Sequence[EditUse]) -> Wanted:
        """What a variant of these edits, presets and vectors means now.

        Raises:
            As `resolve`; what is named stands in `edits`.
        """
        try:
            return self._wanted(tenant, model, uses, (), ())
        except Refusal as refusal:
            if refusal.param == BY_NAME.param:
                refusal.param = AN_EDIT.param
            raise

    def _wanted(
        self,
        tenant: str,
        base: str,
        named: Sequence[EditUse],
        edits: Sequence[EditUse],
        steering: Sequence[tuple[str, Entry]],
    ) -> Wanted:
        by_name = [(use, self._version(tenant, base, use.name, BY_NAME)) for use in named]
        by_key = [(use, self._version(tenant, base, use.name, AN_EDIT)) for use in edits]
        changes = [(*pair, "model") for pair in by_name if pair[1].kind == EDIT]
        changes += [(*pair, "edits") for pair in by_key]
        applied = tuple(_applied(version, use) for use, version, _ in changes)
        _all_different(applied, [param for _, _, param in changes])
        steered = [o for u, v in by_name if v.kind != EDIT for o in self._named(tenant, base, u, v)]
        for place, entry in steering:
            steered += self._steering(tenant, base, entry, place)
        _none_twice(by_name, steered)
        check_once(steered)
        return Wanted(model=base, edits=applied, steering=tuple(steered))

    def _variant(self, tenant: str, name: str) -> Variant:
        try:
            return self.registry.variants.get(tenant, name)
        except UnknownVariant:
            raise UnknownModel(name, ", ".join(self.hosted)) from None

    def _version(self, tenant: str, model: str, name: str, at: "_Place") -> Version:
        """What the name means now; of the place's kind, if one belongs there."""
        try:
            version = self.registry.names.resolve(tenant, name)
        except OF_REFERENCES as refusal:
            raise refusal.at(at.word, at.param) from None
        if at.kind and version.kind != at.kind:
            raise WrongKind(name, version.kind, at.param)
        if version.model != model:
            raise WrongModel(name, version.model, model, version.kind, at.param)
        return version

    def _named(
        self, tenant: str, model: str, use: EditUse, version: Version
    ) -> list[SteeringOrder]:
        """A preset or a vector by its mere name."""
        if version.kind == VECTOR:
            method = ControlVector(vector=version.reference, strength=use.strength)
            return [SteeringOrder(method=method, vector=_vector(version), place="model")]
        if version.kind != PRESET:
            raise WrongKind(use.name, version.kind, "model")
        if use.strength != 1.0:
            raise PresetStrength(use.name, "model")
        return self._preset(tenant, model, version, "model")

    def _preset(self, tenant: str, model: str, version: Version, place: str) -> list[SteeringOrder]:
        content, calibration = told_apart(version.header)
        if place == f"{BACKPATCH}.preset" and content.get("kind") != KIND:
            raise NoBackPatch(version.reference, place)
        came = PresetOrder(
            name=version.name,
            version=version.number,
            digest=version.digest,
            fingerprint=version.fingerprint,
            calibration=calibration,
        )
        entry = kept_entry(content)
        return [
            replace(order, preset=came, place=place)
            for order in self._steering(tenant, model, entry, place)
        ]

    def _steering(self, tenant: str, model: str, entry: Entry, place: str) -> list[SteeringOrder]:
        """An entry of `steering`, its names resolved."""
        if isinstance(entry, PresetUse):
            at = _Place(param=f"{place}.preset", kind=PRESET, word="preset")
            version = self._version(tenant, model, entry.preset, at)
            return self._preset(tenant, model, version, at.param)
        found = []
        for method, key in methods_of(entry):
            name = getattr(method, "vector", None)
            if name is None:
                found.append(SteeringOrder(method=method, place=place))
                continue
            at = _Place(param=f"{place}.{key}", kind=VECTOR, word="vector")
            version = self._version(tenant, model, name, at)
            method = replace(method, vector=version.reference)
            found.append(SteeringOrder(method=method, vector=_vector(version), place=place))
        return found


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a name stands in a request.

    Attributes:
        kind: Of the names that belong there; empty for all kinds.
        word: How people call them.
    """

    param: str
    kind: str = ""
    word: str = NAME


BY_NAME = _Place(param="model")
AN_EDIT = _Place(param="edits", kind=EDIT, word="edit")


def _applied(version: Version, use: EditUse) -> Applied:
    return Applied(
        name=version.name, version=version.number, digest=version.digest, strength=use.strength
    )


def _vector(version: Version) -> VectorOrder:
    return VectorOrder(digest=version.digest, label=version.reference)


def uses_of(bundle: Variant) -> list[EditUse]:
    """The edits of a variant, each with its strength."""
    strengths = bundle.settings.get("strengths", [1.0] * len(bundle.edits))
    return [
        EditUse(name=name, strength=strength)
        for name, strength in zip(bundle.edits, strengths, strict=True)
    ]


def _all_different(applied: Sequence[Applied], params: Sequence[str]) -> None:
    seen: dict[str, Applied] = {}
    for edit, param in zip(applied, params, strict=True):
        if edit.digest in seen:
            other = seen[edit.digest]
            raise EditTwice(f"{other.name}@{other.version}", f"{edit.name}@{edit.version}", param)
        seen[edit.digest] = edit


def _none_twice(
    by_name: Sequence[tuple[EditUse, Version]], steered: Sequence[SteeringOrder]
) -> None:
    """NamedTwice for a vector that is twice in the model's name, and a preset that is anywhere."""
    seen: set[str] = set()
    for _, version in by_name:
        if version.kind != EDIT and version.digest in seen:
            raise NamedTwice(version.reference, "model")
        seen.add(version.digest)
    places: dict[str, str] = {}
    for order in steered:
        came = order.preset
        if came is not None and places.setdefault(came.digest, order.place) != order.place:
            raise NamedTwice(f"{came.name}@{came.version}", order.place)
