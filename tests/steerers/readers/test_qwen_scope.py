import pytest
import torch

from steerers.errors import UnsupportedDictionary
from steerers.readers import read


def test_k_is_in_the_name(tmp_path, raw, x, agree, top_k):
    state = {
        "W_enc": raw["W_enc"].T.contiguous(),
        "W_dec": raw["W_dec"].T.contiguous(),
        "b_enc": raw["b_enc"],
        "b_dec": raw["b_dec"],
    }
    for name in ("SAE-Res-Qwen3-1.7B-Base-W32K-L0_3", "copied"):
        (tmp_path / name).mkdir()
        for layer in (7, 8):
            torch.save(state, tmp_path / name / f"layer{layer}.sae.pt")
    sae = read(tmp_path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_3" / "layer7.sae.pt")
    assert (sae.format, sae.site) == ("qwen-scope", "lm.block.7")
    assert sae.model == "Qwen/Qwen3-1.7B-Base"
    codes = top_k(x.double() @ raw["W_enc"].double() + raw["b_enc"], 3)
    agree(sae, x, codes, codes @ raw["W_dec"].double() + raw["b_dec"])
    with pytest.raises(UnsupportedDictionary, match="k is not in its path"):
        read(tmp_path / "copied" / "layer7.sae.pt")
