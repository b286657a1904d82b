"""Losses, gates and gradients by the formulas; sharing a forward changes none of them."""

import pytest
import torch
from torch.nn import functional

from evaluation.variables.errors import BadStudy
from evaluation.variables.featurizers import Coordinates
from evaluation.variables.learning import Das, Mask, Rotation
from evaluation.variables.objective import (
    Answers,
    Coefficients,
    Differences,
    least_squares,
)
from evaluation.variables.training import Pupil, Recipe, train
from evaluation.variables.trials import Trials
from evaluation.variables.units import Unit, width
from tests.evaluation.variables.conftest import (
    drained,
    drawn,
    held_plainly,
    swapped_plainly,
    tabled,
)


def test_a_rotation_is_orthonormal_and_its_start_is_the_seed_s():
    state = torch.random.get_rng_state()
    one, same, other = Rotation(8, 3, 1), Rotation(8, 3, 1), Rotation(8, 3, 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(one.weight.T @ one.weight, torch.eye(3), atol=1e-5, rtol=0)
    assert torch.equal(one.weight, same.weight)
    assert not torch.allclose(one.weight, other.weight, atol=0.1)
    assert set(one.state_dict()) == {
        "parametrizations.weight.original",
        "parametrizations.weight.0.base",
    }
    torch.testing.assert_close(Rotation.of(one.weight).weight, one.weight)
    with pytest.raises(BadStudy):
        Das(8, 9, 0)


def test_the_das_loss_is_the_cross_entropy_under_the_plain_swap(decoder):
    swaps = drawn(decoder, answer=3)
    unit = Unit(layer=1, position="mid")
    trials = Trials(hosted=decoder, table=tabled(swaps), units=(unit,))
    learner = Das(width(decoder, unit), 4, seed=5)
    index = torch.arange(3)
    found = Answers(trials.table).loss(
        trials.logits([Pupil((unit,), (learner,)).trial], index)[0], index
    )
    found.backward()

    w = learner.rotate.weight.detach().clone().requires_grad_()
    parts = []
    for swap in swaps:
        answer = swap.expected["x"]
        here, there = swap.positions["mid"]
        source = held_plainly(decoder, swap.counterfactual, unit, there)
        change = (unit, here, lambda x, s=source: x + (s - x) @ w @ w.T)
        logits = swapped_plainly(decoder, (*swap.base, *answer[:-1]), [change])
        parts.append(
            functional.cross_entropy(
                logits[len(swap.base) - 1 :], torch.tensor(answer), reduction="none"
            )
        )
    plain = torch.cat(parts).mean()
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)
    # The same gradient reaches the parameters, through the parametrisation.
    (towards,) = torch.autograd.grad(plain, [w])
    (own,) = torch.autograd.grad(
        (learner.rotate.weight * towards).sum(), list(learner.rotate.parameters())
    )
    torch.testing.assert_close(learner.parameters[0].grad, own, atol=1e-4, rtol=1e-3)


def test_gates_are_soft_while_trained_and_hard_when_done():
    mask = Mask("dbm", Coordinates(count=4))
    base, source = torch.zeros(1, 1, 4), torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    torch.testing.assert_close(mask.change(base, source), source / 2)
    assert mask.finished().empty
    mask.logits.data = torch.tensor([2.0, -2.0, 0.0, 1e-3])
    mask.cool(0.5)
    assert mask.temperature == pytest.approx(0.505)
    gate = torch.sigmoid(mask.logits / 0.505)
    torch.testing.assert_close(mask.change(base, source), gate * source)
    assert mask.penalty(0.1).item() == pytest.approx(0.1 * gate.sum().item())
    mask.cool(1.0)
    assert mask.temperature == pytest.approx(0.01)
    assert mask.finished().chosen == (0, 3)


def test_handles_trained_together_take_the_steps_that_they_take_alone(llama):
    swaps = drawn(llama, ((8, 8),) * 6)
    units = [Unit(layer=i, position=p) for i in (0, 2) for p in ("mid", "last_token")]
    recipe = Recipe(epochs=2, batch=4)

    def trained(some):
        trials = Trials(hosted=llama, table=tabled(swaps), units=tuple(some))
        pupils = [Pupil((u,), (Mask("dbm", Coordinates(count=32)),)) for u in some]
        losses = drained(train(trials, pupils, Answers(trials.table), recipe))
        return losses, [pupil.learners[0].logits.detach() for pupil in pupils]

    losses, logits = trained(units)
    for unit, own_losses, own in zip(units, losses, logits, strict=True):
        (alone_losses,), (alone,) = trained([unit])
        assert len(own_losses) == 4
        assert own_losses == pytest.approx(alone_losses, rel=1e-4)
        torch.testing.assert_close(own, alone, atol=2e-3, rtol=0)
        assert not torch.allclose(own, torch.zeros(()), atol=1e-3)


def test_training_lowers_the_loss(llama):
    swaps = drawn(llama, ((8, 8),) * 4)
    unit = Unit(layer=2, position="last_token")
    trials = Trials(hosted=llama, table=tabled(swaps), units=(unit,))
    pupil = Pupil((unit,), (Das(32, 8, 0),))
    (losses,) = drained(train(trials, [pupil], Answers(trials.table), Recipe(epochs=12, batch=4)))
    assert losses[-1] < 0.8 * losses[0]
    assert trials.cost.backwards == 12


def test_squared_errors_of_predicted_differences(llama):
    swaps = [
        type(s)(**{**vars(s), "signs": {"x": signs}})
        for s, signs in zip(drawn(llama), ((1, 1), (-1, 1), (-1, -1)), strict=True)
    ]
    table = tabled(swaps)
    coefficients = Coefficients(bias=0.5, token=2.0, position=1.0)
    logits = torch.zeros(3, 1, llama.family.vocab_size(llama))
    for row, swap in enumerate(swaps):
        logits[row, 0, swap.base_answer[0]] = 1.5
    objective = Differences(table, coefficients)
    aims = torch.tensor([3.5, -0.5, -2.5])
    index = torch.arange(3)
    torch.testing.assert_close(objective.errors(logits, index), (1.5 - aims).square())
    assert float(objective.loss(logits, index)) == pytest.approx(
        float((1.5 - aims).square().mean())
    )


def test_coefficients_are_the_least_squares_ones():
    signs = [(1, 1), (-1, 1), (-1, -1), (1, -1)]
    told = Coefficients(bias=0.1, token=0.8, position=2.0)
    found = least_squares([told.predicted(s) for s in signs], signs)
    assert (found.bias, found.token, found.position) == pytest.approx((0.1, 0.8, 2.0))
    with pytest.raises(BadStudy):
        least_squares([1.0, 2.0], [(1, 1), (-1, -1)])
