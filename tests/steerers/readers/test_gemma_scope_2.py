import pytest
import torch

from steerers.errors import UnsupportedDictionary, UnsupportedHook
from steerers.readers import read

LEAF = "resid_post/layer_12_width_16k_l0_medium"
CONFIG = {
    "architecture": "jump_relu",
    "hf_hook_point_in": "model.layers.12.output",
    "hf_hook_point_out": "model.layers.12.output",
    "model_name": "google/gemma-3-1b-pt",
    "width": 20,
    "l0": 60,
    "affine_connection": False,
    "type": "sae",
}


@pytest.fixture
def lower(raw):
    return {name.lower(): t for name, t in raw.items()}


def test_the_config_says_everything(tmp_path, lower, raw, x, put, agree):
    sae = read(put(tmp_path / LEAF, config__json=CONFIG, params__safetensors=lower))
    assert (sae.format, sae.site, sae.model, sae.declared) == (
        "gemma-scope-2",
        "lm.block.12",
        "google/gemma-3-1b-pt",
        {"l0": 60.0},
    )
    z = x.double() @ raw["W_enc"].double() + raw["b_enc"]
    codes = torch.relu(z) * (z > raw["threshold"])
    agree(sae, x, codes, codes @ raw["W_dec"].double() + raw["b_dec"])


def test_without_a_config_the_path_does(tmp_path, lower, put):
    folder = put(tmp_path / "gemma-scope-2-4b-it" / LEAF, params__safetensors=lower)
    sae = read(folder)
    assert (sae.site, sae.model) == ("lm.block.12", "google/gemma-3-4b-it")


@pytest.mark.parametrize(
    ("hook", "error"),
    [
        ("model.layers.12.self_attn.o_proj.input", UnsupportedHook),
        ("model.layers.12.post_feedforward_layernorm.output", UnsupportedHook),
    ],
)
def test_other_places_are_refused(tmp_path, lower, put, hook, error):
    config = {**CONFIG, "hf_hook_point_in": hook, "hf_hook_point_out": hook}
    with pytest.raises(error, match="not the residual stream"):
        read(put(tmp_path / LEAF, config__json=config, params__safetensors=lower))


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({"architecture": "topk"}, {}, "topk"),
        ({"hf_hook_point_out": "model.layers.12.mlp.output"}, {}, "transcoder"),
        ({}, {"affine_skip_connection": torch.zeros(6, 6)}, "affine"),
        ({}, {"w_dec": torch.zeros(20, 3, 6)}, "cross-layer"),
    ],
)
def test_transcoders_are_refused(tmp_path, lower, put, config, tensors, said):
    folder = put(
        tmp_path / LEAF, config__json={**CONFIG, **config}, params__safetensors={**lower, **tensors}
    )
    with pytest.raises(UnsupportedDictionary, match=said):
        read(folder)
