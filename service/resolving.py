"""Names become digests once, at the door. Behind it only digests travel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.errors import EditTwice, PresetStrength, UnknownModel, WrongKind, WrongModel
from service.orders import FeatureOrder, PresetOrder, SteeringOrder, VectorOrder
from service.registry import Registry
from service.registry.errors import BadReference, UnknownVariant
from service.registry.records import Variant, Version
from service.schema import EditUse
from service.schema_language import SteeringBody, SteeringSettings

EDIT, VECTOR, PRESET = "edit", "vector", "steering"
"""Kinds of names in the registry that a request may use."""


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
        steering: Sequence[SteeringBody] = (),
    ) -> Wanted:
        """What `model="base+name@alias"`, `edits` and `steering` mean now.

        A variant and a model name may name edits, steering presets and vectors alike. All of them
        add up, in this order: the variant's, the model name's, the request's.

        Raises:
            UnknownModel: Neither a hosted model nor a variant.
            BadReference: Nothing stands behind a `+`.
            UnknownEdit: No such name, version or alias in the tenant or in `public`.
            VersionRetired, VersionBlocked: It may not be used any more.
            WrongModel: It was made for another model.
            WrongKind: `edits` names a preset, `preset` names an edit, ...
            EditTwice: Two names of one version.
        """
        base, *appended = model.split("+")
        if not all(appended):
            raise BadReference("")
        named = [EditUse(name=text) for text in appended]
        variant = None
        if base not in self.hosted:
            bundle = self._variant(tenant, base)
            variant, base = base, bundle.model
            named = uses_of(bundle) + named
            if base not in self.hosted:
                raise UnknownModel(base, ", ".join(self.hosted))
        return replace(self._wanted(tenant, base, named, edits, steering), variant=variant)

    def bundle(self, tenant: str, model: str, uses: Sequence[EditUse]) -> Wanted:
        """What a variant of these edits, presets and vectors means now.

        Raises:
            As `resolve`.
        """
        return self._wanted(tenant, model, uses, (), ())

    def _wanted(
        self,
        tenant: str,
        base: str,
        named: Sequence[EditUse],
        edits: Sequence[EditUse],
        steering: Sequence[SteeringBody],
    ) -> Wanted:
        found = [(use, self._version(tenant, base, use.name)) for use in named]
        found += [(use, self._version(tenant, base, use.name, EDIT, "edits")) for use in edits]
        applied = tuple(_applied(version, use) for use, version in found if version.kind == EDIT)
        _all_different(applied)
        steered = [self._named(tenant, base, u, v) for u, v in found if v.kind != EDIT]
        steered += [self._steering(tenant, base, body) for body in steering]
        return Wanted(model=base, edits=applied, steering=tuple(steered))

    def _variant(self, tenant: str, name: str) -> Variant:
        try:
            return self.registry.variants.get(tenant, name)
        except UnknownVariant:
            raise UnknownModel(name, ", ".join(self.hosted)) from None

    def _version(
        self, tenant: str, model: str, name: str, kind: str = "", param: str = ""
    ) -> Version:
        """What the name means now; of that kind, if one is asked for."""
        version = self.registry.names.resolve(tenant, name)
        if version.model != model:
            raise WrongModel(name, version.model, model)
        if kind and version.kind != kind:
            raise WrongKind(name, version.kind, param)
        return version

    def _named(self, tenant: str, model: str, use: EditUse, version: Version) -> SteeringOrder:
        """A preset or a vector by its mere name."""
        if version.kind == VECTOR:
            return SteeringOrder(vectors=(_vector(version, use.strength),))
        if version.kind != PRESET:
            raise WrongKind(use.name, version.kind, "model")
        if use.strength != 1.0:
            raise PresetStrength(use.name)
        return self._preset(tenant, model, version)

    def _preset(self, tenant: str, model: str, version: Version) -> SteeringOrder:
        came = PresetOrder(
            name=version.name,
            version=version.number,
            digest=version.digest,
            fingerprint=version.fingerprint,
        )
        body = SteeringSettings.model_validate(dict(version.header))
        return self._settings(tenant, model, body, came)

    def _steering(self, tenant: str, model: str, body: SteeringBody) -> SteeringOrder:
        if body.preset is None:
            return self._settings(tenant, model, body, None)
        return self._preset(
            tenant, model, self._version(tenant, model, body.preset, PRESET, "steering.preset")
        )

    def _settings(
        self, tenant: str, model: str, body: SteeringSettings, preset: PresetOrder | None
    ) -> SteeringOrder:
        return SteeringOrder(
            features=tuple(
                FeatureOrder(sae=f.sae, feature=f.feature, strength=f.strength)
                for f in body.features
            ),
            vectors=tuple(
                _vector(
                    self._version(tenant, model, v.name, VECTOR, "steering.vectors"), v.strength
                )
                for v in body.vectors
            ),
            preset=preset,
            sites=tuple(body.sites),
            **body.model_dump(exclude={"features", "vectors", "preset", "sites"}),
        )


def _applied(version: Version, use: EditUse) -> Applied:
    return Applied(
        name=version.name, version=version.number, digest=version.digest, strength=use.strength
    )


def _vector(version: Version, strength: float) -> VectorOrder:
    return VectorOrder(digest=version.digest, strength=strength, label=version.reference)


def uses_of(bundle: Variant) -> list[EditUse]:
    """The edits of a variant, each with its strength."""
    strengths = bundle.settings.get("strengths", [1.0] * len(bundle.edits))
    return [
        EditUse(name=name, strength=strength)
        for name, strength in zip(bundle.edits, strengths, strict=True)
    ]


def _all_different(applied: Sequence[Applied]) -> None:
    seen: dict[str, Applied] = {}
    for edit in applied:
        if edit.digest in seen:
            other = seen[edit.digest]
            raise EditTwice(f"{other.name}@{other.version}", f"{edit.name}@{edit.version}")
        seen[edit.digest] = edit
