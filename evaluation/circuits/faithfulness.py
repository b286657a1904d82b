"""Faithfulness of circuits over their sizes, and the two areas: CPR and CMD.

f(C) = (m(C) - m(empty)) / (m(full) - m(empty)). CPR is the area under f with circuits by signed
score: higher is better, without bound, so it rewards exaggeration and is never shown alone. CMD is
the area of |1 - f| with circuits by absolute score: 0 is best. The trapezoid runs over the nominal
sizes on the linear axis, without a point at 0; nearly all of its weight lies at 20 % and more, so
the same areas over the logarithm of the size are reported too.
"""

import math
from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.circuits.anatomy import Anatomy
from evaluation.circuits.attribution import Scores
from evaluation.circuits.parity import Quirk
from evaluation.circuits.points import Cost
from evaluation.circuits.running import Known, margins
from evaluation.circuits.selection import Level, Subgraph, Way, items, select
from evaluation.protocol import bootstrap
from models.progress import Progress

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
FLOOR_CPR, FLOOR_CMD = 0.25, 0.749
"""Of these sizes, where f is 0 below the full one."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One size.

    Attributes:
        k: The nominal share of the items.
        n_edges: Weighted count of real edges that are left, of the circuit by signed score.
        n_edges_absolute: Of the one by absolute score.
        m_signed, m_absolute: The mean metric of each.
        f_signed, f_absolute: Their faithfulness; None where the behaviour is too weak to divide by.
    """

    k: float
    n_edges: float
    n_edges_absolute: float
    m_signed: float
    m_absolute: float
    f_signed: float | None = None
    f_absolute: float | None = None


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """Of one set of scores on one set of pairs.

    Attributes:
        m_full, m_empty: The mean metric of the model, and of the model on corrupted prompts.
        interval: 95 % bootstrap interval of m_full - m_empty over pairs.
        inconclusive: Why no share can be told; None where it can.
        cpr, cmd, cpr_log, cmd_log: The areas; None where inconclusive.
    """

    m_full: float
    m_empty: float
    interval: tuple[float, float]
    curve: tuple[Point, ...]
    inconclusive: str | None
    cpr: float | None = None
    cmd: float | None = None
    cpr_log: float | None = None
    cmd_log: float | None = None


