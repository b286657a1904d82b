"""Areas on curves that are known, and the denominator that must not be divided by."""

import math

import pytest
import torch

from evaluation.circuits.attribution import Gradually, Scores, attribute, random_scores
from evaluation.circuits.errors import BadCircuit
from evaluation.circuits.faithfulness import (
    FLOOR_CMD,
    FLOOR_CPR,
    SIZES,
    Point,
    area,
    faithfulness,
    floors,
    log_area,
    measure,
)
from evaluation.circuits.points import Cost
from evaluation.circuits.running import know
from evaluation.circuits.selection import items, select

FULL, EMPTY = torch.tensor([3.0, 5.0]).double(), torch.tensor([-3.0, -1.0]).double()


def curve(*shares):
    """Points with these shares of the way from -2 to 4."""
    return [
        Point(k=k, n_edges=1, n_edges_absolute=1, m_signed=-2 + 6 * f, m_absolute=-2 + 6 * f)
        for k, f in zip(SIZES, shares, strict=True)
    ]


def test_a_perfect_curve_and_a_flat_one():
    perfect = faithfulness(curve(*[1.0] * 10), FULL, EMPTY)
    assert (perfect.cpr, perfect.cmd) == (pytest.approx(0.999), pytest.approx(0))
    assert (perfect.cpr_log, perfect.cmd_log) == (pytest.approx(1), pytest.approx(0))
    nothing = faithfulness(curve(*[0.0] * 9, 1.0), FULL, EMPTY)
    assert nothing.cpr == pytest.approx(FLOOR_CPR)
    assert nothing.cmd == pytest.approx(FLOOR_CMD)


def test_the_floor_is_that_of_the_sizes():
    assert floors(SIZES) == (FLOOR_CPR, FLOOR_CMD)
    assert floors((0.1, 1.0)) == (0.45, 0.45)
    assert floors((0.1, 0.5)) == (0, 0.4)


def test_the_weights_are_those_of_the_trapezoid():
    weights = (0.0005, 0.002, 0.004, 0.0075, 0.02, 0.04, 0.075, 0.2, 0.4, 0.25)
    by_log = (0.05, 0.116, 0.116, 0.1, 0.116, 0.116, 0.1, 0.116, 0.116, 0.05)
    for i, (linear, log) in enumerate(zip(weights, by_log, strict=True)):
        one = [float(i == j) for j in range(10)]
        assert area(SIZES, one) == pytest.approx(linear, abs=1e-9)
        assert log_area(SIZES, one) == pytest.approx(log, abs=5e-4)


def test_signed_and_absolute_circuits_are_not_mixed():
    points = [
        Point(k=k, n_edges=1, n_edges_absolute=1, m_signed=4.0, m_absolute=-2.0) for k in SIZES
    ]
    found = faithfulness(points, FULL, EMPTY)
    assert (found.cpr, found.cmd) == (pytest.approx(0.999), pytest.approx(0.999))


def test_a_circuit_that_exaggerates_is_no_better_for_cmd():
    found = faithfulness(curve(*[2.0] * 9, 1.0), FULL, EMPTY)
    assert found.cpr > 1.5
    assert found.cmd == pytest.approx(FLOOR_CMD)


@pytest.mark.parametrize(
    ("full", "empty", "margin", "why"),
    [
        ([3.0, -3.0, 2.0, -2.0], [0.0, 0.0, 0.0, 0.0], 0.0, "covers 0"),
        ([0.1, 0.11, 0.1], [0.0, 0.0, 0.0], 0.5, "below 0.5"),
        ([-1.0, -1.1, -1.0], [0.0, 0.0, 0.0], 0.0, "below 0"),
        ([math.nan], [0.0], 0.0, "covers 0"),
    ],
)
def test_a_weak_behaviour_gives_no_verdict(full, empty, margin, why):
    full, empty = torch.tensor(full).double(), torch.tensor(empty).double()
    found = faithfulness(curve(*[1.0] * 10), full, empty, margin=margin)
    assert why in found.inconclusive
    assert found.cpr is found.cmd is found.cpr_log is found.cmd_log is None
    assert all(p.f_signed is p.f_absolute is None for p in found.curve)


@pytest.mark.parametrize("level", ["edge", "node", "neuron"])
def test_a_curve_is_every_size_run_the_slow_way(anatomies, batches, slow, drain, level):
    anatomy, plainly = anatomies["gpt2"], slow(anatomies["gpt2"])
    known = [know(anatomy, batch, Cost()) for batch in batches]
    scores = drain(attribute(anatomy, batches, Gradually(neurons=True)))
    cost = Cost()
    found = drain(measure(anatomy, known, scores, level=level, cost=cost))
    assert [p.k for p in found.curve] == list(SIZES)
    graph, total = anatomy.graph, items(anatomy.graph, scores, level)
    for point in found.curve if level != "neuron" else found.curve[:0]:
        for absolute, m in ((False, point.m_signed), (True, point.m_absolute)):
            count = int(point.k * total)
            edges = select(graph, scores, count, level=level, absolute=absolute).edges
            plain = sum(plainly.margins(b, (~edges).double()).sum() for b in batches) / 5
            assert m == pytest.approx(float(plain), abs=1e-9)
    assert found.curve[-1].m_signed == pytest.approx(found.m_full, abs=1e-9)
    assert found.curve[-1].n_edges == graph.edges
    assert cost.forwards <= 18 * 5


def test_an_untrained_model_gets_no_verdict(anatomies, batches, drain):
    anatomy = anatomies["llama"]
    known = [know(anatomy, batch, Cost()) for batch in batches]
    found = drain(measure(anatomy, known, random_scores(anatomy, 0), sizes=(0.1, 1.0)))
    low, high = found.interval
    assert low < found.m_full - found.m_empty < high
    assert (found.inconclusive is None) == (low > 0)


def test_scores_of_another_level_are_refused(anatomies):
    graph = anatomies["gpt2"].graph
    only_edges = Scores(edges=torch.zeros(graph.real.shape, dtype=torch.float64))
    with pytest.raises(BadCircuit):
        select(graph, only_edges, 3, level="node", absolute=False)
