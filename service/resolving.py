"""Names become digests once, at the door. Behind it only digests travel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import EditTwice, UnknownModel, WrongModel
from service.registry import Registry
from service.registry.errors import UnknownVariant
from service.registry.records import Variant
from service.schema import EditUse


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
    """The hosted model and the edits of one request."""

    model: str
    edits: tuple[Applied, ...]
    variant: str | None = None


@dataclass(frozen=True, kw_only=True)
class Resolver:
    """Knows what is hosted, and asks the registry for the rest."""

    registry: Registry
    hosted: Sequence[str]

    def resolve(self, tenant: str, model: str, edits: Sequence[EditUse]) -> Wanted:
        """What `model="base+edit@alias"` and `edits` mean now.

        Edits add up in this order: the variant's, the model name's, the request's.

        Raises:
            UnknownModel: Neither a hosted model nor a variant.
            UnknownEdit: No such edit, version or alias in the tenant or in `public`.
            VersionRetired, VersionBlocked: It may not be used any more.
            WrongModel: An edit of another model.
            EditTwice: Two names of one version.
        """
        base, *appended = model.split("+")
        named = [EditUse(name=text) for text in appended]
        variant = None
        if base not in self.hosted:
            bundle = self._variant(tenant, base)
            variant, base = base, bundle.model
            named = uses_of(bundle) + named
            if base not in self.hosted:
                raise UnknownModel(base, ", ".join(self.hosted))
        applied = tuple(self._apply(tenant, base, use) for use in (*named, *edits))
        _all_different(applied)
        return Wanted(model=base, edits=applied, variant=variant)

    def _variant(self, tenant: str, name: str) -> Variant:
        try:
            return self.registry.variants.get(tenant, name)
        except UnknownVariant:
            raise UnknownModel(name, ", ".join(self.hosted)) from None

    def _apply(self, tenant: str, model: str, use: EditUse) -> Applied:
        version = self.registry.names.resolve(tenant, use.name)
        if version.model != model:
            raise WrongModel(use.name, version.model, model)
        return Applied(
            name=version.name,
            version=version.number,
            digest=version.digest,
            strength=use.strength,
        )


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