def area(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The trapezoid over the sizes as they are named."""
    return float(np.trapezoid(values, sizes))


def log_area(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The same over the logarithm of the sizes, as a mean: f = 1 everywhere gives 1."""
    places = np.log(sizes)
    return float(np.trapezoid(values, places) / (places[-1] - places[0]))


def floors(sizes: Sequence[float]) -> tuple[float, float]:
    """CPR and CMD over these sizes where f is 0 below the full one: what chance comes to."""
    full = [float(k == 1) for k in sizes]
    missed = [1 - f for f in full]
    return round(area(sizes, full), 12), round(area(sizes, missed), 12)


def measure(  # noqa: PLR0913 - what a curve depends on
    anatomy: Anatomy,
    known: Iterable[Known],
    scores: Scores,
    *,
    pairs: int | None = None,
    level: Level = "edge",
    way: Way = "top",
    sizes: Sequence[float] = SIZES,
    margin: float = 0.0,
    seed: int = 0,
    cost: Cost | None = None,
    parity: Collection[Quirk] = (),
) -> Generator[Progress, None, Faithfulness]:
    """Run the circuits of all sizes, by signed and by absolute score.

    Args:
        anatomy: Of the model.
        known: The pairs that judge, with both their runs; taken one by one, so they may be run
            when they are asked for.
        scores: Of the level.
        pairs: How many there are, for the progress.
        level: What circuits are made of.
        way: How they are selected.
        sizes: Shares of the items.
        margin: The least m_full - m_empty that shares are told of.
        seed: Of the bootstrap.
        cost: Counts the runs.
        parity: The reference's ways of pruning and of counting.
    """
    cost, total = cost or Cost(), items(anatomy.graph, scores, level)
    choose = partial(select, anatomy.graph, scores, level=level, way=way, parity=parity)
    circuits = [
        choose(int(k * total), absolute=absolute) for k in sizes for absolute in (False, True)
    ]
    runs = _Runs()
    for some in known:
        runs.add(some, [margins(anatomy, some, circuit, cost) for circuit in circuits])
        done = len(runs.rows)
        yield Progress(stage="faithfulness", done=done, total=pairs or done)
    full, empty, means = runs.ordered()
    points = [
        _point(anatomy, k, circuits[2 * i : 2 * i + 2], means[2 * i : 2 * i + 2])
        for i, k in enumerate(sizes)
    ]
    return faithfulness(points, full, empty, margin=margin, seed=seed)


def _point(
    anatomy: Anatomy, k: float, circuits: Sequence[Subgraph], means: Sequence[float]
) -> Point:
    signed, absolute = (circuit.size(anatomy.graph) for circuit in circuits)
    return Point(
        k=k, n_edges=signed, n_edges_absolute=absolute, m_signed=means[0], m_absolute=means[1]
    )


@dataclass(eq=False)
class _Runs:
    """Margins of all pairs, batch by batch: a batch's runs are forgotten before the next."""

    rows: list[int] = field(default_factory=list)
    found: list[Tensor] = field(default_factory=list)
    ends: list[Tensor] = field(default_factory=list)

    def add(self, some: Known, values: Sequence[Tensor]) -> None:
        """One batch under all circuits."""
        self.rows += some.batch.rows
        self.ends.append(torch.stack([some.full, some.empty]).cpu().double())
        self.found.append(torch.stack(list(values)))

    def ordered(self) -> tuple[Tensor, Tensor, list[float]]:
        """m(full) and m(empty) of every pair in the pairs' order, and each circuit's mean."""
        order = torch.tensor(self.rows).argsort()
        full, empty = torch.cat(self.ends, 1)[:, order]
        return full, empty, torch.cat(self.found, 1).mean(1).tolist()


def faithfulness(
    points: Sequence[Point],
    full: Float[Tensor, " pairs"],
    empty: Float[Tensor, " pairs"],
    *,
    margin: float = 0.0,
    seed: int = 0,
) -> Faithfulness:
    """Shares and areas, unless the denominator is too small to divide by."""
    gain = (full - empty).numpy()
    interval = bootstrap([str(i) for i in range(len(gain))], gain, seed=seed)
    m_full, m_empty = float(full.mean()), float(empty.mean())
    why = _too_weak(m_full - m_empty, interval, margin)
    if why is not None:
        return Faithfulness(
            m_full=m_full,
            m_empty=m_empty,
            interval=interval,
            curve=tuple(points),
            inconclusive=why,
        )

    def share(m: float) -> float:
        return (m - m_empty) / (m_full - m_empty)

    told = tuple(
        Point(**{**vars(p), "f_signed": share(p.m_signed), "f_absolute": share(p.m_absolute)})
        for p in points
    )
    sizes = [p.k for p in points]
    kept = [share(p.m_signed) for p in points]
    missed = [abs(1 - share(p.m_absolute)) for p in points]
    return Faithfulness(
        m_full=m_full,
        m_empty=m_empty,
        interval=interval,
        curve=told,
        inconclusive=None,
        cpr=area(sizes, kept),
        cmd=area(sizes, missed),
        cpr_log=log_area(sizes, kept),
        cmd_log=log_area(sizes, missed),
    )


def _too_weak(gain: float, interval: tuple[float, float], margin: float) -> str | None:
    if interval[0] <= 0 <= interval[1] or not math.isfinite(gain):
        return f"the interval [{interval[0]:.3g}, {interval[1]:.3g}] of m(full) - m(empty) covers 0"
    if gain < margin:
        return f"m(full) - m(empty) is {gain:.3g}, below {margin:g}"
    return None
