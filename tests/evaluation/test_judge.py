import pytest

from evaluation.judge import cake_bar, two_way


def test_on_a_tie_nobody_wins():
    assert two_way(("a", "b"), [1.0, 1.0]).best == ""
    assert two_way(("a", "b"), [0.0, 1.0]).best == "b"


def test_cakes_bar_is_two_deviations_below_the_mean():
    assert cake_bar([0.2, 0.4]) == pytest.approx(0.3 - 2 * 0.1)
