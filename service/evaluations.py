"""Evaluations as jobs: a model of their own, a thread of their own, results by content.

Serving shares nothing with them but the processor. A job that is lost is taken up again behind the
last stage that was noted: everything is drawn by a seed, so it comes to the same.
"""

import functools
import hashlib
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch

from editors.delta import Delta
from editors.moment import Corpus
from evaluation.edited import merged
from models.errors import Refusal
from models.hosted import HostedModel
from models.language import Language
from models.loading import load
from models.progress import Progress
from service.composing import Compositions
from service.datasets import Dataset, newest
from service.evidence import advised, audited, gated
from service.evidence_errors import EvaluationTooLong
from service.evidence_kinds import (
    KINDS,
    Found,
    Kind,
    Subject,
    beside,
    told,
    unzipped,
    zipped,
)
from service.evidence_notes import Page, key_of
from service.evidence_summaries import summary_of
from service.evidence_vectors import Saved, registered
from service.jobs import JobRunner, Task, Ticket
from service.orders import EditOrder
from service.registry import Registry
from service.registry.errors import UnknownName
from service.registry.kinds import EVALUATION
from service.registry.records import Job, Version
from service.registry.tables import canonical
from service.schema_evaluations import settings_of
from service.settings import Model, Settings
from service.weights import corpus_of, dictionaries_of, weights_of

_PATIENCE_SECONDS = 20.0
"""For the step under way when the service stops."""
_LOOKED_AT = 100
"""Newest jobs among which an equal one is looked for."""
_SHARES = {
    "rows": (0.0, 0.05),
    "loading": (0.0, 0.05),
    "attribution": (0.05, 0.5),
    "runs": (0.5, 0.6),
    "faithfulness": (0.6, 0.95),
}
_ADVICE_SHARES = {"loading": (0.0, 0.05), "tracing": (0.05, 0.5), "attribution": (0.5, 0.95)}


def identity(payload: Mapping[str, Any], fingerprint: str) -> str:
    """The evaluation's id: equal for equal weights, edits, rows, params and release."""
    told = {**payload, "fingerprint": fingerprint, "release": version("tiller")}
    return f"evaluation-{hashlib.sha256(canonical(told).encode()).hexdigest()[:24]}"


def known(registry: Registry, tenant: str, name: str) -> Version | None:
    """What an equal request found before, if one did."""
    try:
        return newest(registry, tenant, EVALUATION, name)
    except UnknownName:
        return None


def under_way(registry: Registry, tenant: str, name: str) -> Job | None:
    """The job that an equal request began and that is not finished, if one is."""
    newest_first = registry.jobs.list(tenant, _LOOKED_AT, None).items
    for one in newest_first:
        if one.kind in KINDS and one.state in ("queued", "running") and not one.cancelling:
            job = registry.jobs.get(one.id, tenant)  # lists leave the payload out
            if job.payload["id"] == name:
                return job
    return None


def artifacts(registry: Registry, found: Version) -> dict[str, bytes]:
    """The files of an evaluation by name."""
    return unzipped(registry.edits.blob(found.digest))


def result_of(found: Version) -> dict[str, Any]:
    """What the job comes to; with `vector` where it saved one, `unsaved` where it could not."""
    saved = {key: found.header[key] for key in ("vector", "unsaved") if key in found.header}
    return {
        "evaluation": found.name,
        "kind": found.header["kind"],
        "report": found.report,
        "artifacts": found.header["artifacts"],
        "location": f"/v1/evaluations/{found.name}",
        **saved,
    }


