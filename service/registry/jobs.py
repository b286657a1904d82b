"""Jobs: leased rows. A worker that falls silent loses its job to another, or to a clear failure.

queued -> running -> succeeded | failed | cancelled; a lost worker's job goes back to queued until
it has been begun `Limits.attempts` times.
"""

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from service.registry.audit import Deed, record
from service.registry.errors import BadRecord, LeaseLost, TooManyJobs, UnknownJob
from service.registry.grammar import (
    checked_json,
    checked_limit,
    checked_text,
    number_cursor,
    paged,
)
from service.registry.index import Index
from service.registry.limits import Limits
from service.registry.records import Job, JobEvent, Page
from service.registry.tables import job_events, jobs

_TAIL = 100
"""Log lines that a `Job` shows; `events` has more."""

_SWEPT = 100
"""Overdue jobs that one call looks after."""

_UNFINISHED = ("queued", "running")

WORKER_LOST = {
    "code": "worker_lost",
    "problem": "The worker of this job was lost each time it was begun.",
    "remedy": "Read the log; if it ran out of memory, ask for less. Then ask again.",
    "param": None,
}
WAITED_TOO_LONG = {
    "code": "waited_too_long",
    "problem": "No worker began this job in time.",
    "remedy": "Check that its model is hosted and its workers run. Then ask again.",
    "param": None,
}


