"""What an evaluation has found half-way, so that a job which was broken off goes on from there.

Every stage that is whole (a circuit's scores, a variable's featurizers, one suite of an audit, one
pair of advice, one gate) is noted with its job, under the key of all that decides it: other
weights, rows, params, releases or numbers' types read nothing of it. A job that was lost reads its
own notes; a new one also those of equal jobs before it that were cancelled or failed.
"""

import base64
import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from evaluation.noted import Stage
from models.hosted import HostedModel
from models.progress import Progress
from service.registry import Registry
from service.registry.errors import BadRecord
from service.registry.records import Job
from service.registry.tables import canonical

_MOST_BYTES = 32 * 2**20
"""Of one stage: larger ones are found again."""
_NOTE_SECONDS = 2.0
_LOOKED_AT = 100
"""Newest jobs among which equal ones are looked for."""
_ENDED = ("cancelled", "failed")


def key_of(job: Job, hosted: HostedModel, beside: Mapping[str, str]) -> str:
    """What decides every stage of a job; how long it may take and its own name do not.

    Args:
        job: What is asked.
        hosted: Of which weights, in which numbers.
        beside: Digests of what else is read.
    """
    released = {name: version(name) for name in ("tiller", "torch", "transformers")}
    told = {
        "kind": job.kind,
        "asked": _asked(job.payload),
        "beside": dict(beside),
        "fingerprint": hosted.fingerprint,
        "dtype": str(hosted.dtype),
        "device": hosted.device.type,
        "versions": released,
    }
    return hashlib.sha256(canonical(told).encode()).hexdigest()


def _asked(payload: Mapping[str, Any]) -> dict[str, Any]:
    budget = {k: v for k, v in payload["budget"].items() if k != "max_seconds"}
    return {**{k: v for k, v in payload.items() if k != "id"}, "budget": budget}


@dataclass(kw_only=True, eq=False)
class Page:
    """What one job has made whole, noted every few seconds."""

    registry: Registry
    job: Job
    key: str = ""
    waiting: dict[str, str] = field(default_factory=dict)
    noted: float = 0.0

    def opened(self, key: str) -> dict[str, bytes]:
        """By name what this job, and equal ones before it, have made whole under the key."""
        self.key = key
        found: dict[str, bytes] = {}
        for name in (*_earlier(self.registry, self.job), self.job.id):
            for note in self.registry.notes.of(name):
                if note.get("key") == key:
                    stages = note["stages"].items()
                    found |= {stage: base64.b64decode(data) for stage, data in stages}
        return found

    def keep(self, step: Progress) -> None:
        """Note what a step has made whole, soon.

        Raises:
            LeaseLost: Another worker has the job.
        """
        if isinstance(step, Stage) and len(step.data) <= _MOST_BYTES:
            self.waiting[step.name] = base64.b64encode(step.data).decode()
        if self.waiting and time.monotonic() - self.noted > _NOTE_SECONDS:
            note = {"key": self.key, "stages": self.waiting}
            with suppress(BadRecord):  # the job's notes are full: the rest is found again
                self.registry.notes.add(self.job.id, self.job.worker or "", note)
            self.waiting, self.noted = {}, time.monotonic()


def _earlier(registry: Registry, job: Job) -> Iterator[str]:
    """Ids of jobs that were asked the same and ended without a result, the oldest first."""
    listed = registry.jobs.list(job.tenant, _LOOKED_AT, None).items
    for one in reversed(listed):
        if (one.kind, one.model) == (job.kind, job.model) and one.state in _ENDED:
            whole = registry.jobs.get(one.id, job.tenant)  # lists leave the payload out
            if _asked(whole.payload) == _asked(job.payload):
                yield one.id
