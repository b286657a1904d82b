"""Who did what, when: rows that are only ever added, each sealed with the hash of all before it.

The same rows, read as events, tell replicas what changed: `seq` grows without gaps in the order of
the commits, because rows are added in exclusive transactions only.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from service.registry.grammar import checked_limit, number_cursor, paged
from service.registry.index import Index
from service.registry.limits import Limits
from service.registry.records import AuditRow, ChainReport, Event, Page
from service.registry.tables import audit, canonical

GENESIS = "0" * 64
"""What the first row is chained to."""

_WALK = 2000
"""Rows that are read at a time when the chain is verified."""


@dataclass(frozen=True, kw_only=True)
class Deed:
    """One thing that somebody did; `subject` is what it was done to (`potus@live`)."""

    tenant: str
    actor: str
    action: str
    subject: str
    detail: Mapping[str, Any]


def record(connection: Connection, at: float, deed: Deed) -> int:
    """Add a row to the chain and return its `seq`; only inside `Index.writing()`."""
    last = connection.execute(
        sa.select(audit.c.seq, audit.c.digest).order_by(audit.c.seq.desc()).limit(1)
    ).first()
    seq, before = (last.seq + 1, last.digest) if last else (1, GENESIS)
    row: dict[str, Any] = {
        "seq": seq,
        "at": at,
        "tenant": deed.tenant,
        "actor": deed.actor,
        "action": deed.action,
        "subject": deed.subject,
        "detail": canonical(deed.detail),
    }
    connection.execute(audit.insert(), {**row, "digest": sealed(before, row)})
    return seq


def sealed(before: str, row: Mapping[str, Any]) -> str:
    """The digest of a row: SHA-256 of the one before and its own fields as JSON."""
    fields = [row[k] for k in ("seq", "at", "tenant", "actor", "action", "subject", "detail")]
    return hashlib.sha256((before + canonical(fields)).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Audit:
    """`Registry.audit`: reading the rows, and proving that none was changed."""

    index: Index
    limits: Limits

    def list(
        self, tenant: str | None, limit: int = 100, after: str | int | None = None
    ) -> Page[AuditRow]:
        """The newest rows first; of all tenants if `tenant` is None.

        Raises:
            BadPage: The limit or the cursor is not one.
        """
        checked_limit(limit, self.limits.page)
        query = sa.select(audit).order_by(audit.c.seq.desc()).limit(limit + 1)
        if tenant is not None:
            query = query.where(audit.c.tenant == tenant)
        if (seq := number_cursor(after)) is not None:
            query = query.where(audit.c.seq < seq)
        with self.index.reading() as connection:
            rows = [_audit_row(r) for r in connection.execute(query)]
        return paged(rows, limit, [str(r.seq) for r in rows])

    def verify(self) -> ChainReport:
        """Walk the whole chain, some rows at a time."""
        seq, digest = 0, GENESIS
        while True:
            query = sa.select(audit).where(audit.c.seq > seq).order_by(audit.c.seq).limit(_WALK)
            with self.index.reading() as connection:
                rows = connection.execute(query).all()
            for row in rows:
                if row.seq != seq + 1 or row.digest != sealed(digest, row._asdict()):
                    return ChainReport(rows=seq, head=digest, broken_at=seq + 1)
                seq, digest = row.seq, row.digest
            if len(rows) < _WALK:
                return ChainReport(rows=seq, head=digest, broken_at=None)


@dataclass(frozen=True, kw_only=True)
class Events:
    """`Registry.events`: what changed since a moment that the reader remembers as a number."""

    index: Index
    limits: Limits

    def latest(self) -> int:
        """The last event's `seq`, 0 before the first."""
        with self.index.reading() as connection:
            return connection.execute(sa.select(sa.func.max(audit.c.seq))).scalar() or 0

    def since(self, seq: int, limit: int = 1000) -> tuple[Event, ...]:
        """The events after `seq`, oldest first, at most `limit`.

        Raises:
            BadPage: The limit is not one.
        """
        checked_limit(limit, self.limits.page)
        query = sa.select(audit).where(audit.c.seq > seq).order_by(audit.c.seq).limit(limit)
        with self.index.reading() as connection:
            return tuple(_event(r) for r in connection.execute(query))


def _audit_row(row: Row[Any]) -> AuditRow:
    return AuditRow(**{**row._mapping, "detail": json.loads(row.detail)})


def _event(row: Row[Any]) -> Event:
    return Event(
        seq=row.seq,
        at=row.at,
        tenant=row.tenant,
        action=row.action,
        subject=row.subject,
        detail=json.loads(row.detail),
    )
