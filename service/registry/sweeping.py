"""gc and verification: what lies around unused, and what is missing or damaged."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from service.registry.audit import Audit, Deed, record
from service.registry.blobs import Blobs, Stored
from service.registry.errors import BlobCorrupt, BlobMissing
from service.registry.index import Index
from service.registry.limits import Limits
from service.registry.records import Health, Swept
from service.registry.tables import blobs, claims, edits, jobs, versions

OPERATOR = "operator"
"""The audit's tenant and actor for what concerns the whole registry."""

_BATCH = 200
"""Files that are looked after in one exclusive transaction."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Sweeper:
    """Behind `Registry.gc` and `Registry.verify`."""

    index: Index
    store: Blobs
    limits: Limits

    def gc(self, older_than: float) -> Swept:
        """Remove files older than `older_than` seconds that no version has, and old leavings.

        A file that is registered at this very moment is safe: it is removed only inside an
        exclusive transaction in which no version has it, and registering looks again inside its
        own.
        """
        old = [s for s in self.store.stored() if s.age >= older_than]
        parts = [s for s in old if s.digest is None]
        for part in parts:
            self.store.remove(part.key)
        orphans = [s for batch in _batches(old) for s in self._orphans(batch)]
        retired, freed = self._retired()
        with self.index.writing() as connection:
            gone = self._old_rows(connection)
            swept = Swept(
                orphans=tuple(str(s.digest) for s in orphans),
                parts=tuple(s.key for s in parts),
                retired=retired,
                nbytes=sum(s.size for s in (*parts, *orphans)) + freed,
                jobs=gone,
            )
            if orphans or parts or retired or gone:
                _tell(connection, self.index.now(connection), swept)
        return swept

    def _orphans(self, batch: Sequence[Stored]) -> list[Stored]:
        digests = [s.digest for s in batch if s.digest is not None]
        with self.index.writing() as connection:
            had = set(
                connection.execute(
                    sa.select(versions.c.digest).where(versions.c.digest.in_(digests))
                ).scalars()
            )
            orphans = [s for s in batch if s.digest is not None and s.digest not in had]
            for orphan in orphans:
                self.store.remove(orphan.key)
        return orphans

    def _retired(self) -> tuple[tuple[str, ...], int]:
        """Remove the files of versions retired long ago; their records stay, marked as swept."""
        found: list[str] = []
        freed = 0
        with self.index.writing() as connection:
            at = self.index.now(connection)
            kept = sa.func.max(
                sa.case((versions.c.retired_at.is_(None), at), else_=versions.c.retired_at)
            )
            query = (
                sa.select(blobs.c.digest, blobs.c.size)
                .join(versions, versions.c.digest == blobs.c.digest)
                .where(blobs.c.swept_at.is_(None))
                .group_by(blobs.c.digest, blobs.c.size)
                .having(kept < at - self.limits.retired_seconds)
            )
            for row in connection.execute(query).all():
                self.store.remove(self.store.key(row.digest))
                connection.execute(
                    blobs.update().where(blobs.c.digest == row.digest).values(swept_at=at)
                )
                found.append(row.digest)
                freed += row.size
        return tuple(found), freed

    def _old_rows(self, connection: Connection) -> int:
        at = self.index.now(connection)
        connection.execute(claims.delete().where(claims.c.expires_at <= at))
        old = jobs.c.finished_at < at - self.limits.finished_jobs_seconds
        return connection.execute(jobs.delete().where(old)).rowcount

    def verify(self) -> Health:
        """Read every file that a version needs, and check numbers and the audit's chain."""
        with self.index.reading() as connection:
            digests = connection.execute(
                sa.select(versions.c.digest)
                .distinct()
                .join(blobs, blobs.c.digest == versions.c.digest)
                .where(blobs.c.swept_at.is_(None))
                .order_by(versions.c.digest)
            ).scalars()
            needed = list(digests)
            count = connection.execute(sa.select(sa.func.count(versions.c.id))).scalar_one()
            gaps = _gaps(connection)
        missing, corrupt = self._damaged(needed)
        return Health(
            versions=count,
            blobs=len(needed),
            missing=missing,
            corrupt=corrupt,
            gaps=gaps,
            chain=Audit(index=self.index, limits=self.limits).verify(),
        )

    def _damaged(self, digests: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        missing: list[str] = []
        corrupt: list[str] = []
        for digest in digests:
            try:
                self.store.get(digest)
            except BlobMissing:
                missing.append(digest)
            except BlobCorrupt:
                corrupt.append(digest)
        return tuple(missing), tuple(corrupt)


def _gaps(connection: Connection) -> tuple[str, ...]:
    """Names without versions, or whose numbers are not 1, 2, 3, ... (numbers are unique)."""
    count, most = sa.func.count(versions.c.number), sa.func.max(versions.c.number)
    query = (
        sa.select(edits.c.tenant, edits.c.name)
        .outerjoin(versions, versions.c.edit == edits.c.id)
        .group_by(edits.c.id, edits.c.tenant, edits.c.name)
        .having(sa.or_(count == 0, count != most, sa.func.min(versions.c.number) != 1))
    )
    return tuple(f"{row.tenant}/{row.name}" for row in connection.execute(query))


def _tell(connection: Connection, at: float, swept: Swept) -> None:
    detail = {
        "orphans": len(swept.orphans),
        "parts": len(swept.parts),
        "retired": len(swept.retired),
        "jobs": swept.jobs,
        "nbytes": swept.nbytes,
    }
    deed = Deed(
        tenant=OPERATOR, actor=OPERATOR, action="registry.gc", subject="registry", detail=detail
    )
    record(connection, at, deed)


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[i : i + _BATCH] for i in range(0, len(items), _BATCH))