class Evaluator:
    """Runs the evaluations of one hosted model, one at a time."""

    def __init__(self, model: Model, settings: Settings, registry: Registry) -> None:
        self.name, self.model, self.settings, self.registry = (
            model.name,
            model,
            settings,
            registry,
        )
        self._under_way: list[_Thread] = []
        self._page: Page | None = None  # of the job under way
        task = Task(begin=self._begin, keep=self._keep, end=self._kept, shares=_SHARES)
        tasks = dict.fromkeys(KINDS, task)
        tasks["layer_advice"] = replace(task, shares=_ADVICE_SHARES)
        self._runner = JobRunner(bench=self, registry=registry, settings=settings.jobs, tasks=tasks)

    def start(self) -> None:
        """Begin to take jobs."""
        self._runner.start()

    def stop(self) -> None:
        """Give the job under way back."""
        self._runner.stop()
        for work in self._under_way:
            work.join(_PATIENCE_SECONDS)

    def background(
        self,
        work: Generator[Any, None, Any],
        on_item: Callable[[Any], None],
        on_done: Callable[[Any], None],
        on_error: Callable[[BaseException], None],
    ) -> Ticket:
        """Drain the generator on a thread of its own."""
        thread = _Thread(work, on_item, on_done, on_error)
        self._under_way = [thread]  # one at a time
        return thread

    def _begin(self, job: Job) -> Generator[Progress, None, Found]:
        kind, payload = KINDS[job.kind], job.payload
        within = payload["budget"]["max_seconds"]
        self._page = Page(registry=self.registry, job=job)
        return _bounded(self._work(job, kind, payload, self._page), within)

    def _keep(self, _: Job, step: Progress) -> None:
        if self._page is not None:
            self._page.keep(step)

    def _work(
        self, job: Job, kind: Kind, payload: Mapping[str, Any], page: Page
    ) -> Generator[Progress, None, Found]:
        yield Progress(stage="loading", done=0, total=1)
        torch.set_num_threads(self.model.threads)
        hosted = self._loaded()
        try:
            subject = self._subject(kind, payload, hosted)
            noted = page.opened(key_of(job, hosted, beside(subject)))
            subject = replace(subject, noted=noted)
            with ExitStack() as changed:
                if kind.merged:
                    changed.enter_context(merged(hosted, subject.edits))
                found = yield from kind.run(subject)
            return told(job.kind, found, _provenance(payload, hosted, subject))
        finally:
            hosted.close()

    def _loaded(self) -> HostedModel:
        return load(
            self.name,
            weights_of(self.model),
            dtype=self.model.dtype,
            device=self.model.device,
            family=self.model.family or None,
            projection=self.model.projection or None,
            cache=self.settings.home / "fingerprints",
        )

    def _subject(self, kind: Kind, payload: Mapping[str, Any], hosted: HostedModel) -> Subject:
        edits = tuple(EditOrder(**edit) for edit in payload["edits"])
        composed = Compositions(hosted, self._delta).of(edits)
        read = functools.partial(self._dataset, payload["budget"]["max_examples"])
        named = dictionaries_of(self.model) if isinstance(hosted.family, Language) else []
        return Subject(
            hosted=hosted,
            settings=settings_of(kind.settings, payload["params"]),
            dataset=read(payload["dataset"]) if payload["dataset"] else None,
            edits=composed.patch,
            suites={name: read(digest) for name, digest in payload["suites"].items()},
            dictionaries={dictionary.id: dictionary for dictionary in named},
            corpus=self._texts,
        )

    def _delta(self, digest: str) -> Delta:
        return Delta.read(self.registry.edits.blob(digest))

    def _dataset(self, most: int | None, digest: str) -> Dataset:
        return Dataset.read(self.registry.edits.blob(digest)).first(most)

    def _texts(self) -> Sequence[str]:
        return Corpus.read(corpus_of(self.model)).texts

    def _kept(self, job: Job, found: Found) -> dict[str, Any]:
        """Keep the files, the verdicts and the direction; what the job comes to.

        Weights may have changed since it was asked for: it is kept under those that it is of.
        """
        asked = {key: value for key, value in job.payload.items() if key != "id"}
        of = identity({"kind": job.kind, **asked}, found.report["provenance"]["fingerprint"])
        job = replace(job, payload={**asked, "id": of})
        header: dict[str, Any] = {"kind": job.kind, "artifacts": sorted(found.files)}
        header["summary"] = summary_of(job.kind, found.report)
        if found.saved is not None:
            header |= self._saved(job, found.saved, found.report["provenance"])
        if "unsaved" in found.report:
            header["unsaved"] = found.report["unsaved"]
        kept = self.registry.edits.register(
            job.tenant,
            job.payload["id"],
            job.model,
            found.report["provenance"]["fingerprint"],
            zipped(found.files),
            header=header,
            report=found.report,
            actor=job.created_by,
            kind=EVALUATION,
            job=job.id,
        )
        if job.kind == "feature_gate":
            gated(self.registry, job, found.report)
        if job.kind == "edit_audit":
            audited(self.registry, job, found.report)
        if job.kind == "layer_advice":
            advised(self.registry, job, found.report)
        self.registry.notes.forget(job.id, job.worker or "")
        return result_of(kept)

    def _saved(self, job: Job, saved: Saved, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """Where the direction is, or why it could not be registered: the evaluation is kept."""
        try:
            return {"vector": registered(self.registry, job, saved, provenance)}
        except Refusal as refusal:
            return {"unsaved": {"problem": refusal.problem, "remedy": refusal.remedy}}


def _provenance(
    payload: Mapping[str, Any], hosted: HostedModel, subject: Subject
) -> dict[str, Any]:
    datasets = {payload["dataset"]: subject.dataset} if subject.dataset else {}
    datasets |= {payload["suites"][name]: dataset for name, dataset in subject.suites.items()}
    return {
        "model": hosted.name,
        "fingerprint": hosted.fingerprint,
        "dtype": str(hosted.dtype).removeprefix("torch."),
        "device": str(hosted.device),
        "edits": [edit["label"] for edit in payload["edits"]],
        "datasets": {digest[:16]: dict(dataset.made) for digest, dataset in datasets.items()},
        "params": dict(payload["params"]),
        "versions": {name: version(name) for name in ("tiller", "torch", "transformers")},
    }


def _bounded(
    work: Generator[Progress, None, Found], seconds: float | None
) -> Generator[Progress, None, Found]:
    """The work, which ends as too long at the first step after so many seconds."""
    began = time.monotonic()
    try:
        while True:
            try:
                step = next(work)
            except StopIteration as over:
                return over.value
            if seconds is not None and time.monotonic() - began > seconds:
                raise EvaluationTooLong(seconds)
            yield step
    finally:
        work.close()


class _Thread:
    """A generator that is drained by itself; cancelled, it ends at its next step."""

    def __init__(
        self,
        work: Generator[Any, None, Any],
        on_item: Callable[[Any], None],
        on_done: Callable[[Any], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._work, self._item, self._done, self._error = work, on_item, on_done, on_error
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._drain, name="evaluation", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for its end: a forward that runs on while the process ends would abort it."""
        self._thread.join(seconds)

    def cancel(self) -> None:
        """Stop at the next step."""
        self._cancelled.set()

    def _drain(self) -> None:
        try:
            while not self._cancelled.is_set():
                self._item(next(self._work))
        except StopIteration as over:
            self._done(over.value)
        except BaseException as error:  # noqa: BLE001 - the runner's thread raises it
            self._error(error)
        finally:
            self._work.close()
