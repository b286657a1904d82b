import numpy as np
import pytest

from evaluation.judge import cake_bar, choice


def test_on_a_tie_nobody_wins():
    assert choice(("a", "b"), [1.0, 1.0]).best == ""
    assert choice(("a", "b"), [0.0, 1.0]).best == "b"
    assert choice(("a", "b", "c"), [2.0, 1.0, 2.0]).best == ""


def test_a_choice_is_a_softmax_over_all_answers():
    found = choice(("a", "b", "c"), [0.0, 2.0, 1.0])
    assert found.best == "b"
    assert sum(found.probabilities.values()) == pytest.approx(1.0)
    assert found.probabilities["b"] / found.probabilities["c"] == pytest.approx(np.e)


def test_cakes_bar_is_two_deviations_below_the_mean():
    assert cake_bar([0.2, 0.4]) == pytest.approx(0.3 - 2 * 0.1)
