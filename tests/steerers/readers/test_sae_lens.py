import pytest
import torch

from steerers.activation import Gated, JumpReLU, ReLU, TopK
from steerers.dictionary import Dictionary
from steerers.errors import UnsupportedDictionary, UnsupportedHook
from steerers.readers import read
from steerers.writers import write_saelens

SIX = {
    "d_in": 6,
    "d_sae": 20,
    "apply_b_dec_to_input": False,
    "normalize_activations": "none",
    "metadata": {"hook_name": "blocks.3.hook_resid_post", "model_name": "pythia-70m"},
}


@pytest.fixture
def folder(tmp_path, put):
    def write(config: dict, tensors: dict):
        return put(tmp_path / "sae", cfg__json=config, sae_weights__safetensors=tensors)

    return write


def pre(raw, x, beta=False):
    u = x.double() - raw["b_dec"].double() * beta
    return u @ raw["W_enc"].double() + raw["b_enc"]


def test_jump_relu_of_version_six(folder, raw, x, agree):
    sae = read(folder({**SIX, "architecture": "jumprelu"}, raw))
    assert (sae.site, sae.model, sae.format) == ("lm.block.3", "pythia-70m", "saelens")
    z = pre(raw, x)
    codes = torch.relu(z) * (z > raw["threshold"])
    agree(sae, x, codes, codes @ raw["W_dec"].double() + raw["b_dec"])


@pytest.mark.parametrize("rescaled", [False, True])
def test_top_k_in_units_of_its_rows_only_where_it_chose_so(folder, raw, x, agree, top_k, rescaled):
    config = {**SIX, "architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": rescaled}
    sae = read(folder(config, raw))
    lengths = raw["W_dec"].double().norm(dim=-1) if rescaled else torch.ones(20)
    codes = top_k(pre(raw, x) * lengths, 3)
    agree(sae, x, codes, codes / lengths @ raw["W_dec"].double() + raw["b_dec"])


def test_gated(folder, raw, x, agree):
    torch.manual_seed(5)
    gate, r, magnitude = torch.randn(3, 20).unbind()
    tensors = {n: raw[n] for n in ("W_enc", "W_dec", "b_dec")}
    tensors |= {"b_gate": gate, "r_mag": r, "b_mag": magnitude}
    sae = read(folder({**SIX, "architecture": "gated"}, tensors))
    e = x.double() @ raw["W_enc"].double()
    codes = (e + gate > 0) * torch.relu(e * r.double().exp() + magnitude)
    agree(sae, x, codes, codes @ raw["W_dec"].double() + raw["b_dec"])


def test_a_layer_norm_is_undone(folder, raw, x, agree):
    config = {**SIX, "architecture": "standard", "normalize_activations": "layer_norm"}
    sae = read(folder(config, raw))
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    codes = torch.relu(pre(raw, (x - mean) / (std + 1e-5)))
    agree(sae, x, codes, (codes @ raw["W_dec"].double() + raw["b_dec"]) * std + mean)


def test_before_version_six_the_decoder_bias_is_subtracted_unless_denied(
    folder, raw, x, agree, top_k
):
    old = {
        "hook_point": "blocks.0.hook_resid_pre",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 4},
        "normalize_activations": None,
        "model_name": "gpt2-small",
    }
    sae = read(folder(old, raw))
    assert (sae.site, sae.model) == ("lm.embedding", "gpt2-small")
    codes = top_k(pre(raw, x, beta=True), 4)
    agree(sae, x, codes, codes @ raw["W_dec"].double() + raw["b_dec"])
    denied = read(folder({**old, "apply_b_dec_to_input": False}, raw))
    assert not denied.subtracts_decoder_bias


