import pytest
import torch

from steerers.errors import (
    SiteNotDeclared,
    UnknownLayout,
    UnsupportedDictionary,
    UnsupportedHook,
)
from steerers.readers import read

TRAINER = {"layer": 8, "lm_name": "EleutherAI/pythia-70m", "submodule_name": "resid_post_layer_8"}


@pytest.fixture
def linear(raw):
    return {
        "encoder.weight": raw["W_enc"].T.contiguous(),
        "encoder.bias": raw["b_enc"],
        "decoder.weight": raw["W_dec"].T.contiguous(),
    }


@pytest.fixture
def folder(tmp_path, put):
    def write(kind, state, **trainer):
        config = {"trainer": {**TRAINER, "dict_class": kind, **trainer}, "buffer": {}}
        return put(tmp_path / "trainer_0", config__json=config, ae__pt=state)

    return write


def pre(raw, x, beta=True):
    return (x.double() - raw["b_dec"].double() * beta) @ raw["W_enc"].double() + raw["b_enc"]


def decoded(raw, codes):
    return codes.double() @ raw["W_dec"].double() + raw["b_dec"]


@pytest.mark.parametrize(("kind", "bias"), [("AutoEncoder", "bias"), ("AutoEncoderNew", None)])
def test_auto_encoders(folder, linear, raw, x, agree, kind, bias):  # noqa: PLR0913, PLR0917
    sae = read(folder(kind, {**linear, bias or "decoder.bias": raw["b_dec"]}))
    assert (sae.format, sae.site, sae.model) == (
        "dictionary-learning",
        "lm.block.8",
        "EleutherAI/pythia-70m",
    )
    codes = torch.relu(pre(raw, x, beta=bias is not None))
    agree(sae, x, codes, decoded(raw, codes))


def test_top_k_is_a_true_top_k(folder, linear, raw, x, agree, top_k):
    state = {**linear, "b_dec": raw["b_dec"], "k": torch.tensor(3, dtype=torch.int)}
    sae = read(folder("AutoEncoderTopK", {**state, "threshold": torch.tensor(-1.0)}, k=3))
    codes = top_k(pre(raw, x), 3)
    agree(sae, x, codes, decoded(raw, codes))


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_batch_top_k_has_one_threshold(folder, linear, raw, x, agree, kind):
    plain = {n: raw[n] for n in ("W_enc", "b_enc", "W_dec")}
    state = {**(linear if kind == "BatchTopKSAE" else plain), "b_dec": raw["b_dec"]}
    state |= {"k": torch.tensor(3), "threshold": torch.tensor(0.7)}
    sae = read(folder(kind, state))
    z = pre(raw, x)
    codes = torch.relu(z) * (z > 0.7)
    agree(sae, x, codes, decoded(raw, codes))
    with pytest.raises(UnsupportedDictionary, match="unset"):
        read(folder(kind, {**state, "threshold": torch.tensor(-1.0)}))


def test_jump_relu_does_not_subtract(folder, raw, x, agree):
    sae = read(folder("JumpReluAutoEncoder", dict(raw)))
    z = pre(raw, x, beta=False)
    codes = torch.relu(z) * (z > raw["threshold"])
    agree(sae, x, codes, decoded(raw, codes))


def test_gated(folder, linear, raw, x, agree):
    torch.manual_seed(5)
    gate, r, magnitude = torch.randn(3, 20).unbind()
    state = {n: linear[n] for n in ("encoder.weight", "decoder.weight")}
    state |= {"decoder_bias": raw["b_dec"], "gate_bias": gate, "r_mag": r, "mag_bias": magnitude}
    sae = read(folder("GatedAutoEncoder", state))
    e = pre(raw, x) - raw["b_enc"]
    codes = (e + gate > 0) * torch.relu(e * r.double().exp() + magnitude)
    agree(sae, x, codes, decoded(raw, codes))


def test_a_place_is_never_guessed(folder, linear, raw):
    state = {**linear, "bias": raw["b_dec"]}
    with pytest.raises(SiteNotDeclared):
        read(folder("AutoEncoder", state, submodule_name=None))
    assert read(folder("AutoEncoder", state, submodule_name=None), site="lm.block.2")
    with pytest.raises(UnsupportedHook, match="MLP"):
        read(folder("AutoEncoder", state, submodule_name="mlp_out_layer_8"))


def test_classes_and_folders_that_are_not_known(folder, linear, tmp_path, put):
    with pytest.raises(UnsupportedDictionary, match="IdentityDict"):
        read(folder("IdentityDict", linear))
    with pytest.raises(UnknownLayout, match=r"ae\.pt"):
        read(put(tmp_path / "bare", ae__pt=linear))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder"]
)
def test_a_file_of_the_library(folder, x, kind):
    library = pytest.importorskip("dictionary_learning.dictionary")
    torch.manual_seed(0)
    theirs = getattr(library, kind)(6, 20)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours = read(folder(kind, theirs.state_dict()))
    with torch.no_grad():
        codes = theirs.encode(x)
        torch.testing.assert_close(ours.encode(x), codes, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.decode(codes), theirs.decode(codes), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("module", "kind", "groups"),
    [
        ("top_k", "AutoEncoderTopK", None),
        ("batch_top_k", "BatchTopKSAE", None),
        ("matryoshka_batch_top_k", "MatryoshkaBatchTopKSAE", [8, 12]),
    ],
)
def test_a_top_k_file_of_the_library(folder, x, module, kind, groups):
    library = pytest.importorskip(f"dictionary_learning.trainers.{module}")
    torch.manual_seed(0)
    theirs = getattr(library, kind)(6, 20, 3, *([groups] if groups else []))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    theirs.threshold.fill_(0.7)
    ours = read(folder(kind, theirs.state_dict()))
    with torch.no_grad():
        codes = theirs.encode(x)
        torch.testing.assert_close(ours.encode(x), codes, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.decode(codes), theirs.decode(codes), atol=1e-5, rtol=1e-4)
