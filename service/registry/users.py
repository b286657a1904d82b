"""Who points to a version now: the reason why it may not be retired."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from models.errors import Refusal
from service.registry.finding import find_own_or_public, resolve
from service.registry.grammar import PUBLIC
from service.registry.kinds import STEERING, VECTOR
from service.registry.tables import aliases, edits, variant_edits, variants, versions


def users_of(connection: Connection, version: Row[Any]) -> list[str]:
    """The aliases, variants and presets that mean this version, in words."""
    return [
        *_aliases(connection, version),
        *_variants(connection, version),
        *_presets(connection, version),
    ]


def users_of_alias(connection: Connection, edit: Row[Any], alias: str) -> list[str]:
    """The variants that name this alias, in words; a bare name means `live` where it is there."""
    named = [f"{edit.name}@{alias}", *([edit.name] if alias == "live" else [])]
    return [
        f"the variant {row.name}"
        for row in _bundles(connection, edit.tenant, variant_edits.c.reference.in_(named))
        if find_own_or_public(connection, row.tenant, edit.name).id == edit.id
    ]


def _aliases(connection: Connection, version: Row[Any]) -> list[str]:
    query = sa.select(aliases.c.alias).where(
        aliases.c.edit == version.edit, aliases.c.number == version.number
    )
    return [f"the alias {version.name}@{a}" for a in connection.execute(query).scalars()]


def _variants(connection: Connection, version: Row[Any]) -> list[str]:
    reference = variant_edits.c.reference
    could_mean = sa.or_(
        reference == version.name,
        reference.startswith(f"{version.name}@", autoescape=True),
        reference == f"sha256:{version.digest}",
    )
    return [
        f"the variant {row.name}"
        for row in _bundles(connection, version.tenant, could_mean)
        if _means(connection, row.tenant, row.reference, version)
    ]


def _bundles(
    connection: Connection, tenant: str, named: sa.ColumnElement[bool]
) -> list[Row[Any, Any, Any]]:
    """Variants (tenant, name, reference) that could mean a name of this tenant."""
    query = (
        sa.select(variants.c.tenant, variants.c.name, variant_edits.c.reference)
        .join(variants, variants.c.id == variant_edits.c.variant)
        .where(named, variants.c.model.is_not(None))
        .order_by(variants.c.tenant, variants.c.name)
    )
    if tenant != PUBLIC:
        query = query.where(variants.c.tenant == tenant)
    return list(connection.execute(query))


def _presets(connection: Connection, version: Row[Any]) -> list[str]:
    """Presets that keep a vector by its digest."""
    if version.kind != VECTOR:
        return []
    text = sa.type_coerce(versions.c.header, sa.Text)
    query = (
        sa.select(edits.c.name, versions.c.number)
        .join(edits, edits.c.id == versions.c.edit)
        .where(
            edits.c.kind == STEERING,
            versions.c.retired_at.is_(None),
            text.contains(f"sha256:{version.digest}"),
        )
        .order_by(edits.c.name, versions.c.number)
    )
    if version.tenant != PUBLIC:
        query = query.where(edits.c.tenant == version.tenant)
    return [f"the preset {row.name}@{row.number}" for row in connection.execute(query)]


def _means(connection: Connection, tenant: str, reference: str, version: Row[Any]) -> bool:
    try:
        return resolve(connection, tenant, reference).id == version.id
    except Refusal:
        return False
