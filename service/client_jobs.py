"""The SDK's calls about jobs: long work that is watched to its end."""

import asyncio
import json
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Iterator,
)

import httpx2

from service.calls import (
    TIMEOUT,
    Async,
    Call,
    Json,
    Sync,
    TillerError,
    as_data,
    as_json,
    at,
    error_of,
    given,
    later,
    now,
    unreachable,
)

_RETRIES = 5


def _list_jobs(*, limit: int = 100, after: str | None = None) -> Call[list[Json]]:
    """Jobs, newest first."""
    query = given({"limit": limit, "after": after})
    return Call(method="GET", path="/v1/jobs", read=as_data, query=query)


def _show_job(job: str) -> Call[Json]:
    """State, progress, log, result or problem."""
    return Call(method="GET", path=at("/v1/jobs/{}", job), read=as_json)


def _cancel_job(job: str) -> Call[Json]:
    """Stop a job at its next step."""
    return Call(method="DELETE", path=at("/v1/jobs/{}", job), read=as_json)


class Jobs(Sync):
    """Long work."""

    list = now(_list_jobs)
    show = now(_show_job)
    cancel = now(_cancel_job)

    def events(self, job: str) -> Iterator[Json]:
        """What happens to the job, from its beginning to its end; survives broken connections."""
        follow = _Follow(job)
        while not follow.over and follow.tries < _RETRIES:
            try:
                with self.tiller.http.stream(
                    "GET", follow.path, headers=follow.headers, timeout=TIMEOUT
                ) as answer:
                    if answer.status_code >= 400:
                        answer.read()
                        raise error_of(answer)
                    for line in answer.iter_lines():
                        yield from follow.line(line)
            except httpx2.TransportError:
                time.sleep(follow.pause())
        follow.check()

    def wait(self, job: str, on_progress: Callable[[Json], None] | None = None) -> Json:
        """The finished job.

        Raises:
            TillerError: It failed or was cancelled.
        """
        for event in self.events(job):
            if on_progress is not None:
                on_progress(event)
        return succeeded(self.show(job))


class AsyncJobs(Async):
    """Long work."""

    list = later(_list_jobs)
    show = later(_show_job)
    cancel = later(_cancel_job)

    async def events(self, job: str) -> AsyncIterator[Json]:
        """What happens to the job, from its beginning to its end; survives broken connections."""
        follow = _Follow(job)
        while not follow.over and follow.tries < _RETRIES:
            try:
                async with self.tiller.http.stream(
                    "GET", follow.path, headers=follow.headers, timeout=TIMEOUT
                ) as answer:
                    if answer.status_code >= 400:
                        await answer.aread()
                        raise error_of(answer)
                    async for line in answer.aiter_lines():
                        for event in follow.line(line):
                            yield event
            except httpx2.TransportError:
                await asyncio.sleep(follow.pause())
        follow.check()

    async def wait(self, job: str, on_progress: Callable[[Json], None] | None = None) -> Json:
        """The finished job.

        Raises:
            TillerError: It failed or was cancelled.
        """
        async for event in self.events(job):
            if on_progress is not None:
                on_progress(event)
        return succeeded(await self.show(job))


class _Follow:
    """A stream of server-sent events that continues where it broke."""

    def __init__(self, job: str) -> None:
        self.path, self.last, self.over, self.tries = at("/v1/jobs/{}/events", job), "0", False, 0

    @property
    def headers(self) -> dict[str, str]:
        return {"Last-Event-ID": self.last, "Accept": "text/event-stream"}

    def line(self, line: str) -> Iterator[Json]:
        kind, _, value = line.partition(": ")
        if kind == "id":
            self.last, self.tries = value, 0
        elif line == "data: [DONE]":
            self.over = True
        elif kind == "data":
            yield json.loads(value)

    def pause(self) -> float:
        self.tries += 1
        return min(5.0, 0.2 * 2**self.tries)

    def check(self) -> None:
        if not self.over:
            raise unreachable(self.path)


def succeeded(job: Json) -> Json:
    """The job, if it succeeded.

    Raises:
        TillerError: With the job's problem and remedy.
    """
    if job["state"] == "succeeded":
        return job
    problem = job["problem"] or {}
    raise TillerError(
        problem.get("problem") or f"The job {job['id']} was {job['state']}.",
        remedy=problem.get("remedy") or "",
        code=problem.get("code") or job["state"],
    )
