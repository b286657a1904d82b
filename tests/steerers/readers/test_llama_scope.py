import json

import pytest
import torch

from steerers.errors import UnsupportedDictionary, UnsupportedHook
from steerers.readers import read

FIRST = {
    "hook_point_in": "blocks.15.hook_resid_post",
    "hook_point_out": "blocks.15.hook_resid_post",
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.9,
    "sparsity_include_decoder_norm": True,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 17.0, "out": 17.0},
    "d_model": 6,
    "d_sae": 20,
}
C = 6**0.5 / 17.0


@pytest.fixture
def linear(raw):
    return {
        "encoder.weight": raw["W_enc"].T,
        "encoder.bias": raw["b_enc"] / 10,
        "decoder.weight": raw["W_dec"].T,
        "decoder.bias": raw["b_dec"],
    }


@pytest.fixture
def first(tmp_path, put, linear):
    def write(**changes):
        folder = put(tmp_path / "Llama3_1-8B-Base-L15R-8x", hyperparams__json={**FIRST, **changes})
        put(folder / "checkpoints", final__safetensors=linear)
        return folder

    return write


def pre(raw, x):
    return C * x.double() @ raw["W_enc"].double() + raw["b_enc"] / 10


def test_the_threshold_is_in_units_of_the_unscaled_input(first, raw, x, agree):
    sae = read(first())
    assert (sae.format, sae.site, sae.model) == (
        "llama-scope",
        "lm.block.15",
        "meta-llama/Llama-3.1-8B",
    )
    z, lengths = pre(raw, x), raw["W_dec"].double().norm(dim=-1)
    codes = torch.relu(z) * (z * lengths > 0.9 * C)
    assert not torch.equal(codes > 0, z > 0)
    agree(sae, x, codes, (codes @ raw["W_dec"].double() + raw["b_dec"]) / C)


def test_top_k_chooses_by_decoder_norms_and_keeps_its_codes(first, raw, x, agree, top_k):
    sae = read(first(act_fn="topk", top_k=3))
    lengths = raw["W_dec"].double().norm(dim=-1)
    codes = top_k(pre(raw, x) * lengths, 3) / lengths
    agree(sae, x, codes, (codes @ raw["W_dec"].double() + raw["b_dec"]) / C)


def test_later_files_with_thresholds_of_their_own(tmp_path, put, linear, raw, x, agree):
    tensors = {**linear, "log_jumprelu_threshold": (raw["threshold"] / 5).log()}
    config = {
        **FIRST,
        "dataset_average_activation_norm": None,
        "sparsity_include_decoder_norm": False,
    }
    del config["jump_relu_threshold"]
    tensors["dataset_average_activation_norm.blocks.15.hook_resid_post"] = torch.tensor(17.0)
    sae = read(put(tmp_path / "L15R", config__json=config, sae_weights__safetensors=tensors))
    z = pre(raw, x)
    codes = torch.relu(z) * (z > raw["threshold"] / 5)
    agree(sae, x, codes, (codes @ raw["W_dec"].double() + raw["b_dec"]) / C)


def test_the_newest_names_and_a_norm_that_is_folded_already(tmp_path, put, raw, x, agree):
    tensors = {"W_E": raw["W_enc"], "b_E": raw["b_enc"], "W_D": raw["W_dec"], "b_D": raw["b_dec"]}
    tensors["activation_function.log_jumprelu_threshold"] = raw["threshold"].log()
    config = {**FIRST, "norm_activation": "inference", "sparsity_include_decoder_norm": False}
    sae = read(put(tmp_path / "new", config__json=config, sae_weights__safetensors=tensors))
    z = x.double() @ raw["W_enc"].double() + raw["b_enc"]
    codes = torch.relu(z) * (z > raw["threshold"])
    agree(sae, x, codes, codes @ raw["W_dec"].double() + raw["b_dec"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, "transcoder"),
        ({"norm_activation": "batch-wise"}, "batch-wise"),
        ({"act_fn": "gelu"}, "gelu"),
        ({"use_glu_encoder": True}, "GLU"),
        ({"dataset_average_activation_norm": None}, "average activation norm"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(first, changes, said):
    with pytest.raises(UnsupportedDictionary, match=said):
        read(first(**changes))


def test_other_places_are_refused(first):
    hook = "blocks.15.hook_attn_out"
    with pytest.raises(UnsupportedHook, match="attention"):
        read(first(hook_point_in=hook, hook_point_out=hook))


def test_the_threshold_must_be_stated(first):
    folder = first()
    config = {k: v for k, v in FIRST.items() if k != "jump_relu_threshold"}
    (folder / "hyperparams.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedDictionary, match="threshold"):
        read(folder)
