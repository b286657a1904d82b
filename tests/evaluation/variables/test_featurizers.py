"""Features of a unit, by the formulas that define them."""

import pytest
import torch

from evaluation.variables.errors import BadStudy
from evaluation.variables.featurizers import (
    FULL,
    Codes,
    Coordinates,
    Directions,
    Featurizer,
    random_like,
)
from evaluation.variables.principal import principal
from steerers.activation import Gated, JumpReLU, ReLU, TopK
from tests.steerers.conftest import random_dictionary

D, N = 12, 20


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(5, 2, D, generator=generator), torch.randn(5, 2, D, generator=generator)


def orthonormal(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(D, n, generator=generator, dtype=torch.float64)).Q.float()


def test_directions_are_swapped_as_f_and_e_say(pair):
    base, source = pair
    w = orthonormal(5)
    chosen = (0, 3)
    f, e = base @ w, base - base @ w @ w.T
    f[..., list(chosen)] = (source @ w)[..., list(chosen)]
    found = Featurizer(kind="das", features=Directions(rotation=w), chosen=chosen)(base, source)
    torch.testing.assert_close(found, f @ w.T + e)


def test_coordinates_are_swapped_one_by_one(pair):
    base, source = pair
    wanted = base.clone()
    wanted[..., [1, 7]] = source[..., [1, 7]]
    made = Featurizer(kind="dbm", features=Coordinates(count=D), chosen=(1, 7))
    torch.testing.assert_close(made(base, source), wanted)


def activations():
    spread = torch.linspace(-0.5, 0.5, N)
    return [
        ReLU(),
        JumpReLU(threshold=torch.full((N,), 0.4)),
        TopK(k=4),
        Gated(gate_bias=spread, r_mag=spread, magnitude_bias=spread),
    ]


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("activation", activations(), ids=lambda a: a.kind)
def test_codes_are_decoded_with_the_base_s_error(pair, activation, norm):
    base, source = pair
    stated = {"encoder_bias": torch.zeros(N)} if isinstance(activation, Gated) else {}
    sae = random_dictionary(D, features=N, activation=activation, input_norm=norm, **stated)
    codes, chosen = sae.encode(base), (2, 5, 11, 17)
    error = base - sae.decode(codes, base)
    codes[..., list(chosen)] = sae.encode(source)[..., list(chosen)]
    wanted = sae.decode(codes, base) + error
    made = Featurizer(kind="sae", features=Codes(dictionary=sae), chosen=chosen)
    torch.testing.assert_close(made(base, source), wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(wanted, base)


def test_nothing_chosen_is_the_base_and_everything_the_source(pair):
    base, source = pair
    features = Directions(rotation=orthonormal(D))
    torch.testing.assert_close(
        Featurizer(kind="das", features=features)(base, source), source, atol=1e-5, rtol=1e-5
    )
    assert torch.equal(FULL(base, source), source)
    nothing = Featurizer(kind="das", features=features, chosen=())
    assert nothing.empty and torch.equal(nothing(base, source), base)
    assert not FULL.empty and FULL.count is None


def test_features_that_are_not_there_are_refused():
    with pytest.raises(BadStudy):
        Featurizer(kind="dbm", features=Coordinates(count=3), chosen=(3,))
    with pytest.raises(BadStudy):
        Featurizer(kind="full", chosen=(0,))


def test_random_features_are_others_of_equal_number():
    sae = random_dictionary(D, features=N)
    for made in (
        Featurizer(kind="das", features=Directions(rotation=orthonormal(4))),
        Featurizer(kind="dbm", features=Coordinates(count=D), chosen=(0, 5, 6, 7)),
        Featurizer(kind="sae", features=Codes(dictionary=sae), chosen=(0, 1, 2, 3)),
    ):
        drawn, again, other = (random_like(made, D, seed) for seed in (0, 0, 1))
        assert drawn.count == made.count == 4
        base, source = torch.zeros(1, D), torch.linspace(-2, 2, D)[None]
        assert torch.equal(drawn(base, source), again(base, source))
        assert not torch.equal(drawn(base, source), other(base, source))


def test_principal_directions_are_the_svd_s():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, D, generator=generator) * torch.linspace(1, 9, D) + 3
    x[:, 4] = 2.0
    plain, scored = principal(x, standardise=False), principal(x, standardise=True, n=3)
    assert plain.count == 8 and scored.count == 3
    _, _, v = torch.linalg.svd(x.double())
    torch.testing.assert_close(
        plain.rotation @ plain.rotation.T, (v[:8].T @ v[:8]).float(), atol=1e-5, rtol=1e-5
    )
    z = (x - x.mean(0)) / x.std(0, correction=0).clamp_min(1e-9)
    z[:, 4] = 0
    values, vectors = torch.linalg.eigh(z.double().T @ z.double())
    top = vectors[:, values.argsort(descending=True)[:3]]
    torch.testing.assert_close(
        scored.rotation @ scored.rotation.T, (top @ top.T).float(), atol=1e-5, rtol=1e-5
    )
