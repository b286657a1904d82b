"""Finding names and versions inside a transaction that the caller holds."""

from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Row, Select

from service.registry.errors import (
    NoReadyVersion,
    UnknownAlias,
    UnknownDigest,
    UnknownEdit,
    UnknownVersion,
    VersionBlocked,
    VersionRetired,
)
from service.registry.grammar import LIVE, PUBLIC, Reference, parse_reference
from service.registry.kinds import word_of
from service.registry.records import Status, Version
from service.registry.tables import aliases, blobs, edits, versions


@cache
def version_query() -> Select[Any]:
    """Everything that a `Version` says; built once, for it takes a millisecond."""
    return (
        sa.select(
            versions,
            edits.c.tenant.label("tenant"),
            edits.c.name.label("name"),
            edits.c.kind.label("kind"),
            blobs.c.size.label("size"),
        )
        .join(edits, edits.c.id == versions.c.edit)
        .join(blobs, blobs.c.digest == versions.c.digest)
    )


def as_version(row: Row[Any]) -> Version:
    """A row of `version_query` as the record that is handed out."""
    return Version(
        tenant=row.tenant,
        name=row.name,
        number=row.number,
        kind=row.kind,
        digest=row.digest,
        model=row.model,
        fingerprint=row.fingerprint,
        header=row.header,
        report=row.report,
        status=status_of(row),
        parent=row.parent,
        job=row.job,
        size=row.size,
        created_at=row.created_at,
        created_by=row.created_by,
    )


def status_of(row: Row[Any]) -> Status:
    """A block outweighs a retirement, which outweighs the checks."""
    if row.blocked_at is not None:
        return "blocked"
    if row.retired_at is not None:
        return "retired"
    return row.checks


def find_edit(connection: Connection, tenant: str, name: str) -> Row[Any]:
    """The tenant's own name.

    Raises:
        UnknownEdit: The tenant has no such name.
    """
    row = connection.execute(
        sa.select(edits).where(edits.c.tenant == tenant, edits.c.name == name)
    ).first()
    if row is None:
        raise UnknownEdit(name)
    return row


def find_own_or_public(connection: Connection, tenant: str, name: str) -> Row[Any]:
    """The tenant's name, else the public one.

    Raises:
        UnknownEdit: Neither has it.
    """
    try:
        return find_edit(connection, tenant, name)
    except UnknownEdit:
        return find_edit(connection, PUBLIC, name)


def find_version(connection: Connection, edit: Row[Any], number: int) -> Row[Any]:
    """A version by its number, whatever its status.

    Raises:
        UnknownVersion: There is none.
    """
    row = connection.execute(
        version_query().where(versions.c.edit == edit.id, versions.c.number == number)
    ).first()
    if row is None:
        raise UnknownVersion(edit.name, str(number), what=word_of(edit.kind))
    return row


def resolve(connection: Connection, tenant: str, text: str) -> Row[Any]:
    """The one version that a reference means now.

    Raises:
        BadReference: The text is no reference.
        UnknownEdit, UnknownVersion, UnknownAlias, UnknownDigest: Nothing has that name.
        NoReadyVersion: A bare name without `live` and without a ready version.
        VersionRetired, VersionBlocked: It may not be used any more.
    """
    reference = parse_reference(text)
    find = _by_digest if reference.digest else _by_name
    return usable(connection, find(connection, tenant, reference))


def usable(connection: Connection, row: Row[Any]) -> Row[Any]:
    """The version, if it may be used.

    Raises:
        VersionRetired, VersionBlocked: It may not.
    """
    if is_blocked(connection, row.tenant, row.digest):
        raise VersionBlocked(f"{row.name}@{row.number}")
    if row.retired_at is not None:
        raise VersionRetired(f"{row.name}@{row.number}")
    return row


def is_blocked(connection: Connection, tenant: str, digest: str) -> bool:
    """Whether the tenant's operator forbids these bytes, under whatever name."""
    query = (
        sa.select(versions.c.id)
        .join(edits, edits.c.id == versions.c.edit)
        .where(
            versions.c.digest == digest,
            versions.c.blocked_at.is_not(None),
            edits.c.tenant == tenant,
        )
        .limit(1)
    )
    return connection.execute(query).first() is not None


def _by_digest(connection: Connection, tenant: str, reference: Reference) -> Row[Any]:
    digest = str(reference.digest)
    query = (
        version_query()
        .where(versions.c.digest == digest, edits.c.tenant.in_((tenant, PUBLIC)))
        # One's own before the public one, one in use before a retired one, then the newest.
        .order_by(
            edits.c.tenant != tenant, versions.c.retired_at.is_not(None), versions.c.id.desc()
        )
        .limit(1)
    )
    row = connection.execute(query).first()
    if row is None:
        raise UnknownDigest(digest)
    return row


def _by_name(connection: Connection, tenant: str, reference: Reference) -> Row[Any]:
    edit = find_own_or_public(connection, tenant, str(reference.name))
    if reference.number is not None:
        return find_version(connection, edit, reference.number)
    row = _first(connection, edit, _is_alias(edit, reference.alias or LIVE))
    if row is not None:
        return row
    if reference.alias is not None:
        raise UnknownAlias(edit.name, reference.alias, what=word_of(edit.kind))
    row = _first(connection, edit, _is_ready())
    if row is None:
        raise NoReadyVersion(edit.name)
    return row


def _first(connection: Connection, edit: Row[Any], which: ColumnElement[bool]) -> Row[Any] | None:
    query = version_query().where(versions.c.edit == edit.id, which)
    return connection.execute(query.order_by(versions.c.number.desc()).limit(1)).first()


def _is_alias(edit: Row[Any], alias: str) -> ColumnElement[bool]:
    pointed = sa.select(aliases.c.number).where(
        aliases.c.edit == edit.id, aliases.c.alias == alias, aliases.c.number.is_not(None)
    )
    return versions.c.number == pointed.scalar_subquery()


def _is_ready() -> ColumnElement[bool]:
    return sa.and_(
        versions.c.checks == "ready",
        versions.c.retired_at.is_(None),
        versions.c.blocked_at.is_(None),
    )
