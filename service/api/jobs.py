"""`/v1/jobs`: long work, watched."""

import asyncio
import dataclasses
import re
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from service.api.answers import Bench, Page, listed, no_query, reply, stream
from service.api.strict import Strict
from service.auth import Principal, needs
from service.openai import DONE, event
from service.registry.records import Job
from service.workbench import Workbench

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=Strict)
Reader = Annotated[Principal, Depends(needs("edits:read"))]
Writer = Annotated[Principal, Depends(needs("edits:write"))]

FINISHED = ("succeeded", "failed", "cancelled")
_LOOK_SECONDS = 0.1
_SEEN = re.compile(r"[0-9]{1,9}")
"""Ids of events; anything else begins anew."""
_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d+)")


@router.get("")
async def list_jobs(
    request: Request, page: Annotated[Page, Query()], bench: Bench, caller: Reader
) -> JSONResponse:
    """This tenant's jobs, newest first."""
    jobs = await asyncio.to_thread(bench.registry.jobs.list, caller.tenant, page.limit, page.after)
    return listed(request, jobs, _told_briefly)


@router.get("/{job_id}", dependencies=[Depends(no_query)])
async def show_job(request: Request, job_id: str, bench: Bench, caller: Reader) -> Response:
    """State, progress, result or problem. `Prefer: wait=30` answers when it is done."""
    job = await find(bench, caller, job_id)
    job = await waited(request, bench, job)
    return reply(request, job_body(job), headers=_headers(job))


@router.get("/{job_id}/events", dependencies=[Depends(no_query)])
async def watch_job(request: Request, job_id: str, bench: Bench, caller: Reader) -> Response:
    """The job's progress as server-sent events; `Last-Event-ID` continues a broken stream."""
    job = await find(bench, caller, job_id)
    last = request.headers.get("last-event-id", "0")
    return stream(_events(bench, caller.tenant, job.id, int(last) if _SEEN.fullmatch(last) else 0))


@router.delete("/{job_id}", dependencies=[Depends(no_query)])
async def cancel_job(request: Request, job_id: str, bench: Bench, caller: Writer) -> JSONResponse:
    """Cancel: a waiting job at once, a running one at its next step."""
    job = await asyncio.to_thread(bench.registry.jobs.cancel, job_id, caller.name, caller.tenant)
    return reply(request, job_body(job), status=200 if job.state in FINISHED else 202)


async def find(bench: Workbench, caller: Principal, job_id: str) -> Job:
    """The caller's job; another tenant's is as unknown as one that never was."""
    return await asyncio.to_thread(bench.registry.jobs.get, job_id, caller.tenant)


async def waited(request: Request, bench: Workbench, job: Job) -> Job:
    """The job once it is finished, or once `Prefer: wait=` is over."""
    asked = _WAIT.search(request.headers.get("prefer", ""))
    if asked is None:
        return job
    seconds = min(float(asked[1]), bench.settings.limits.wait_seconds)
    until = time.monotonic() + seconds
    while job.state not in FINISHED and time.monotonic() < until:
        await asyncio.sleep(_LOOK_SECONDS)
        job = await asyncio.to_thread(bench.registry.jobs.get, job.id)
        if await request.is_disconnected():
            break
    return job


def accepted(request: Request, job: Job) -> JSONResponse:
    """202 with the job's address; 200 if it has finished meanwhile."""
    headers = {"Location": f"/v1/jobs/{job.id}", **_headers(job)}
    status = 200 if job.state in FINISHED else 202
    return reply(request, job_body(job), status, headers)


def _headers(job: Job) -> dict[str, str]:
    return {} if job.state in FINISHED else {"Retry-After": "1"}


def job_body(job: Job) -> dict[str, Any]:
    """A job as JSON; what it was asked to do is not repeated, its pictures may be large."""
    return {
        "id": job.id,
        "object": "job",
        "kind": job.kind,
        "model": job.model,
        "state": job.state,
        "progress": job.progress,
        "stage": job.stage,
        "log": list(job.log),
        "cancelling": job.cancelling,
        "attempts": job.attempts,
        "result": job.result,
        "problem": job.problem,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "events": f"/v1/jobs/{job.id}/events",
    }


def _told_briefly(job: Job) -> dict[str, Any]:
    """A job of a list, whose log is not read."""
    return {key: value for key, value in job_body(job).items() if key != "log"}


async def _events(
    bench: Workbench, tenant: str, job_id: str, after: int
) -> AsyncGenerator[bytes, None]:
    while True:
        # State first, events second: what happened before a finished state is never missed.
        job = await asyncio.to_thread(bench.registry.jobs.get, job_id, tenant)
        for happened in await asyncio.to_thread(bench.registry.jobs.events, job_id, after):
            after = happened.seq
            yield f"id: {after}\n".encode() + event("job.progress", dataclasses.asdict(happened))
        if job.state in FINISHED:
            yield event(f"job.{job.state}", {"job": job_body(job)})
            yield DONE
            return
        if bench.draining.is_set():
            return  # the client continues elsewhere, from its last event
        await asyncio.sleep(_LOOK_SECONDS)
