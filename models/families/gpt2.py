"""GPT-2 and DistilGPT-2: positions are learned, and matrices are stored the other way round.

The library's `Conv1D` keeps (in, out) where a linear layer has (out, in). Each is hosted as a
linear layer over the same storage, so a `LowRank` means here what it means everywhere.
"""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from models.language import Language
from models.toys_decoders import save_decoder, settings, toy_gpt2_tokenizer


class Gpt2(Language):
    """Linear sites are `attn.c_attn` (three in one), `attn.c_proj`, `mlp.c_fc`, `mlp.c_proj`."""

    kind = "gpt2"
    title = "GPT-2"
    model = GPT2LMHeadModel

    def prepare(self, model: Any) -> None:
        """Every `Conv1D` becomes the linear layer that it is."""
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, Conv1D):
                    setattr(module, name, _as_linear(child))

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Four layers and 256 learned positions."""
        tokenizer = toy_gpt2_tokenizer()
        stated = settings(tokenizer)
        stated["n_inner"] = stated.pop("intermediate_size")
        del stated["num_key_value_heads"]
        config = GPT2Config(**stated)
        return save_decoder(folder, self.model, config, tokenizer, seed, chats=False)


def _as_linear(conv: Conv1D) -> nn.Linear:
    """The same map over the same storage."""
    linear = nn.Linear(conv.nx, conv.nf, device="meta")
    linear.weight = nn.Parameter(conv.weight.detach().T, requires_grad=False)
    linear.bias = conv.bias
    return linear


FAMILY = Gpt2()
