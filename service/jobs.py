"""Long work: a leased job drains a generator, tells how far it is and keeps what came of it.

The generator (a fit, a scoring) knows nothing of this. It runs on the thread that owns the model,
one step between two steps of the rows; this file's thread only talks to the registry.
"""

import base64
import functools
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import structlog
from pydantic import ValidationError

from editors.delta import Delta
from editors.fact import Fact, Phrasing
from editors.known import editor_for
from editors.progress import Progress
from models.errors import Refusal
from models.hosted import HostedModel
from models.progress import FOUND_BEFORE
from service import limits, phrases
from service.errors import BadRequest, Crashed, UnknownKey, UnknownMethod
from service.lineage import descended, newest
from service.pictures_in import picture_bytes
from service.problems import problem_of
from service.processes import is_gone, worker_name
from service.registry import Registry
from service.registry.errors import LeaseLost
from service.registry.records import Job
from service.schema import OPTIONS, FactBody
from service.settings import Jobs, Limits

FIT = "fit_edit"
_BEAT_SECONDS = 0.25
_SHARES: Mapping[str, tuple[float, float]] = {
    "moment": (0.0, 0.3),
    "fit": (0.3, 0.8),
    "neighbours": (0.8, 0.9),
    "report": (0.9, 1.0),
}
"""How much of the whole each stage is, roughly: for a bar, not for a bill."""


_PICTURES = ("target_images", "negative_images")


def fit_payload(body: FactBody, bounds: Limits) -> dict[str, Any]:
    """What the job stores: the checked request, pictures as base64.

    Raises:
        UnknownMethod: No such editor.
        BadRequest: An option out of its bounds, or a fact without target.
        UnknownKey: An option that the method does not have.
    """
    limits.check_fact(body, bounds)
    payload = body.model_dump(exclude={*_PICTURES, "options"})
    for name in _PICTURES:
        told = enumerate(getattr(body, name))
        pictures = [picture_bytes(text, f"{name}[{i}]", bounds) for i, text in told]
        payload[name] = [base64.b64encode(p).decode() for p in pictures]
    payload["options"] = checked_options(body.method, body.options)
    fact_of(payload)
    return payload


def checked_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the method's schema reads them; only those that were given."""
    if method not in OPTIONS:
        raise UnknownMethod(method, ", ".join(OPTIONS))
    try:
        checked = OPTIONS[method].model_validate(dict(options))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(("options", *map(str, first["loc"])))
        if first["type"] == "extra_forbidden":
            raise UnknownKey(path) from None
        raise BadRequest(
            f"{path}: {phrases.said(first)}.",
            remedy=f"docs/methods/{method}.md tells each option's range.",
            param=path,
        ) from None
    return checked.model_dump(mode="json", exclude_unset=True)


def fact_of(payload: Mapping[str, Any]) -> Fact:
    """The fact of a job."""
    return Fact(
        prompt=payload["prompt"],
        target=payload["target"] or "",
        subject=payload["subject"] or "",
        source=payload["source"],
        phrasings=tuple(Phrasing(**p) for p in payload["phrasings"]),
        neighbours=tuple(payload["neighbours"]),
        **{n: tuple(base64.b64decode(p) for p in payload.get(n, ())) for n in _PICTURES},
    )


def method_of(payload: Mapping[str, Any], hosted: HostedModel) -> Any:
    """The editor of a job: what the request said, then what the model states of itself."""
    kind = payload["method"]
    settings = OPTIONS[kind].model_validate(payload["options"])
    return editor_for(hosted, kind, {k: getattr(settings, k) for k in settings.model_fields_set})


class Ticket(Protocol):
    """Work under way on the owner thread."""

    def cancel(self) -> None:
        """Stop at the next step."""
        ...


