"""Gemma Scope 2: `params.safetensors` with a `config.json`, JumpReLU, beta 0, no input norm.

Some folders lack the config; their names then say the site, as `resid_post_all/layer_12_width_16k`.
Refused: transcoders (an affine connection, another output site), cross-layer ones, and the
attention and MLP sets, whose sites are not the residual stream.
"""

import re

from steerers.activation import JumpReLU
from steerers.dictionary import Dictionary
from steerers.hook_names import settled
from steerers.layout import Asked, Reader, declared, refuse
from steerers.sources import Source, numbers

FORMAT = "gemma-scope-2"
_HOOKS = {
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.attn.hook_z",
    "mlp_out": "blocks.{}.hook_mlp_out",
}


def matches(source: Source) -> bool:
    """Whether there is a `params.safetensors`."""
    return source.has("params.safetensors")


def read(source: Source, asked: Asked) -> Dictionary:
    """The SAE."""
    config = source.json("config.json")
    tensors = source.tensors("params.safetensors")
    encoder, bias, decoder, decoder_bias, threshold = numbers(
        tensors, "w_enc|W_enc", "b_enc", "w_dec|W_dec", "b_dec", "threshold"
    )
    path = "/".join(source.parts)
    hook, out = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    architecture = config.get("architecture", "jump_relu")
    refuse(
        asked,
        (architecture != "jump_relu", f"architecture {architecture!r}"),
        (decoder.ndim != 2 or "/clt/" in path, "a cross-layer transcoder"),
        ("affine_skip_connection" in tensors, "a transcoder with an affine connection"),
        (out not in (None, hook) or "transcoder" in path, "a transcoder"),
    )
    return Dictionary(
        id=asked.id,
        site=settled(hook or _hook(path), asked.site, asked.where),
        format=FORMAT,
        encoder=encoder,
        encoder_bias=bias,
        decoder=decoder,
        decoder_bias=decoder_bias,
        activation=JumpReLU(threshold),
        model=config.get("model_name") or asked.model or _model(path),
        declared=declared(asked, l0=config.get("l0")),
    )


def _hook(path: str) -> str | None:
    layer = re.search(r"layer_(\d+)", path)
    named = [hook for name, hook in _HOOKS.items() if name in path]
    return named[0].format(layer[1]) if layer and named else None


def _model(path: str) -> str | None:
    found = re.search(r"gemma-scope-2-([\w-]+)", path)
    return None if found is None else f"google/gemma-3-{found[1]}"


READER = Reader(format=FORMAT, matches=matches, read=read)
