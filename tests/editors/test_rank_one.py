import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editors.errors import BadMoment, EditsConflict
from editors.rank_one import condition, factor, joint, solve_keys


def moment_of(inner, tokens=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(tokens, inner, generator=generator, dtype=torch.float64)
    return keys.mT @ keys / tokens


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_key_is_the_published_closed_form():
    c, k, d = moment_of(24), drawn(1, 24, seed=1), drawn(1, 12, seed=2)
    left, right = joint(k, solve_keys(k, factor(c)), d)
    a = torch.linalg.inv(c) @ k[0]
    torch.testing.assert_close(left @ right, torch.outer(d[0], a) / (a @ k[0]))


def test_a_hundred_edits_reach_their_values_in_any_order():
    c, k, d = moment_of(128, 4000), drawn(100, 128, seed=3), drawn(100, 16, seed=4)
    a = solve_keys(k, factor(c))
    left, right = joint(k, a, d)
    given_ = k @ right.mT @ left.mT
    assert float((given_ - d).norm() / d.norm()) < 1e-4
    order = torch.randperm(100, generator=torch.Generator().manual_seed(5))
    again, there = joint(k[order], a[order], d[order])
    torch.testing.assert_close(again @ there, left @ right, rtol=1e-7, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 6), seed=st.integers(0, 1000))
def test_no_change_that_reaches_the_values_is_smaller(n, seed):
    """Any other solution differs by something that is zero at the keys; it only costs more."""
    c, k, d = moment_of(20, seed=seed), drawn(n, 20, seed=seed + 1), drawn(n, 5, seed=seed + 2)
    left, right = joint(k, solve_keys(k, factor(c)), d)
    change = left @ right
    beside = drawn(5, 20, seed=seed + 3)
    beside -= beside @ torch.linalg.pinv(k) @ k
    cost = lambda w: float(torch.trace(w @ c @ w.mT))  # noqa: E731
    assert cost(change) <= cost(change + 0.1 * beside) + 1e-12


def test_equal_keys_that_want_different_values_are_refused():
    c, k = moment_of(24), drawn(1, 24, seed=1)
    twice = torch.cat([k, k])
    with pytest.raises(EditsConflict):
        joint(twice, solve_keys(twice, factor(c)), drawn(2, 12, seed=2))


def test_a_ridge_is_used_only_where_nothing_else_helps_and_is_told():
    assert factor(moment_of(24)).ridge == 0
    thin = drawn(30, 10, seed=6)
    flat = thin @ thin.mT
    assert 0 < factor(flat).ridge <= 1e-4
    with pytest.raises(BadMoment):
        factor(-torch.eye(4, dtype=torch.float64))


def test_the_condition_number_is_that_of_what_is_factored():
    c = moment_of(24)
    assert condition(c, 0.0) == pytest.approx(float(torch.linalg.cond(c)), rel=1e-9)
    ridge = 1e-4
    mended = c + ridge * c.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    assert condition(c, ridge) == pytest.approx(float(torch.linalg.cond(mended)), rel=1e-9)
    dead = c.clone()
    dead[0], dead[:, 0] = 0, 0
    ridge = factor(dead).ridge
    assert ridge > 0 and 1e3 < condition(dead, ridge) < 1e8