class Bench(Protocol):
    """What a runner needs of a host."""

    name: str

    def background(
        self,
        work: Generator[Any, None, Any],
        on_item: Callable[[Any], None],
        on_done: Callable[[Any], None],
        on_error: Callable[[BaseException], None],
    ) -> Ticket:
        """Drain the generator on the owner thread, between the rows' steps."""
        ...


class Fitter(Protocol):
    """A host that can write facts."""

    def fit(
        self, tenant: str, payload: Mapping[str, Any]
    ) -> Generator[Progress, None, tuple[Delta, bool]]:
        """Fit and measure; the delta with its report, and whether it passed the checks."""
        ...


Shares = Mapping[str, tuple[float, float]]
"""How much of the whole each stage is: from where to where, of 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of job.

    Attributes:
        begin: The work, for the owner thread; what it refuses at once makes the job fail.
        end: What becomes of what it returned: the job's result. On the runner's thread.
        keep: What becomes of each step, on the runner's thread; what it writes survives a crash.
        shares: A stage that is not named here fills the whole bar.
    """

    begin: Callable[[Job], Generator[Any, None, Any]]
    end: Callable[[Job, Any], dict[str, Any]]
    keep: Callable[[Job, Any], None] = lambda job, step: None  # noqa: ARG005 - most keep nothing
    shares: Shares = field(default_factory=dict)


@dataclass(kw_only=True)
class Outcome:
    """What a piece of work came to, written by the owner thread and read by the runner's."""

    over: threading.Event = field(default_factory=threading.Event)
    steps: SimpleQueue[Progress] = field(default_factory=SimpleQueue)
    result: Any = None
    error: BaseException | None = None

    def done(self, result: Any) -> None:
        """The generator returned."""
        self.result = result
        self.over.set()

    def failed(self, error: BaseException) -> None:
        """The generator raised."""
        self.error = error
        self.over.set()

    def item(self, progress: Progress) -> None:
        """The generator yielded."""
        self.steps.put(progress)

    def fresh(self, each: Callable[[Progress], None] | None = None) -> list[Progress]:
        """Per stage since the last call its last step, so that no stage is passed over unseen.

        So stands beside it what a step says of itself for once (`FOUND_BEFORE`).

        Every step is handed to `each`, in order.
        """
        last: dict[tuple[str, bool], Progress] = {}
        with suppress(Empty):
            while True:
                step = self.steps.get_nowait()
                if each is not None:
                    each(step)
                last[step.stage, step.message == FOUND_BEFORE] = step
        return list(last.values())