def _nobody(_worker: str) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """`Registry.jobs`."""

    index: Index
    limits: Limits

    def create(
        self,
        tenant: str,
        kind: str,
        model: str,
        payload: Mapping[str, Any],
        actor: str,
        *,
        most: int | None = None,
    ) -> Job:
        """Put a job into the queue.

        Args:
            tenant: Who may see it.
            kind: What a worker must know how to do.
            model: The model whose worker it needs.
            payload: What to do.
            actor: Who goes into the audit.
            most: Unfinished jobs that the tenant may have; `Limits.jobs` if None.

        Raises:
            TooManyJobs: The tenant has as many already.
            BadRecord: Outside the limits.
        """
        for what, text in (("tenant", tenant), ("kind", kind), ("model", model), ("actor", actor)):
            checked_text(what, text, self.limits.text_bytes)
        checked_json("payload", payload, self.limits.payload_bytes)
        limit = self.limits.jobs if most is None else most
        with self.index.writing() as connection:
            waiting = sa.select(sa.func.count()).where(
                jobs.c.tenant == tenant, jobs.c.state.in_(_UNFINISHED)
            )
            if connection.execute(waiting).scalar_one() >= limit:
                raise TooManyJobs(limit)
            at = self.index.now(connection)
            name = f"job_{secrets.token_hex(12)}"
            fresh = jobs.insert().values(
                id=name,
                tenant=tenant,
                kind=kind,
                model=model,
                payload=payload,
                state="queued",
                progress=0.0,
                stage="queued",
                attempts=0,
                cancelling=False,
                until=at + self.limits.waiting_seconds,
                told=0,
                created_at=at,
                created_by=actor,
            )
            row = connection.execute(fresh.returning(jobs)).one()
            _audit(connection, at, row, actor, "job.create", {"kind": kind, "model": model})
            self._tell(connection, at, row, {}, "")
            return _as_job(row, ())

    def lease(
        self,
        worker: str,
        kinds: Sequence[str],
        models: Sequence[str],
        seconds: float,
        *,
        gone: Callable[[str], bool] = _nobody,
    ) -> Job | None:
        """Begin the oldest job of these kinds and models, for so many seconds; None if none waits.

        Looks after overdue jobs of everybody on the way: lost workers' jobs are queued again, or
        end as failed.

        Args:
            worker: Who begins it.
            kinds: What it knows how to do.
            models: Whose jobs it takes.
            seconds: How long it may be silent.
            gone: Whether a worker is known to have ended: its jobs are overdue at once. Where it
                cannot know, it says no.

        Raises:
            BadRecord: Not a time span.
        """
        checked_text("worker", worker, self.limits.text_bytes)
        if not 0 < seconds < math.inf:
            raise BadRecord("seconds", f"{seconds} is not a time span")
        wanted = sa.and_(jobs.c.state == "queued", jobs.c.kind.in_(kinds), jobs.c.model.in_(models))
        lost = self._lost(gone)
        if not lost and not self._worth_locking(wanted):
            return None
        with self.index.working() as connection:
            at = self.index.now(connection)
            self._sweep(connection, at, lost)
            query = sa.select(jobs).where(wanted).order_by(jobs.c.seq).limit(1)
            row = connection.execute(query.with_for_update(skip_locked=True)).first()
            if row is None:
                return None
            changes = {
                "state": "running",
                "stage": "begun",
                "attempts": row.attempts + 1,
                "worker": worker,
                "lease_seconds": seconds,
                "until": at + seconds,
                "started_at": at if row.started_at is None else row.started_at,
            }
            row = self._tell(connection, at, row, changes, f"begun by {worker}")
            return _as_job(row, _lines(connection, row.seq))

    def _lost(self, gone: Callable[[str], bool]) -> list[str]:
        """Workers of running jobs that have ended."""
        running = sa.select(jobs.c.worker).where(jobs.c.state == "running").distinct()
        with self.index.reading() as connection:
            workers = connection.execute(running.limit(_SWEPT)).scalars().all()
        return [worker for worker in workers if worker and gone(worker)]

    def _worth_locking(self, wanted: sa.ColumnElement[bool]) -> bool:
        """An idle worker that polls takes no lock."""
        with self.index.reading() as connection:
            overdue = _overdue(self.index.now(connection))
            query = sa.select(jobs.c.seq).where(sa.or_(wanted, overdue)).limit(1)
            return connection.execute(query).first() is not None

    def _sweep(self, connection: Connection, at: float, lost: Sequence[str]) -> None:
        abandoned = sa.and_(jobs.c.state == "running", jobs.c.worker.in_(lost))
        overdue = sa.or_(_overdue(at), abandoned) if lost else _overdue(at)
        query = sa.select(jobs).where(overdue).order_by(jobs.c.seq).limit(_SWEPT)
        for row in connection.execute(query.with_for_update(skip_locked=True)).all():
            if row.state == "queued":
                self._tell(connection, at, row, _over(at, "failed", WAITED_TOO_LONG), "")
            elif row.cancelling:
                self._tell(connection, at, row, _over(at, "cancelled"), "its worker was lost")
            elif row.attempts >= self.limits.attempts:
                self._tell(connection, at, row, _over(at, "failed", WORKER_LOST), "")
            else:
                self._tell(connection, at, row, self._queued_again(at), "its worker was lost")

    def _queued_again(self, at: float) -> dict[str, Any]:
        return {
            "state": "queued",
            "stage": "queued",
            "progress": 0.0,
            "worker": None,
            "until": at + self.limits.waiting_seconds,
        }

    def heartbeat(self, job: str, worker: str, progress: float, stage: str, line: str = "") -> bool:
        """Say that the worker is alive and how far it is; whether it shall stop.

        Args:
            job: The job's id.
            worker: Who leased it.
            progress: 0 to 1; beyond is cut.
            stage: What is being done, in a word or two; control characters become spaces.
            line: For the log, if there is something to say.

        Raises:
            LeaseLost: Another worker has the job, or it is over.
            BadRecord: Progress that is not a number.
        """
        if math.isnan(progress):
            raise BadRecord("progress", "it is not a number")
        stage = _fitting(stage, self.limits.text_bytes)
        now = {"progress": min(max(progress, 0.0), 1.0), "stage": stage}
        with self.index.working() as connection:
            at = self.index.now(connection)
            row = held(connection, job, worker)
            until = {"until": at + row.lease_seconds}
            if line or now["progress"] != row.progress or stage != row.stage:
                self._tell(connection, at, row, {**now, **until}, line)
            else:
                connection.execute(jobs.update().where(jobs.c.seq == row.seq).values(until))
            return bool(row.cancelling)

    def finish(self, job: str, worker: str, result: Mapping[str, Any]) -> Job:
        """The job is done, even if somebody asked to cancel it meanwhile.

        Raises:
            LeaseLost: Another worker has the job, or it is over.
            BadRecord: The result is outside the limits.
        """
        checked_json("result", result, self.limits.result_bytes)
        return self._end(job, worker, "succeeded", {"result": result, "progress": 1.0})

    def fail(self, job: str, worker: str, problem: Mapping[str, Any]) -> Job:
        """The job cannot be done; `problem` has `code`, `problem`, `remedy` and `param`.

        Raises:
            LeaseLost: Another worker has the job, or it is over.
            BadRecord: The problem is outside the limits.
        """
        checked_json("problem", problem, self.limits.result_bytes)
        return self._end(job, worker, "failed", {"problem": problem})

    def stopped(self, job: str, worker: str) -> Job:
        """The worker stopped because `heartbeat` said so.

        Raises:
            LeaseLost: Another worker has the job, or it is over.
        """
        return self._end(job, worker, "cancelled", {})

    def release(self, job: str, worker: str) -> Job:
        """Give the job back, unfinished, because the worker shuts down; it does not count.

        Raises:
            LeaseLost: Another worker has the job, or it is over.
        """
        with self.index.working() as connection:
            at = self.index.now(connection)
            row = held(connection, job, worker)
            if row.cancelling:
                changes = _over(at, "cancelled")
            else:
                changes = {**self._queued_again(at), "attempts": row.attempts - 1}
            row = self._tell(connection, at, row, changes, f"given back by {worker}")
            return _as_job(row, _lines(connection, row.seq))

    def _end(
        self,
        job: str,
        worker: str,
        state: Literal["succeeded", "failed", "cancelled"],
        values: dict[str, Any],
    ) -> Job:
        with self.index.working() as connection:
            at = self.index.now(connection)
            row = held(connection, job, worker)
            row = self._tell(connection, at, row, {**_over(at, state), **values}, "")
            return _as_job(row, _lines(connection, row.seq))

    def cancel(self, job: str, actor: str, tenant: str | None = None) -> Job:
        """Ask that a job stop: at once while it waits, at its worker's next heartbeat if it runs.

        Nothing happens to a job that is over.

        Raises:
            UnknownJob: There is none, or it is another tenant's.
        """
        checked_text("actor", actor, self.limits.text_bytes)
        with self.index.writing() as connection:
            at = self.index.now(connection)
            row = _found(connection, job, tenant, lock=True)
            if row.state in _UNFINISHED and not row.cancelling:
                changes = _over(at, "cancelled") if row.state == "queued" else {}
                row = self._tell(
                    connection, at, row, {**changes, "cancelling": True}, "cancel asked"
                )
                _audit(connection, at, row, actor, "job.cancel", {})
            return _as_job(row, _lines(connection, row.seq))

    def get(self, job: str, tenant: str | None = None) -> Job:
        """One job, with its payload and the tail of its log.

        Raises:
            UnknownJob: There is none, or it is another tenant's.
        """
        with self.index.reading() as connection:
            row = _found(connection, job, tenant)
            return _as_job(row, _lines(connection, row.seq))

    def list(
        self, tenant: str | None, limit: int = 100, after: str | int | None = None
    ) -> Page[Job]:
        """Jobs without payload and log, the newest first; of all tenants if `tenant` is None.

        Raises:
            BadPage: The limit or the cursor is not one.
        """
        checked_limit(limit, self.limits.page)
        columns = [c for c in jobs.c if c is not jobs.c.payload]
        query = sa.select(*columns).order_by(jobs.c.seq.desc()).limit(limit + 1)
        if tenant is not None:
            query = query.where(jobs.c.tenant == tenant)
        if (seq := number_cursor(after)) is not None:
            query = query.where(jobs.c.seq < seq)
        with self.index.reading() as connection:
            rows = connection.execute(query).all()
        return paged([_as_job(row, ()) for row in rows], limit, [str(row.seq) for row in rows])

    def events(self, job: str, after: int = 0, tenant: str | None = None) -> tuple[JobEvent, ...]:
        """What happened to a job after its event `after`, oldest first.

        The oldest events of a talkative job are dropped; the last one is always there.

        Raises:
            UnknownJob: There is none, or it is another tenant's.
        """
        with self.index.reading() as connection:
            row = _found(connection, job, tenant)
            query = (
                sa.select(job_events)
                .where(job_events.c.job == row.seq, job_events.c.seq > after)
                .order_by(job_events.c.seq)
                .limit(self.limits.page)
            )
            return tuple(_as_event(e) for e in connection.execute(query))

    def _tell(
        self,
        connection: Connection,
        at: float,
        row: Row[Any],
        changes: Mapping[str, Any],
        line: str,
    ) -> Row[Any]:
        """Change a job and add the event that says so."""
        told = row.told + 1
        change = jobs.update().where(jobs.c.seq == row.seq).values(**changes, told=told)
        new = connection.execute(change.returning(jobs)).one()
        connection.execute(
            job_events.insert().values(
                job=row.seq,
                seq=told,
                at=at,
                state=new.state,
                progress=new.progress,
                stage=new.stage,
                line=_fitting(line, self.limits.line_bytes),
            )
        )
        connection.execute(
            job_events.delete().where(
                job_events.c.job == row.seq, job_events.c.seq <= told - self.limits.log_lines
            )
        )
        return new


