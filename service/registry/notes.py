"""Notes: what an unfinished job has found so far, so that its next worker goes on from there.

Only the worker that has the job writes; who lost it is refused, and cannot mix old with new. Notes
leave with their job, and when it is done.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from service.registry.errors import BadRecord
from service.registry.index import Index
from service.registry.jobs import held
from service.registry.limits import Limits
from service.registry.tables import canonical, job_notes, jobs


@dataclass(frozen=True, kw_only=True)
class Notes:
    """`Registry.notes`."""

    index: Index
    limits: Limits

    def add(self, job: str, worker: str, note: Mapping[str, Any]) -> None:
        """Keep one more.

        Raises:
            LeaseLost: Another worker has the job, or it is over.
            BadRecord: The job's notes would be larger than `Limits.notes_bytes`.
        """
        packed = zlib.compress(canonical(note).encode())
        with self.index.working() as connection:
            row = held(connection, job, worker)
            size = sa.select(sa.func.coalesce(sa.func.sum(sa.func.length(job_notes.c.packed)), 0))
            before = connection.execute(size.where(job_notes.c.job == row.seq)).scalar_one()
            if before + len(packed) > self.limits.notes_bytes:
                raise BadRecord("notes", f"a job keeps {self.limits.notes_bytes} bytes at most")
            connection.execute(job_notes.insert().values(job=row.seq, packed=packed))

    def of(self, job: str) -> list[dict[str, Any]]:
        """All of a job's, the oldest first; none of a job that is not there."""
        query = (
            sa.select(job_notes.c.packed)
            .join(jobs, jobs.c.seq == job_notes.c.job)
            .where(jobs.c.id == job)
            .order_by(job_notes.c.id)
        )
        with self.index.reading() as connection:
            return [json.loads(zlib.decompress(p)) for p in connection.execute(query).scalars()]

    def forget(self, job: str, worker: str) -> None:
        """Remove them: what they led to is kept elsewhere.

        Raises:
            LeaseLost: Another worker has the job, or it is over.
        """
        with self.index.working() as connection:
            row = held(connection, job, worker)
            connection.execute(job_notes.delete().where(job_notes.c.job == row.seq))
