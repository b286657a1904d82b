"""What long work has made whole, so that work which was broken off goes on from there.

Work yields a `Stage` for every unit that is whole. Who runs it may keep the stage's bytes and hand
them to equal work later, by their names: that is what `Noted` holds. What decides a unit (weights,
rows, settings, release) is for who keeps it to compare; names tell units of one run apart.
"""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from safetensors.torch import load, save

from evaluation.circuits.attribution import Scores
from models.progress import Progress

T = TypeVar("T")
Noted = Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Stage(Progress):
    """A step at which something is whole.

    Attributes:
        name: Of what.
        data: As it is kept.
    """

    name: str
    data: bytes


def said(value: Any) -> bytes:
    """JSON values, or a dataclass of such, as they are kept; floats to the last bit."""
    told = value if isinstance(value, Mapping | list | tuple) else asdict(value)
    return json.dumps(told).encode()


def heard(noted: Noted, name: str) -> Any:
    """What was kept under the name, as JSON has it; None if nothing was."""
    return json.loads(noted[name]) if name in noted else None


def missing(noted: Noted, names: Sequence[str]) -> Iterator[int]:
    """Places of the names under which nothing was kept."""
    return (place for place, name in enumerate(names) if name not in noted)


def within(work: Generator[Progress, None, T], step: Progress) -> Generator[Progress, None, T]:
    """The work of one unit, which tells at each of its own steps how far the whole is."""
    here = {"stage": step.stage, "done": step.done, "total": step.total}
    try:
        while True:
            inner = next(work)
            yield replace(inner, **here, message=step.message or inner.stage)
    except StopIteration as over:
        return over.value
    finally:
        work.close()


def scores_data(scores: Scores) -> bytes:
    """Scores to the last bit; importances files are in single precision."""
    named = {"edges": scores.edges, "nodes": scores.nodes, "neurons": scores.neurons}
    return save({name: t.contiguous() for name, t in named.items() if t is not None})


def scores_of(data: bytes) -> Scores:
    """From such bytes."""
    return Scores(**load(data))
