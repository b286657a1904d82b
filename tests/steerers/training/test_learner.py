import pytest
import torch

from steerers.activation import JumpReLU, TopK
from steerers.training.learner import Learner, _Jump, _Step
from steerers.training.recipe import KINDS, Recipe, Wanted
from steerers.training.train import _optimiser, _step

D, FEATURES = 16, 64
RECIPE = Recipe(batch=128, tokens=128 * 300, dead_after=10_000, rate=5e-3)


def sparse_tokens(n, seed=0, scale=7.0):
    """Sums of three of 32 hidden directions and a mean: what an SAE is made for."""
    draw = torch.Generator().manual_seed(99)
    rows = torch.nn.functional.normalize(torch.randn(32, D, generator=draw), dim=1)
    draw = torch.Generator().manual_seed(seed)
    codes = torch.zeros(n, 32)
    chosen = torch.rand(n, 32, generator=draw).topk(3).indices
    codes.scatter_(1, chosen, 1 + torch.rand(n, 3, generator=draw))
    return scale * (codes @ rows + 0.3)


def learner(kind, first=None, recipe=RECIPE, l0=4):
    wanted = Wanted(id="toy", site="lm.block.1", kind=kind, features=FEATURES, l0=l0)
    return Learner(wanted, recipe, sparse_tokens(512) if first is None else first)


def learned(kind):
    one = learner(kind)
    optimiser = _optimiser(one, RECIPE)
    for step in range(RECIPE.steps):
        _step(one, optimiser, sparse_tokens(128, seed=step + 1), step)
    return one


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_sparse_sums_and_keeps_unit_rows(kind):
    held = sparse_tokens(512, seed=7777)
    before = learner(kind).dictionary().fit([held])
    one = learned(kind)
    fit = one.dictionary().fit([held])
    assert fit.fvu < 0.2 and fit.fvu < before.fvu / 2
    assert fit.l0 == pytest.approx(4, rel=0.25)
    assert one.decoder.norm(dim=1).tolist() == pytest.approx([1.0] * FEATURES, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_dictionary_computes_what_was_trained_with_the_scale_folded_in(kind):
    one, tokens = learner(kind, l0=5), sparse_tokens(200, seed=3)
    one.encoder_bias.data += 0.05
    x = tokens / one.scale
    if kind == "batchtopk":
        one.losses(tokens, 1.0)
    made = one.dictionary("tiny")
    z = one.pre_activations(x).detach()
    codes = one._codes(z).detach() if kind != "batchtopk" else z * (z > one.mean_threshold)
    rebuilt = (codes @ one.decoder + one.decoder_bias).detach() * one.scale
    torch.testing.assert_close(made.encode(tokens), codes * one.scale, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.decode(made.encode(tokens)), rebuilt, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.decoder.norm(dim=1), torch.ones(FEATURES))
    assert made.subtracts_decoder_bias == (kind != "jumprelu")
    assert isinstance(made.activation, TopK if kind == "topk" else JumpReLU)


def test_the_threshold_learns_through_the_rectangle_alone():
    """Rajamanoharan et al. 2024, equations 11 and 12, against sums by hand."""
    one = learner("jumprelu")
    z = torch.tensor([[0.98, 2.0], [1.04, 0.5]])
    theta = torch.tensor([1.0, 1.0], requires_grad=True)
    z.requires_grad_()
    (2 * _Jump.apply(z, theta, 0.1)).sum().backward()
    assert theta.grad.tolist() == pytest.approx([-(1.0 / 0.1) * 2 * 2, 0.0])
    assert z.grad.tolist() == [[0.0, 2.0], [2.0, 0.0]]
    theta.grad = z.grad = None
    _Step.apply(z, theta, 0.1).sum().backward()
    assert theta.grad.tolist() == pytest.approx([-2 / 0.1, 0.0])
    assert z.grad is None
    assert one.log_threshold.requires_grad and not learner("topk").log_threshold.requires_grad


def test_dead_features_learn_from_what_is_left_and_only_they():
    one = learner("topk")
    one.quiet[:8] = RECIPE.dead_after + 1
    x = sparse_tokens(64) / one.scale
    z = one.pre_activations(x)
    left = (x - one._codes(z) @ one.decoder - one.decoder_bias).detach()
    one._revival(z, left).backward()
    moved = one.decoder.grad.abs().sum(1) > 0
    assert moved[:8].any() and not moved[8:].any()
    one.quiet.zero_()
    assert float(one._revival(z, left)) == 0


def test_a_step_does_not_change_the_rows_norms_to_first_order():
    one = learner("topk")
    one.losses(sparse_tokens(64), 1.0).total.backward()
    one.before_step()
    along = (one.decoder.grad * one.decoder).sum(1)
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-6, rtol=0)


def test_activity_ends_quiet():
    one = learner("topk")
    active = torch.zeros(FEATURES, dtype=torch.bool)
    active[3] = True
    one.after_step(active, 100)
    one.after_step(~active, 50)
    assert one.quiet[3] == 50 and one.quiet[4] == 0