class JobRunner:
    """One thread that leases jobs for one host, one at a time."""

    def __init__(
        self, *, bench: Bench, registry: Registry, settings: Jobs, tasks: Mapping[str, Task]
    ) -> None:
        self.bench, self.registry, self.settings = bench, registry, settings
        self.tasks = tasks
        self.worker = worker_name()
        self.log = structlog.get_logger("tiller.jobs")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=f"jobs-{bench.name}", daemon=True)

    def start(self) -> None:
        """Begin to lease."""
        self._thread.start()

    def stop(self, seconds: float = 10.0) -> None:
        """Lease no more; the job under way is given back and taken up again later."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                job = self.registry.jobs.lease(
                    self.worker,
                    list(self.tasks),
                    [self.bench.name],
                    self.settings.lease_seconds,
                    gone=is_gone,
                )
            except Exception:
                self.log.exception("lease_failed")
                self._stopping.wait(5 * self.settings.poll_seconds)
                continue
            if job is None:
                self._stopping.wait(self.settings.poll_seconds)
            else:
                self._work(job)

    def _work(self, job: Job) -> None:
        started = time.monotonic()
        try:
            result = self._drained(job, self.tasks[job.kind])
            if result is not None:
                self.registry.jobs.finish(job.id, self.worker, result)
        except LeaseLost:
            self.log.warning("lease_lost", job=job.id)  # its new worker answers for it
        except Refusal as refusal:
            self._failed(job, refusal)
        except Exception:
            self.log.exception("job_crashed", job=job.id)
            self._failed(job, Crashed())
        self.log.info(
            "job", job=job.id, kind=job.kind, seconds=round(time.monotonic() - started, 2)
        )

    def _failed(self, job: Job, refusal: Refusal) -> None:
        with suppress(Refusal):  # an unreachable registry: the lease runs out by itself
            self.registry.jobs.fail(job.id, self.worker, problem_of(refusal))

    def _drained(self, job: Job, task: Task) -> dict[str, Any] | None:
        """The job's result; None if it was cancelled or given back."""
        outcome = Outcome()
        ticket = self.bench.background(task.begin(job), outcome.item, outcome.done, outcome.failed)
        told: Progress | None = None
        over = False
        while not over:
            over = outcome.over.wait(_BEAT_SECONDS)
            if self._stopping.is_set() and not over:
                ticket.cancel()
                self.registry.jobs.release(job.id, self.worker)
                return None
            fresh = self._kept(job, task, outcome, ticket)
            if self._beat(job, fresh, told, ticket):
                return None  # even in the last moment: nothing is registered
            told = fresh[-1] if fresh else told
        if outcome.error is not None:
            raise outcome.error
        return task.end(job, outcome.result)

    def _kept(self, job: Job, task: Task, outcome: Outcome, ticket: Ticket) -> list[Progress]:
        try:
            return outcome.fresh(functools.partial(task.keep, job))
        except BaseException:
            ticket.cancel()  # nobody would keep what comes after it
            raise

    def _beat(self, job: Job, fresh: list[Progress], told: Progress | None, ticket: Ticket) -> bool:
        """Tell how far the job is; True if it was cancelled, and is stopped."""
        beats = [(step, said(step)) for step in fresh] or [(told, "")]
        try:
            asked = [self._tell(job, step, line) for step, line in beats][-1]
        except LeaseLost:
            ticket.cancel()
            raise
        if asked:
            ticket.cancel()
            self.registry.jobs.stopped(job.id, self.worker)
        return asked

    def _tell(self, job: Job, step: Progress | None, line: str) -> bool:
        stage = step.stage if step else "starting"
        done = share(step, self.tasks[job.kind].shares)
        return self.registry.jobs.heartbeat(job.id, self.worker, done, stage, line)


def fitting(fitter: Fitter, registry: Registry) -> Task:
    """Jobs of the kind `FIT`: a fact becomes a version."""
    return Task(
        begin=lambda job: fitter.fit(job.tenant, job.payload),
        end=functools.partial(_registered, registry),
        shares=_SHARES,
    )


def _registered(registry: Registry, job: Job, fitted: tuple[Delta, bool]) -> dict[str, Any]:
    delta, passed = fitted
    name = job.payload["name"]
    delta = descended(delta, newest(registry, job.tenant, name))
    header = dict(delta.header)
    version = registry.edits.register(
        job.tenant,
        name,
        job.model,
        header["base"]["fingerprint"],
        delta.data,
        header=header,
        report=header.get("report"),
        status="ready" if passed else "failed_checks",
        actor=job.created_by,
        parent=header["parent"],
        job=job.id,
    )
    address = f"/v1/edits/{version.name}/versions/{version.number}"
    return {
        "edit": version.name,
        "version": version.number,
        "digest": version.digest,
        "status": version.status,
        "report": version.report,
        "location": address,
    }


def said(progress: Progress) -> str:
    """One log line of a step."""
    numbers = ", ".join(f"{k} {v:.4g}" for k, v in progress.values.items())
    told = f"{progress.message}: {numbers}" if progress.message and numbers else numbers
    return f"{progress.stage} {progress.done}/{progress.total} {told or progress.message}".strip()


def share(progress: Progress | None, shares: Shares) -> float:
    """How much of the whole is done, 0 to 1."""
    if progress is None:
        return 0.0
    low, high = shares.get(progress.stage, (0.0, 1.0))
    return low + (high - low) * min(1.0, progress.done / max(1, progress.total))
