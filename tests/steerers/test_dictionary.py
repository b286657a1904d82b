"""The canonical SAE against the formulas, in float64."""

from dataclasses import replace

import pytest
import torch

from models.errors import BadSite, UnknownSite
from models.patch import Clamp
from steerers.activation import Gated, JumpReLU, ReLU, TopK
from steerers.dictionary import Dictionary, Fit
from steerers.errors import BadDictionary, UnknownFeature, WrongDictionary

D, F = 6, 20
NORMS = ("none", "layer_norm", "constant_norm_rescale")


def activations() -> list:
    torch.manual_seed(7)
    return [
        ReLU(),
        JumpReLU(torch.randn(F)),
        TopK(4),
        TopK(4, torch.rand(F) + 0.1),
        Gated(torch.randn(F), torch.randn(F) / 3, torch.randn(F)),
    ]


def sae(activation, *, beta: bool = True, norm: str = "none", **changes) -> Dictionary:
    torch.manual_seed(1)
    parts = {
        "id": "toy",
        "site": "lm.block.1",
        "format": "toy",
        "encoder": torch.randn(D, F),
        "encoder_bias": torch.zeros(F) if isinstance(activation, Gated) else torch.randn(F),
        "decoder": torch.randn(F, D) * (torch.rand(F, 1) + 0.5),
        "decoder_bias": torch.randn(D),
        "activation": activation,
        "subtracts_decoder_bias": beta,
        "input_norm": norm,
    }
    return Dictionary(**{**parts, **changes})


@pytest.fixture
def tokens() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(3, 5, D) * 2 + 0.3


def plain_codes(s: Dictionary, x: torch.Tensor) -> torch.Tensor:
    """Section 2 of the definition, one token at a time."""
    x, act = x.double(), s.activation
    if s.input_norm == "layer_norm":
        x = (x - x.mean()) / (x.std() + 1e-5)
    if s.input_norm == "constant_norm_rescale":
        x = x * D**0.5 / x.norm()
    if s.subtracts_decoder_bias:
        x = x - s.decoder_bias.double()
    z = x @ s.encoder.double() + s.encoder_bias.double()
    if isinstance(act, Gated):
        gate, r, magnitude = (t.double() for t in (act.gate_bias, act.r_mag, act.magnitude_bias))
        return (z + gate > 0) * torch.relu(torch.exp(r) * z + magnitude)
    if isinstance(act, JumpReLU):
        return torch.relu(z) * (z > act.threshold.double())
    if isinstance(act, TopK):
        order = z if act.weights is None else z * act.weights.double()
        kept = set(order.argsort(descending=True)[: act.k].tolist())
        z = torch.stack([z[i] if i in kept else z[i] * 0 for i in range(F)])
    return torch.relu(z)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("index", range(5))
