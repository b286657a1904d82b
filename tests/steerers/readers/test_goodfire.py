import torch

from steerers.readers import read


def test_the_file_names_model_and_layer(tmp_path, raw, x, agree):
    linear = {
        "encoder_linear.weight": raw["W_enc"].T.contiguous(),
        "encoder_linear.bias": raw["b_enc"],
        "decoder_linear.weight": raw["W_dec"].T.contiguous(),
        "decoder_linear.bias": raw["b_dec"],
    }
    torch.save(linear, tmp_path / "Llama-3.1-8B-Instruct-SAE-l19.pth")
    sae = read(tmp_path)
    assert (sae.format, sae.site) == ("goodfire", "lm.block.19")
    assert sae.model == "meta-llama/Llama-3.1-8B-Instruct"
    codes = torch.relu(x.double() @ raw["W_enc"].double() + raw["b_enc"])
    agree(sae, x, codes, codes @ raw["W_dec"].double() + raw["b_dec"])
