"""What an evaluation has found half-way, so that a job which was given back goes on from there.

A stage that is dear and whole (a circuit's scores, a variable's featurizers) is one note of the
job; drawing and judging are done again.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from safetensors.torch import load, save

from evaluation.circuits.attribution import Scores
from models.progress import Progress
from service.registry import Registry
from service.registry.records import Job

_MOST_BYTES = 32 * 2**20
"""Of one stage: larger ones are found again."""


@dataclass(frozen=True, kw_only=True)
class Stage(Progress):
    """A step at which something is whole.

    Attributes:
        name: Of what.
        data: As it is kept.
    """

    name: str
    data: bytes


def note(registry: Registry, job: Job, step: Progress) -> None:
    """Keep what a step has made whole, if it did.

    Raises:
        LeaseLost: Another worker has the job.
    """
    if isinstance(step, Stage) and len(step.data) <= _MOST_BYTES:
        told = {"stage": step.name, "data": base64.b64encode(step.data).decode()}
        registry.notes.add(job.id, job.worker or "", told)


def noted(registry: Registry, job: Job) -> Mapping[str, bytes]:
    """By name what earlier workers of the job have made whole."""
    told = registry.notes.of(job.id)
    return {one["stage"]: base64.b64decode(one["data"]) for one in told}


def scores_data(scores: Scores) -> bytes:
    """Scores to the last bit; importances files are in single precision."""
    named = {"edges": scores.edges, "nodes": scores.nodes, "neurons": scores.neurons}
    return save({name: t.contiguous() for name, t in named.items() if t is not None})


def scores_of(data: bytes) -> Scores:
    """From such bytes."""
    return Scores(**load(data))