def test_codes_are_those_of_the_definition(index, beta, norm, tokens):
    s = sae(activations()[index], beta=beta, norm=norm)
    wanted = torch.stack([plain_codes(s, x) for x in tokens.flatten(0, 1)]).view(3, 5, F)
    assert 0 < (wanted > 0).float().mean() < 1
    torch.testing.assert_close(s.encode(tokens).double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_decoding_undoes_the_input_norm(norm, tokens):
    s = sae(ReLU(), norm=norm)
    codes = s.encode(tokens)
    inner = codes.double() @ s.decoder.double() + s.decoder_bias.double()
    mean, scale = {
        "none": (0, 1),
        "layer_norm": (tokens.mean(-1, keepdim=True), tokens.std(-1, keepdim=True)),
        "constant_norm_rescale": (0, tokens.norm(dim=-1, keepdim=True) / D**0.5),
    }[norm]
    torch.testing.assert_close(
        s.decode(codes, tokens).double(), inner * scale + mean, atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("index", range(5))
def test_the_closed_form_equals_the_pass_with_the_error_term(index, norm, tokens):
    """decode(codes + s A e_f) + (x - decode(codes)) = x + s A scale d_f: no decoder pass."""
    s = sae(activations()[index], norm=norm)
    codes = s.encode(tokens)
    amount = 10 * codes.amax(-1)
    steered = codes.clone()
    steered[..., 3] += amount
    error = tokens.double() - s.decode(codes, tokens).double()
    slow = s.decode(steered, tokens).double() + error
    fast = tokens + amount[..., None] * s.output_scale(tokens) * s.decoder[3]
    torch.testing.assert_close(fast.double(), slow, atol=2e-3, rtol=1e-4)


def test_without_its_token_a_normed_code_is_not_decoded(tokens):
    s = sae(ReLU(), norm="layer_norm")
    with pytest.raises(BadDictionary, match="without the token"):
        s.decode(s.encode(tokens))
    assert "depends on the token" in (s.unshiftable or "")
    assert sae(ReLU()).unshiftable is None


def test_a_code_must_exceed_its_threshold_strictly():
    s = sae(
        JumpReLU(torch.full((F,), 2.0)), beta=False, encoder_bias=torch.zeros(F),
        encoder=torch.ones(D, F),
    )  # fmt: skip
    assert not s.encode(torch.full((D,), 2.0 / D)).any()
    assert s.encode(torch.full((D,), 2.001 / D)).all()


def test_the_largest_code_is_taken_over_all_features_after_the_threshold(tokens):
    x = tokens[0, 0]
    free, high = sae(ReLU()), sae(JumpReLU(torch.full((F,), 1e3)))
    assert free.a_max(x) == pytest.approx(float(plain_codes(free, x).max()), rel=1e-5)
    assert high.a_max(x) == 0


@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("index", [0, 1, 4])
def test_a_feature_by_itself_has_the_code_it_has_among_all(index, beta, tokens):
    s = sae(activations()[index], beta=beta)
    codes = s.encode(tokens)
    for f in range(F):
        one = s.feature(f)
        z = tokens @ one.encoder + one.bias
        alone = torch.where(z > one.threshold, z, torch.zeros_like(z))
        torch.testing.assert_close(alone, codes[..., f], atol=2e-5, rtol=1e-4)
        assert one.unclampable is None and torch.equal(one.decoder, s.decoder[f])
        Clamp(
            site=s.site, encoder=one.encoder, encoder_bias=one.bias, decoder=one.decoder,
            threshold=one.threshold, value=1.0,
        )  # fmt: skip


def test_what_one_column_cannot_tell_is_not_clampable():
    assert "TopK" in (sae(TopK(3)).feature(0).unclampable or "")
    assert "token" in (sae(ReLU(), norm="layer_norm").feature(0).unclampable or "")
    for wrong in (-1, F):
        with pytest.raises(UnknownFeature, match=f"feature {wrong}"):
            sae(ReLU()).feature(wrong)


def test_content_is_identity():
    s = sae(JumpReLU(torch.rand(F)))
    same = replace(s, id="other", format="x", model="m", declared={"l0": 3.0})
    assert same.digest == s.digest
    others = [
        replace(s, site="lm.block.2"),
        replace(s, subtracts_decoder_bias=False),
        replace(s, input_norm="layer_norm"),
        replace(s, activation=JumpReLU(torch.rand(F) + 1)),
        replace(s, activation=ReLU()),
        replace(s, activation=TopK(3)),
        replace(s, activation=TopK(4)),
        *(replace(s, **{n: getattr(s, n) + 1}) for n in
          ("encoder", "encoder_bias", "decoder", "decoder_bias")),
    ]  # fmt: skip
    assert len({s.digest, *(o.digest for o in others)}) == len(others) + 1


def test_everything_becomes_float32():
    s = sae(JumpReLU(torch.rand(F).bfloat16()), encoder=torch.randn(D, F).bfloat16())
    assert s.encoder.dtype == torch.float32
    assert isinstance(s.activation, JumpReLU) and s.activation.threshold.dtype == torch.float32
    assert s.encode(torch.randn(2, D).bfloat16()).dtype == torch.float32
    assert s.nbytes == 4 * (2 * D * F + 2 * F + D)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder_bias": torch.zeros(F - 1)}, "encoder_bias has shape"),
        ({"decoder": torch.zeros(D, F)}, "decoder has shape"),
        ({"decoder_bias": torch.zeros(F)}, "decoder_bias has shape"),
        ({"encoder": torch.zeros(F)}, "encoder has shape"),
        ({"encoder": torch.full((D, F), torch.nan)}, "encoder is not finite"),
        ({"activation": JumpReLU(torch.zeros(3))}, "threshold has shape"),
        ({"activation": JumpReLU(torch.full((F,), torch.inf))}, "threshold is not finite"),
        (
            {"activation": Gated(*torch.zeros(3, F).unbind()), "encoder_bias": torch.ones(F)},
            "gated",
        ),
        ({"activation": TopK(0)}, "keeps 0"),
        ({"activation": TopK(F + 1)}, "keeps 21 of 20"),
        ({"site": "lm.layers.1.mlp"}, "linear layer"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(BadDictionary, match=said):
        sae(changes.pop("activation", ReLU()), **changes)


def test_a_site_must_be_one():
    with pytest.raises(BadSite):
        sae(ReLU(), site="lm.block.-1")


def test_it_must_fit_the_hosted_model(tiny_sd):
    width = tiny_sd.family.stream_width(tiny_sd, "text")
    fitting = {
        "encoder": torch.randn(width, F),
        "decoder": torch.randn(F, width),
        "decoder_bias": torch.zeros(width),
    }
    sae(ReLU(), site="text.block.0", **fitting).check(tiny_sd)
    sae(ReLU(), site="text.embedding", **fitting).check(tiny_sd)
    with pytest.raises(WrongDictionary, match=f"width {D}.*{width}"):
        sae(ReLU(), site="text.block.0").check(tiny_sd)
    for site in ("text.block.99", "lm.block.0"):
        with pytest.raises(UnknownSite):
            sae(ReLU(), site=site, **fitting).check(tiny_sd)


@pytest.mark.parametrize("norm", NORMS)
def test_the_fit_is_that_of_all_tokens_at_once(norm, tokens):
    s = sae(JumpReLU(torch.full((F,), 3.0)), norm=norm)
    x = tokens.flatten(0, 1)
    codes = s.encode(x)
    unexplained = (x.double() - s.decode(codes, x).double()).square().sum()
    fvu = unexplained / (x.double() - x.double().mean(0)).square().sum()
    found = s.fit(x.split(4))
    assert found.tokens == 15
    assert found.fvu == pytest.approx(float(fvu), rel=1e-6)
    assert found.l0 == pytest.approx(float((codes > 0).sum(-1).float().mean()))
    assert found.dead == int((~(codes > 0).any(0)).sum())


def test_a_fit_needs_activations_that_vary():
    for nothing in ([], [torch.ones(4, D)]):
        with pytest.raises(BadDictionary, match="vary"):
            sae(ReLU()).fit(nothing)


def test_what_differs_from_the_declared_quality_is_told():
    good = Fit(tokens=100, fvu=0.26, l0=81.0, dead=0)
    wrong = Fit(tokens=100, fvu=9.8, l0=8.0, dead=0)
    declared = {"l0": 85.0, "explained_variance": 0.75}
    assert good.warnings(declared) == ()
    said = " ".join(wrong.warnings(declared))
    assert "above 1" in said and "L0 is 8, declared 85" in said and "declared 0.750" in said
    assert len(wrong.warnings({})) == 1


def test_it_reads_and_fits_a_hosted_decoders_stream(llama, dictionary_for):
    s = dictionary_for(llama, "lm.block.1")
    s.check(llama)
    with llama.captured("lm.block.1") as seen:
        llama.family.logits(llama, torch.arange(12).view(2, 6) + 3)
    found = s.fit(t.flatten(0, 1) for t in seen["lm.block.1"])
    assert found.tokens == 12 and found.l0 > 0 and found.fvu > 0
