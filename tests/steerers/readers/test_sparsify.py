import pytest
import torch

from steerers.errors import BadDictionary, UnsupportedDictionary, UnsupportedHook
from steerers.readers import read

CONFIG = {"d_in": 6, "num_latents": 20, "expansion_factor": 32, "k": 3, "activation": "topk"}


@pytest.fixture
def tensors(raw):
    return {
        "encoder.weight": raw["W_enc"].T,
        "encoder.bias": raw["b_enc"],
        "W_dec": raw["W_dec"],
        "b_dec": raw["b_dec"],
    }


@pytest.fixture
def folder(tmp_path, tensors, put):
    return put(tmp_path / "layers.10", cfg__json=CONFIG, sae__safetensors=tensors)


def test_the_folder_names_the_module(folder, raw, x, agree, top_k):
    sae = read(folder)
    assert (sae.format, sae.site) == ("sparsify", "lm.block.10")
    codes = top_k((x.double() - raw["b_dec"]) @ raw["W_enc"].double() + raw["b_enc"], 3)
    agree(sae, x, codes, codes @ raw["W_dec"].double() + raw["b_dec"])


def test_no_latents_mean_the_expansion_factor(tmp_path, tensors, put):
    old = {**CONFIG, "num_latents": 0, "expansion_factor": 2}
    wide = {
        "encoder.weight": torch.randn(12, 6),
        "encoder.bias": torch.zeros(12),
        "W_dec": torch.randn(12, 6),
        "b_dec": torch.zeros(6),
    }
    assert read(put(tmp_path / "h.2", cfg__json=old, sae__safetensors=wide)).features == 12
    with pytest.raises(BadDictionary, match="as in cfg"):
        read(put(tmp_path / "h.3", cfg__json=old, sae__safetensors=tensors))


def test_the_embedding_and_other_modules(tmp_path, tensors, put):
    files = {"cfg__json": CONFIG, "sae__safetensors": tensors}
    assert read(put(tmp_path / "embed_tokens", **files)).site == "lm.embedding"
    with pytest.raises(UnsupportedHook, match="MLP"):
        read(put(tmp_path / "layers.10.mlp", **files))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"transcode": True}, "transcoder"),
        ({"skip_connection": True}, "skip"),
        ({"activation": "groupmax"}, "groupmax"),
        ({"signed": True}, "signed"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, tensors, put, changes, said):
    config = {**CONFIG, **changes}
    with pytest.raises(UnsupportedDictionary, match=said):
        read(put(tmp_path / "layers.1", cfg__json=config, sae__safetensors=tensors))


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_the_library(tmp_path, x):
    sparsify = pytest.importorskip("sparsify")
    torch.manual_seed(0)
    theirs = sparsify.SparseCoder(6, sparsify.SparseCoderConfig(k=3, expansion_factor=2))
    torch.nn.init.normal_(theirs.b_dec)
    theirs.save_to_disk(tmp_path / "layers.4")
    with torch.no_grad():
        values, indices, _ = theirs.encode(x)
        codes = torch.zeros(len(x), 12).scatter(-1, indices, values)
        decoded = codes @ theirs.W_dec + theirs.b_dec
    ours = read(tmp_path / "layers.4")
    torch.testing.assert_close(ours.encode(x), codes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.decode(codes), decoded, atol=1e-5, rtol=1e-4)
