import pickle

import pytest
import torch

from steerers.errors import PickleRefused, SiteNotDeclared, UnsupportedDictionary, UnsupportedHook
from steerers.readers import read


@pytest.fixture
def contents(raw):
    return {
        "pre_bias": raw["b_dec"],
        "latent_bias": raw["b_enc"],
        "encoder.weight": raw["W_enc"].T.contiguous(),
        "decoder.weight": raw["W_dec"].T.contiguous(),
        "stats_last_nonzero": torch.zeros(20, dtype=torch.long),
        "activation": "TopK",
        "activation_state_dict": {"k": 3, "postact_fn": "ReLU"},
    }


@pytest.fixture
def layer(tmp_path):
    def write(contents, place="resid_post_mlp_v5_32k"):
        folder = tmp_path / place / "autoencoders"
        folder.mkdir(parents=True)
        torch.save(contents, folder / "8.pt")
        return folder / "8.pt"

    return write


def test_top_k_behind_a_layer_norm(layer, contents, raw, x, agree, top_k):
    sae = read(layer(contents))
    assert (sae.format, sae.site, sae.id) == ("openai", "lm.block.8", "8")
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    u = ((x - mean) / (std + 1e-5)).double() - raw["b_dec"]
    codes = top_k(u @ raw["W_enc"].double() + raw["b_enc"], 3)
    agree(sae, x, codes, (codes @ raw["W_dec"].double() + raw["b_dec"]) * std + mean)


def test_relu_without_a_norm(layer, contents, raw, x, agree):
    sae = read(layer({**contents, "activation": "ReLU", "activation_state_dict": {}}))
    codes = torch.relu((x.double() - raw["b_dec"]) @ raw["W_enc"].double() + raw["b_enc"])
    agree(sae, x, codes, codes @ raw["W_dec"].double() + raw["b_dec"])


@pytest.mark.parametrize("place", ["resid_delta_mlp_v5", "resid_post_attn_v5", "resid_delta_attn"])
def test_other_places_are_refused(layer, contents, place):
    with pytest.raises(UnsupportedHook):
        read(layer(contents, place))


def test_a_place_is_never_guessed(layer, contents):
    with pytest.raises(SiteNotDeclared):
        read(layer(contents, "somewhere"))


def test_another_function_behind_top_k_is_refused(layer, contents):
    state = {"k": 3, "postact_fn": "Identity"}
    with pytest.raises(UnsupportedDictionary, match="Identity"):
        read(layer({**contents, "activation_state_dict": state}))


class Payload:
    def __reduce__(self):
        return print, ("this must never be printed",)


def test_a_pickle_that_runs_code_is_refused(layer, contents, capsys):
    with pytest.raises(PickleRefused, match="plain"):
        read(layer({**contents, "more": Payload()}))
    assert "never" not in capsys.readouterr().out


def test_a_bare_pickle_is_refused_too(tmp_path, capsys):
    (tmp_path / "8.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(PickleRefused):
        read(tmp_path / "8.pt", site="lm.block.8")
    assert "never" not in capsys.readouterr().out
