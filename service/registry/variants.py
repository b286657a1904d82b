"""Variants: named bundles of a model and edits, which appear among the models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from service.registry.audit import Deed, record
from service.registry.errors import AliasMoved, BadRecord, RegistryFull, UnknownVariant
from service.registry.finding import resolve
from service.registry.grammar import (
    checked_json,
    checked_limit,
    checked_name,
    checked_text,
    holds,
    paged,
)
from service.registry.index import Index
from service.registry.limits import Limits
from service.registry.records import Expected, Page, Variant
from service.registry.tables import variant_edits, variants


@dataclass(frozen=True, kw_only=True)
class Variants:
    """`Registry.variants`."""

    index: Index
    limits: Limits

    def put(  # noqa: PLR0913  (a variant is that wide)
        self,
        tenant: str,
        name: str,
        model: str,
        edits: Sequence[str],
        *,
        actor: str,
        settings: Mapping[str, Any] | None = None,
        if_match: Expected = None,
    ) -> Variant:
        """Make or replace a variant; every edit that it names must be usable now.

        Args:
            tenant: Whose it is.
            name: What clients send as `model`.
            model: The hosted model.
            edits: References; they are resolved anew at each request.
            actor: Who goes into the audit.
            settings: Strengths, steering, back-patch: kept as they are.
            if_match: The generation that the caller has seen; 0 for "it is not there".

        Raises:
            BadName, BadRecord, RegistryFull: Outside the grammar or the limits.
            AliasMoved: Somebody else changed it first.
            Refusal: An edit that cannot be used, as `Names.resolve` says it.
        """
        self._check(name, model, edits, actor, settings)
        with self.index.writing() as connection:
            had = _row(connection, tenant, name)
            generation = had.generation if had else 0
            _expect(name, had, if_match)
            self._refuse_more(connection, tenant, had)
            for reference in edits:
                resolve(connection, tenant, reference)
            at = self.index.now(connection)
            values = {
                "model": model,
                "settings": dict(settings or {}),
                "generation": generation + 1,
                "changed_at": at,
                "changed_by": actor,
            }
            number = _write(connection, tenant, name, had, values)
            if edits:
                connection.execute(
                    variant_edits.insert(),
                    [
                        {"variant": number, "position": i, "reference": text}
                        for i, text in enumerate(edits)
                    ],
                )
            detail = {"model": model, "edits": list(edits), "generation": generation + 1}
            deed = Deed(
                tenant=tenant, actor=actor, action="variant.put", subject=name, detail=detail
            )
            record(connection, at, deed)
            return _as_variants(connection, [_one(connection, tenant, name)])[0]

    def get(self, tenant: str, name: str) -> Variant:
        """One variant.

        Raises:
            UnknownVariant: There is none.
        """
        with self.index.reading() as connection:
            return _as_variants(connection, [_one(connection, tenant, name)])[0]

    def list(self, tenant: str, limit: int = 100, after: str | None = None) -> Page[Variant]:
        """The tenant's variants in alphabetical order.

        Raises:
            BadPage: The limit is not one.
        """
        checked_limit(limit, self.limits.page)
        query = sa.select(variants).where(
            variants.c.tenant == tenant, variants.c.model.is_not(None)
        )
        if after is not None:
            query = query.where(variants.c.name > after)
        with self.index.reading() as connection:
            rows = connection.execute(query.order_by(variants.c.name).limit(limit + 1)).all()
            found = _as_variants(connection, rows)
        return paged(found, limit, [v.name for v in found])

    def delete(self, tenant: str, name: str, actor: str, if_match: Expected = None) -> None:
        """Remove a variant; its generation is remembered.

        Raises:
            UnknownVariant: There is none.
            AliasMoved: Somebody else changed it first.
        """
        checked_text("actor", actor, self.limits.text_bytes)
        with self.index.writing() as connection:
            had = _one(connection, tenant, name)
            _expect(name, had, if_match)
            at = self.index.now(connection)
            values = {
                "model": None,
                "settings": {},
                "generation": had.generation + 1,
                "changed_at": at,
                "changed_by": actor,
            }
            _write(connection, tenant, name, had, values)
            deed = Deed(
                tenant=tenant,
                actor=actor,
                action="variant.delete",
                subject=name,
                detail={"generation": had.generation + 1},
            )
            record(connection, at, deed)

    def _check(
        self,
        name: str,
        model: str,
        edits: Sequence[str],
        actor: str,
        settings: Mapping[str, Any] | None,
    ) -> None:
        checked_name(name, "a variant")
        checked_text("model", model, self.limits.text_bytes)
        checked_text("actor", actor, self.limits.text_bytes)
        checked_json("settings", dict(settings or {}), self.limits.header_bytes)
        if len(edits) > self.limits.variant_edits:
            raise BadRecord(
                "edits", f"there are {len(edits)} of at most {self.limits.variant_edits}"
            )

    def _refuse_more(self, connection: Connection, tenant: str, had: Row[Any] | None) -> None:
        # Deleted ones count too: their rows stay for the sake of their generations.
        if had is None:
            query = sa.select(sa.func.count()).where(variants.c.tenant == tenant)
            if connection.execute(query).scalar_one() >= self.limits.variants:
                raise RegistryFull("variants", self.limits.variants)


def _expect(name: str, had: Row[Any] | None, if_match: Expected) -> None:
    generation = had.generation if had else 0
    there = had is not None and had.model is not None
    if not holds(if_match, generation, there=there):
        raise AliasMoved(name, if_match, generation)


def _row(connection: Connection, tenant: str, name: str) -> Row[Any] | None:
    query = sa.select(variants).where(variants.c.tenant == tenant, variants.c.name == name)
    return connection.execute(query).first()


def _one(connection: Connection, tenant: str, name: str) -> Row[Any]:
    row = _row(connection, tenant, name)
    if row is None or row.model is None:
        raise UnknownVariant(name)
    return row


def _write(
    connection: Connection, tenant: str, name: str, had: Row[Any] | None, values: dict[str, Any]
) -> int:
    """Write the variant without its edits, and return its id."""
    if had is None:
        fresh = variants.insert().values(tenant=tenant, name=name, **values)
        return connection.execute(fresh.returning(variants.c.id)).scalar_one()
    connection.execute(variants.update().where(variants.c.id == had.id).values(**values))
    connection.execute(variant_edits.delete().where(variant_edits.c.variant == had.id))
    return had.id


def _as_variants(connection: Connection, rows: Sequence[Row[Any]]) -> list[Variant]:
    named: dict[int, list[str]] = {}
    for edit in connection.execute(
        sa.select(variant_edits.c.variant, variant_edits.c.reference)
        .where(variant_edits.c.variant.in_([row.id for row in rows]))
        .order_by(variant_edits.c.variant, variant_edits.c.position)
    ):
        named.setdefault(edit.variant, []).append(edit.reference)
    return [
        Variant(
            tenant=row.tenant,
            name=row.name,
            model=row.model,
            edits=tuple(named.get(row.id, ())),
            settings=row.settings,
            generation=row.generation,
            changed_at=row.changed_at,
            changed_by=row.changed_by,
        )
        for row in rows
    ]
