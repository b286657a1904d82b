"""Edits and presets: registering, reading, retiring and blocking versions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from service.registry.audit import Deed, record
from service.registry.blobs import Blobs, digest_of
from service.registry.errors import (
    BadRecord,
    InUse,
    KindDiffers,
    RegistryFull,
    VersionBlocked,
)
from service.registry.finding import as_version, find_edit, find_version, is_blocked, version_query
from service.registry.grammar import (
    checked_json,
    checked_limit,
    checked_name,
    checked_text,
    number_cursor,
    paged,
    parse_digest,
)
from service.registry.index import Index
from service.registry.limits import Limits
from service.registry.records import Alias, Checks, Edit, Json, Page, Version
from service.registry.tables import aliases, blobs, edits, versions
from service.registry.users import users_of


@dataclass(frozen=True, kw_only=True)
class Newcomer:
    """A version on its way in: all of it checked, its file in the store."""

    tenant: str
    name: str
    kind: str
    model: str
    fingerprint: str
    digest: str
    size: int
    header: Json
    report: Json | None
    checks: str
    parent: str | None
    job: str | None
    actor: str


@dataclass(frozen=True, kw_only=True)
class Edits:
    """`Registry.edits`."""

    index: Index
    blobs: Blobs
    limits: Limits

    def register(  # noqa: PLR0913, PLR0917  (a version is that wide, and each of it is required)
        self,
        tenant: str,
        name: str,
        model: str,
        fingerprint: str,
        data: bytes,
        header: Mapping[str, Any],
        report: Mapping[str, Any] | None = None,
        status: Checks = "ready",
        *,
        actor: str,
        kind: str = "edit",
        parent: str | None = None,
        job: str | None = None,
    ) -> Version:
        """Keep the bytes as the name's next version: first the file, then the row.

        Registering is safe to repeat: the same bytes with the same verdict under the same name are
        the version that is there already, and one job registers one version only.

        Args:
            tenant: Whose name it is.
            name: New names begin with version 1.
            model: The hosted model that it was made for.
            fingerprint: Of that model's weights.
            data: The file; its SHA-256 becomes the digest.
            header: What the file's header says, for lists and searches.
            report: What was measured.
            status: The verdict of the checks.
            actor: Who goes into the audit.
            kind: "edit", or a preset's kind.
            parent: Where it came from.
            job: The job that made it.

        Raises:
            BadName, BadRecord, RegistryFull: Outside the grammar or the limits.
            KindDiffers: The name belongs to another kind of thing.
            VersionBlocked: The operator forbids these bytes.
        """
        newcomer = self._checked(
            Newcomer(
                tenant=tenant,
                name=name,
                kind=kind,
                model=model,
                fingerprint=fingerprint,
                digest=digest_of(data),
                size=len(data),
                header=header,
                report=report,
                checks=status,
                parent=parent,
                job=job,
                actor=actor,
            )
        )
        self.blobs.put(data)
        with self.index.writing() as connection:
            # gc may have taken the file between our put and our lock; it cannot any more.
            if not self.blobs.has(newcomer.digest):
                self.blobs.put(data)
            known = _already(connection, newcomer)
            return known or self._added(connection, newcomer)

    def _checked(self, new: Newcomer) -> Newcomer:
        limits = self.limits
        checked_name(new.name)
        for what, text in (
            ("tenant", new.tenant),
            ("kind", new.kind),
            ("model", new.model),
            ("fingerprint", new.fingerprint),
            ("actor", new.actor),
            ("parent", new.parent),
            ("job", new.job),
        ):
            if text is not None:
                checked_text(what, text, limits.text_bytes)
        checked_json("header", new.header, limits.header_bytes)
        checked_json("report", new.report, limits.report_bytes)
        if new.checks not in get_args(Checks):
            raise BadRecord("status", f"{new.checks!r} is none of {', '.join(get_args(Checks))}")
        if not 0 < new.size <= limits.blob_bytes:
            raise BadRecord("data", f"it has {new.size} bytes of at most {limits.blob_bytes}")
        return new

    def _added(self, connection: Connection, new: Newcomer) -> Version:
        at = self.index.now(connection)
        edit = self._edit(connection, new, at)
        if is_blocked(connection, new.tenant, new.digest):
            raise VersionBlocked(f"sha256:{new.digest[:16]}")
        last = connection.execute(
            sa.select(sa.func.max(versions.c.number)).where(versions.c.edit == edit)
        ).scalar()
        number = (last or 0) + 1
        if number > self.limits.versions:
            raise RegistryFull(f"versions of {new.name}", self.limits.versions)
        _keep_blob(connection, new, at)
        row = {
            "edit": edit,
            "number": number,
            "digest": new.digest,
            "model": new.model,
            "fingerprint": new.fingerprint,
            "header": new.header,
            "report": new.report,
            "checks": new.checks,
            "parent": new.parent,
            "job": new.job,
            "created_at": at,
            "created_by": new.actor,
        }
        connection.execute(versions.insert(), row)
        detail = {"digest": new.digest, "kind": new.kind, "model": new.model, "status": new.checks}
        deed = Deed(
            tenant=new.tenant,
            actor=new.actor,
            action="version.register",
            subject=f"{new.name}@{number}",
            detail=detail,
        )
        record(connection, at, deed)
        return as_version(
            connection.execute(
                version_query().where(versions.c.edit == edit, versions.c.number == number)
            ).one()
        )

    def _edit(self, connection: Connection, new: Newcomer, at: float) -> int:
        row = connection.execute(
            sa.select(edits.c.id, edits.c.kind).where(
                edits.c.tenant == new.tenant, edits.c.name == new.name
            )
        ).first()
        if row is not None:
            if row.kind != new.kind:
                raise KindDiffers(new.name, row.kind, new.kind)
            return row.id
        has = sa.select(sa.func.count()).select_from(edits).where(edits.c.tenant == new.tenant)
        if connection.execute(has).scalar_one() >= self.limits.edits:
            raise RegistryFull("edits", self.limits.edits)
        fresh = edits.insert().values(
            tenant=new.tenant, name=new.name, kind=new.kind, created_at=at, created_by=new.actor
        )
        return connection.execute(fresh.returning(edits.c.id)).scalar_one()

    def list(
        self, tenant: str, limit: int = 100, after: str | None = None, *, kind: str | None = "edit"
    ) -> Page[Edit]:
        """The tenant's names in alphabetical order; of every kind if `kind` is None.

        Raises:
            BadPage: The limit is not one.
        """
        checked_limit(limit, self.limits.page)
        query = sa.select(edits).where(edits.c.tenant == tenant)
        if kind is not None:
            query = query.where(edits.c.kind == kind)
        if after is not None:
            query = query.where(edits.c.name > after)
        with self.index.reading() as connection:
            rows = connection.execute(query.order_by(edits.c.name).limit(limit + 1)).all()
            found = _as_edits(connection, rows)
        return paged(found, limit, [e.name for e in found])

    def get(self, tenant: str, name: str) -> Edit:
        """One of the tenant's names.

        Raises:
            UnknownEdit: The tenant has no such name.
        """
        with self.index.reading() as connection:
            return _as_edits(connection, [find_edit(connection, tenant, name)])[0]

    def versions(
        self, tenant: str, name: str, limit: int = 100, after: str | int | None = None
    ) -> Page[Version]:
        """A name's versions, the newest first.

        Raises:
            UnknownEdit: The tenant has no such name.
            BadPage: The limit or the cursor is not one.
        """
        checked_limit(limit, self.limits.page)
        number = number_cursor(after)
        with self.index.reading() as connection:
            edit = find_edit(connection, tenant, name)
            query = version_query().where(versions.c.edit == edit.id)
            if number is not None:
                query = query.where(versions.c.number < number)
            query = query.order_by(versions.c.number.desc()).limit(limit + 1)
            found = [as_version(row) for row in connection.execute(query)]
        return paged(found, limit, [str(v.number) for v in found])

    def version(self, tenant: str, name: str, number: int) -> Version:
        """One version, whatever its status.

        Raises:
            UnknownEdit, UnknownVersion: There is none.
        """
        with self.index.reading() as connection:
            edit = find_edit(connection, tenant, name)
            return as_version(find_version(connection, edit, number))

    def by_job(self, job: str) -> Version | None:
        """The version that a job registered, if it came so far."""
        with self.index.reading() as connection:
            row = connection.execute(version_query().where(versions.c.job == job)).first()
        return as_version(row) if row else None

    def retire(self, tenant: str, name: str, number: int, actor: str) -> Version:
        """Take a version out of use; its record stays, its number is never given again.

        Raises:
            UnknownEdit, UnknownVersion: There is none.
            InUse: An alias or a variant points to it.
        """
        with self.index.writing() as connection:
            edit = find_edit(connection, tenant, name)
            row = find_version(connection, edit, number)
            if row.retired_at is not None:
                return as_version(row)
            if users := users_of(connection, row):
                raise InUse(f"{name}@{number}", ", ".join(users))
            at = self.index.now(connection)
            connection.execute(
                versions.update().where(versions.c.id == row.id).values(retired_at=at)
            )
            record(connection, at, _deed(row, actor, "version.retire"))
            return as_version(find_version(connection, edit, number))

    def block(self, tenant: str, name: str, number: int, actor: str) -> Version:
        """Forbid a version's bytes at once, under every name of the tenant that has them.

        Aliases and variants keep pointing to it and their requests are refused.

        Raises:
            UnknownEdit, UnknownVersion: There is none.
        """
        return self._mark(tenant, name, number, actor, "version.block")

    def unblock(self, tenant: str, name: str, number: int, actor: str) -> Version:
        """Allow a version's bytes again.

        Raises:
            UnknownEdit, UnknownVersion: There is none.
        """
        return self._mark(tenant, name, number, actor, "version.unblock")

    def _mark(self, tenant: str, name: str, number: int, actor: str, action: str) -> Version:
        with self.index.writing() as connection:
            edit = find_edit(connection, tenant, name)
            row = find_version(connection, edit, number)
            at = self.index.now(connection)
            own = sa.select(edits.c.id).where(edits.c.tenant == tenant)
            connection.execute(
                versions.update()
                .where(versions.c.digest == row.digest, versions.c.edit.in_(own))
                .values(blocked_at=at if action == "version.block" else None)
            )
            record(connection, at, _deed(row, actor, action))
            return as_version(find_version(connection, edit, number))

    def blob(self, digest: str) -> bytes:
        """The file of a digest (with or without `sha256:`), its hash verified.

        Raises:
            BadReference: Not a digest.
            BlobMissing, BlobCorrupt: It cannot be handed out.
        """
        return self.blobs.get(parse_digest(digest))


def _already(connection: Connection, new: Newcomer) -> Version | None:
    """The version that the same registration has made before."""
    if new.job is not None:
        row = connection.execute(version_query().where(versions.c.job == new.job)).first()
        if row is not None:
            return as_version(row)
    same = version_query().where(
        edits.c.tenant == new.tenant,
        edits.c.name == new.name,
        edits.c.kind == new.kind,
        versions.c.digest == new.digest,
        versions.c.checks == new.checks,
        versions.c.retired_at.is_(None),
        versions.c.blocked_at.is_(None),
    )
    row = connection.execute(same.order_by(versions.c.number.desc()).limit(1)).first()
    return as_version(row) if row else None


def _keep_blob(connection: Connection, new: Newcomer, at: float) -> None:
    again = blobs.update().where(blobs.c.digest == new.digest)
    if connection.execute(again, {"swept_at": None}).rowcount == 0:
        row = {"digest": new.digest, "size": new.size, "created_at": at}
        connection.execute(blobs.insert(), row)


def _deed(row: Row[Any], actor: str, action: str) -> Deed:
    return Deed(
        tenant=row.tenant,
        actor=actor,
        action=action,
        subject=f"{row.name}@{row.number}",
        detail={"digest": row.digest},
    )


def _as_edits(connection: Connection, rows: Sequence[Row[Any]]) -> list[Edit]:
    ids = [row.id for row in rows]
    highest = (
        sa.select(versions.c.edit, sa.func.max(versions.c.number).label("number"))
        .where(versions.c.edit.in_(ids))
        .group_by(versions.c.edit)
    )
    counts = {row.edit: row.number for row in connection.execute(highest)}
    pointed: dict[int, list[Row[Any]]] = {}
    for alias in connection.execute(
        sa.select(aliases)
        .where(aliases.c.edit.in_(ids), aliases.c.number.is_not(None))
        .order_by(aliases.c.alias)
    ):
        pointed.setdefault(alias.edit, []).append(alias)
    return [
        Edit(
            tenant=row.tenant,
            name=row.name,
            kind=row.kind,
            versions=counts.get(row.id, 0),
            aliases=tuple(as_alias(row.name, a) for a in pointed.get(row.id, ())),
            created_at=row.created_at,
            created_by=row.created_by,
        )
        for row in rows
    ]


def as_alias(name: str, row: Row[Any]) -> Alias:
    """A row of the aliases as the record that is handed out."""
    return Alias(
        name=name,
        alias=row.alias,
        version=row.number,
        generation=row.generation,
        moved_at=row.moved_at,
        moved_by=row.moved_by,
    )