def test_a_finetuned_scale_belongs_to_the_decoder(folder, raw, x, agree):
    factor = torch.rand(20) + 0.5
    config = {**SIX, "architecture": "standard", "finetuning_scaling_factor": True}
    tensors = {**raw, "scaling_factor": factor}
    codes = torch.relu(pre(raw, x))
    agree(
        read(folder(config, tensors)), x, codes,
        (codes * factor) @ raw["W_dec"].double() + raw["b_dec"],
    )  # fmt: skip
    with pytest.raises(UnsupportedDictionary, match="scaling factor"):
        read(folder({**config, "finetuning_scaling_factor": False}, tensors))
    ones = {**raw, "scaling_factor": torch.ones(20)}
    assert torch.equal(
        read(folder({**SIX, "architecture": "standard"}, ones)).decoder, raw["W_dec"]
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "temporal"}, "temporal"),
        ({"architecture": "matching_pursuit"}, "matching_pursuit"),
        ({"architecture": "skip_transcoder"}, "skip_transcoder"),
        ({"architecture": "abstopk", "k": 3}, "abstopk"),
        ({"architecture": "standard", "activation_fn_str": "tanh-relu"}, "tanh-relu"),
        ({"normalize_activations": "expected_average_only_in"}, "average norm"),
        ({"normalize_activations": True}, "average norm"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening"),
        ({"hook_head_index": 2}, "single head"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(folder, raw, changes, said):
    with pytest.raises(UnsupportedDictionary, match=said):
        read(folder({**SIX, **changes}, raw))


@pytest.mark.parametrize(
    "hook",
    ["attn.hook_z", "hook_mlp_out", "hook_attn_out", "hook_resid_mid", "ln2.hook_normalized"],
)
def test_other_places_are_refused(folder, raw, hook):
    config = {**SIX, "architecture": "standard", "metadata": {"hook_name": f"blocks.3.{hook}"}}
    with pytest.raises(UnsupportedHook, match=hook.rpartition(".")[2]):
        read(folder(config, raw))


def dictionaries(raw) -> list[Dictionary]:
    torch.manual_seed(6)
    parts = {
        "id": "toy",
        "site": "lm.block.3",
        "format": "toy",
        "encoder": raw["W_enc"],
        "decoder": raw["W_dec"],
        "decoder_bias": raw["b_dec"],
    }
    plain = {**parts, "encoder_bias": raw["b_enc"]}
    return [
        Dictionary(**plain, activation=ReLU(), subtracts_decoder_bias=True),
        Dictionary(**plain, activation=JumpReLU(raw["threshold"])),
        Dictionary(**plain, activation=TopK(3), input_norm="layer_norm"),
        Dictionary(**plain, activation=ReLU(), input_norm="constant_norm_rescale"),
        Dictionary(
            **parts, encoder_bias=torch.zeros(20), activation=Gated(*torch.randn(3, 20).unbind())
        ),
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("index", range(5))
def test_the_library_reads_what_we_write_and_we_what_it_writes(tmp_path, raw, x, index):
    sae_lens = pytest.importorskip("sae_lens")
    ours = dictionaries(raw)[index]
    theirs = sae_lens.SAE.load_from_disk(str(write_saelens(tmp_path / "ours", ours)))
    with torch.no_grad():
        codes = theirs.encode(x)
        decoded = theirs.decode(codes)
    torch.testing.assert_close(ours.encode(x), codes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.decode(codes, x), decoded, atol=1e-5, rtol=1e-4)
    theirs.save_model(str(tmp_path / "theirs"))
    assert read(tmp_path / "theirs").digest == ours.digest


@pytest.mark.filterwarnings("ignore")
def test_a_batch_top_k_of_the_library_is_a_jump_relu(tmp_path):
    batch = pytest.importorskip("sae_lens.saes.batchtopk_sae")
    config = batch.BatchTopKTrainingSAEConfig(d_in=6, d_sae=20, k=3)
    config.metadata.hook_name = "blocks.2.hook_resid_post"
    training = batch.BatchTopKTrainingSAE(config)
    training.topk_threshold.fill_(0.4)
    training.save_inference_model(str(tmp_path / "sae"))
    sae = read(tmp_path / "sae")
    assert isinstance(sae.activation, JumpReLU) and sae.site == "lm.block.2"
    torch.testing.assert_close(sae.activation.threshold, torch.full((20,), 0.4))
