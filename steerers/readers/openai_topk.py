"""OpenAI's GPT-2 SAEs (Gao et al. 2024): one torch file per layer, `.../{place}/.../{layer}.pt`.

beta 1. TopK ones (v5) see a token after layer norm, ReLU ones (v1, v4) as it is, as the released
code decides it. The site is in the path: `resid_post_mlp` is the layer's output; the other places
are refused by name.
"""

import re
from typing import Any

from steerers.activation import Activation, ReLU, TopK
from steerers.dictionary import Dictionary
from steerers.hook_names import settled
from steerers.layout import Asked, Reader, declared, refuse
from steerers.sources import Source, numbers

FORMAT = "openai"
_PLACE = re.compile(r"(?P<place>resid_(?:delta|post)_(?:attn|mlp))")
_HOOKS = {
    "resid_post_mlp": "blocks.{}.hook_resid_post",
    "resid_delta_mlp": "blocks.{}.hook_mlp_out",
    "resid_post_attn": "blocks.{}.hook_resid_mid",
    "resid_delta_attn": "blocks.{}.hook_attn_out",
}


def matches(source: Source) -> bool:
    """Whether the file asked for, or the only torch file, is called by a number."""
    files = source.ending(".pt")
    return len(files) == 1 and files[0].removesuffix(".pt").isdigit()


def read(source: Source, asked: Asked) -> Dictionary:
    """The SAE."""
    (name,) = source.ending(".pt")
    contents = source.tensors(name)
    encoder, bias, decoder, decoder_bias = numbers(
        contents, "encoder.weight", "latent_bias", "decoder.weight", "pre_bias"
    )
    place = _PLACE.search("/".join(source.parts))
    hook = _HOOKS[place["place"]].format(name.removesuffix(".pt")) if place else None
    activation = _activation(contents, asked)
    return Dictionary(
        id=asked.id,
        site=settled(hook, asked.site, asked.where),
        format=FORMAT,
        encoder=encoder.T,
        encoder_bias=bias,
        decoder=decoder.T,
        decoder_bias=decoder_bias,
        activation=activation,
        subtracts_decoder_bias=True,
        input_norm="layer_norm" if isinstance(activation, TopK) else "none",
        model=asked.model or "openai-community/gpt2",
        declared=declared(asked),
    )


def _activation(contents: dict[str, Any], asked: Asked) -> Activation:
    kind, state = contents.get("activation", "ReLU"), contents.get("activation_state_dict") or {}
    after = state.get("postact_fn", "ReLU")
    refuse(
        asked,
        (kind not in ("ReLU", "TopK"), f"activation {kind!r}"),
        (after != "ReLU", f"TopK followed by {after!r}"),
    )
    return ReLU() if kind == "ReLU" else TopK(int(state.get("k", 0)))


READER = Reader(format=FORMAT, matches=matches, read=read)