def _overdue(at: float) -> sa.ColumnElement[bool]:
    return sa.and_(jobs.c.state.in_(_UNFINISHED), jobs.c.until < at)


def _over(at: float, state: str, problem: Mapping[str, Any] | None = None) -> dict[str, Any]:
    changes: dict[str, Any] = {"state": state, "stage": state, "finished_at": at}
    return {**changes, "problem": problem} if problem else changes


def held(connection: Connection, job: str, worker: str) -> Row[Any]:
    """The row of a job that the worker has, locked; LeaseLost if it does not have it."""
    row = _found(connection, job, None, lock=True)
    if row.state != "running" or row.worker != worker:
        raise LeaseLost(job, worker)
    return row


def _found(connection: Connection, job: str, tenant: str | None, *, lock: bool = False) -> Row[Any]:
    query = sa.select(jobs).where(jobs.c.id == job)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None or (tenant is not None and row.tenant != tenant):
        raise UnknownJob(job)
    return row


def _lines(connection: Connection, seq: int) -> tuple[str, ...]:
    query = (
        sa.select(job_events.c.line)
        .where(job_events.c.job == seq, job_events.c.line != "")
        .order_by(job_events.c.seq.desc())
        .limit(_TAIL)
    )
    return tuple(reversed(connection.execute(query).scalars().all()))


