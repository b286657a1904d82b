import json

import numpy as np
import pytest
import torch

from steerers.activation import Gated, JumpReLU, ReLU, TopK
from steerers.dictionary import Dictionary
from steerers.errors import CannotWrite, UnsupportedHook
from steerers.readers import read
from steerers.writers import write_gemma_scope, write_saelens

D, F = 6, 20


def sae(activation, **changes) -> Dictionary:
    torch.manual_seed(1)
    parts = {
        "id": "toy",
        "site": "lm.block.4",
        "format": "toy",
        "encoder": torch.randn(D, F),
        "encoder_bias": torch.zeros(F) if isinstance(activation, Gated) else torch.randn(F),
        "decoder": torch.randn(F, D),
        "decoder_bias": torch.randn(D),
        "activation": activation,
        "model": "miniature-lm",
        "declared": {"l0": 9.5, "explained_variance": 0.8},
    }
    return Dictionary(**{**parts, **changes})


def same(a: Dictionary, b: Dictionary) -> bool:
    return (a.digest, a.site, a.model, a.declared) == (b.digest, b.site, b.model, b.declared)


@pytest.mark.parametrize("write", [write_gemma_scope, write_saelens])
@pytest.mark.parametrize("site", ["lm.block.4", "lm.embedding"])
def test_what_is_written_is_read_again(tmp_path, write, site):
    written = sae(JumpReLU(torch.rand(F)), site=site)
    assert same(read(write(tmp_path / "sae", written)), written)


@pytest.mark.parametrize(
    ("activation", "changes"),
    [
        (ReLU(), {"subtracts_decoder_bias": True}),
        (TopK(3), {"input_norm": "layer_norm"}),
        (TopK(5), {"input_norm": "constant_norm_rescale", "subtracts_decoder_bias": True}),
        (Gated(torch.randn(F), torch.randn(F), torch.randn(F)), {}),
    ],
)
def test_saelens_has_words_for_every_activation(tmp_path, activation, changes):
    written = sae(activation, **changes)
    assert same(read(write_saelens(tmp_path / "sae", written)), written)


def test_a_relu_is_a_jump_relu_at_zero(tmp_path):
    written, x = sae(ReLU()), torch.randn(9, D)
    found = read(write_gemma_scope(tmp_path / "sae", written))
    assert isinstance(found.activation, JumpReLU)
    assert torch.equal(found.encode(x), written.encode(x))


@pytest.mark.parametrize(
    ("write", "dtype"),
    [
        (write_gemma_scope, torch.float16),
        (write_saelens, torch.float16),
        (write_saelens, torch.bfloat16),
    ],
)
def test_thresholds_stay_in_float32(tmp_path, write, dtype):
    written = sae(JumpReLU(torch.rand(F)))
    found = read(write(tmp_path / "sae", written, dtype=dtype))
    assert isinstance(written.activation, JumpReLU) and isinstance(found.activation, JumpReLU)
    assert torch.equal(found.activation.threshold, written.activation.threshold)
    assert torch.equal(found.decoder, written.decoder.to(dtype).float())


def test_the_same_dictionary_is_the_same_bytes(tmp_path):
    written = sae(JumpReLU(torch.rand(F)))
    for write in (write_gemma_scope, write_saelens):
        a, b = (write(tmp_path / f"{write.__name__}{i}", written) for i in range(2))
        assert {f.name: f.read_bytes() for f in a.iterdir()} == {
            f.name: f.read_bytes() for f in b.iterdir()
        }


def test_the_layouts_are_the_published_ones(tmp_path):
    written = sae(JumpReLU(torch.rand(F)))
    with np.load(write_gemma_scope(tmp_path / "a", written) / "params.npz") as stored:
        shapes = {name: stored[name].shape for name in stored.files}
    assert shapes == {
        "W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,), "threshold": (F,)
    }  # fmt: skip
    config = json.loads((write_saelens(tmp_path / "b", written) / "cfg.json").read_text())
    assert config["architecture"] == "jumprelu" and config["apply_b_dec_to_input"] is False
    assert config["metadata"]["hook_name"] == "blocks.4.hook_resid_post"


@pytest.mark.parametrize(
    ("written", "dtype", "said"),
    [
        (sae(TopK(3)), torch.float32, "topk"),
        (sae(ReLU(), subtracts_decoder_bias=True), torch.float32, "as it is"),
        (sae(ReLU(), input_norm="layer_norm"), torch.float32, "as it is"),
        (sae(ReLU()), torch.bfloat16, "bfloat16"),
    ],
)
def test_what_gemma_scope_has_no_words_for_is_refused(tmp_path, written, dtype, said):
    with pytest.raises(CannotWrite, match=said):
        write_gemma_scope(tmp_path / "sae", written, dtype=dtype)
    assert not (tmp_path / "sae").exists()


def test_what_saelens_has_no_words_for_is_refused(tmp_path):
    with pytest.raises(CannotWrite, match="weights"):
        write_saelens(tmp_path / "sae", sae(TopK(3, torch.rand(F))))
    with pytest.raises(UnsupportedHook):
        write_saelens(tmp_path / "sae", sae(ReLU(), site="text.block.4"))