def _fitting(line: str, most: int) -> str:
    """A log line that every database keeps: one line, no NUL, not too long."""
    plain = "".join(c if c.isprintable() else " " for c in line)
    return plain.encode(errors="replace")[:most].decode(errors="ignore")


def _as_job(row: Row[Any], log: tuple[str, ...]) -> Job:
    return Job(
        id=row.id,
        tenant=row.tenant,
        kind=row.kind,
        model=row.model,
        state=row.state,
        progress=float(row.progress),  # SQLite's RETURNING gives 0, not 0.0
        stage=row.stage,
        log=log,
        payload=row._mapping.get("payload", {}),
        result=row.result,
        problem=row.problem,
        attempts=row.attempts,
        cancelling=row.cancelling,
        worker=row.worker,
        created_at=row.created_at,
        created_by=row.created_by,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def _as_event(row: Row[Any]) -> JobEvent:
    return JobEvent(
        seq=row.seq,
        at=row.at,
        state=row.state,
        progress=row.progress,
        stage=row.stage,
        line=row.line,
    )


def _audit(
    connection: Connection,
    at: float,
    row: Row[Any],
    actor: str,
    action: str,
    detail: Mapping[str, Any],
) -> None:
    deed = Deed(tenant=row.tenant, actor=actor, action=action, subject=row.id, detail=detail)
    record(connection, at, deed)
