"""Llama Scope (He et al. 2024) and OpenMOSS' later SAEs: trained on tokens of average norm sqrt(d).

Version 1 has `hyperparams.json` and `checkpoints/final.safetensors`, later ones `config.json` and
`sae_weights.safetensors`. The input's scale c = sqrt(d) / average norm is folded into the tensors.
With `sparsity_include_decoder_norm` the choice of active features looks at z * |d_f| while the code
is z. Refused by name: transcoders, GLU encoders, other norms.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steerers.activation import Activation, JumpReLU, ReLU, TopK
from steerers.dictionary import Dictionary, InputNorm
from steerers.errors import UnsupportedDictionary
from steerers.hook_names import settled
from steerers.layout import Asked, Reader, declared, refuse, rescaled
from steerers.sources import Source, numbers

FORMAT = "llama-scope"
_WEIGHTS = ("checkpoints/final.safetensors", "sae_weights.safetensors")
_NAMES = (
    ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"),
    ("W_E", "b_E", "W_D", "b_D"),
)


def matches(source: Source) -> bool:
    """Whether there is one of the two pairs of files."""
    later = source.has("config.json", _WEIGHTS[1]) and not source.has("cfg.json")
    return later or source.has("hyperparams.json", _WEIGHTS[0])


def read(source: Source, asked: Asked) -> Dictionary:
    """The SAE."""
    first = source.has("hyperparams.json", _WEIGHTS[0])
    config = source.json("hyperparams.json" if first else "config.json")
    tensors = source.tensors(_WEIGHTS[0 if first else 1])
    hook, out = config.get("hook_point_in"), config.get("hook_point_out")
    norm = config.get("norm_activation", "dataset-wise")
    refuse(
        asked,
        (out not in (None, hook), "a transcoder"),
        ("W_E_glu" in tensors or config.get("use_glu_encoder"), "a GLU encoder"),
        (norm not in _NORMS, f"norm_activation {norm!r}"),
    )
    names = _NAMES[0] if _NAMES[0][0] in tensors else _NAMES[1]
    encoder, bias, decoder, decoder_bias = numbers(tensors, *names)
    if names is _NAMES[0]:
        encoder, decoder = encoder.T, decoder.T
    c = _scale(config, tensors, asked) if norm == "dataset-wise" else 1.0
    activation = _activation(config, tensors, asked, decoder.norm(dim=-1), c)
    encoder, decoder, decoder_bias = rescaled(c, encoder, decoder, decoder_bias)
    return Dictionary(
        id=asked.id,
        site=settled(hook, asked.site, asked.where),
        format=FORMAT,
        encoder=encoder,
        encoder_bias=bias,
        decoder=decoder,
        decoder_bias=decoder_bias,
        activation=activation,
        subtracts_decoder_bias=bool(config.get("apply_decoder_bias_to_pre_encoder", False)),
        input_norm=_NORMS[norm],
        model=config.get("model_name") or asked.model or _model(source),
        declared=declared(asked),
    )


_NORMS: Mapping[str, InputNorm] = {
    "dataset-wise": "none",
    "inference": "none",
    "token-wise": "constant_norm_rescale",
}


def _scale(config: Mapping[str, Any], tensors: Mapping[str, Any], asked: Asked) -> float:
    """c: sqrt(d) / the average norm of the site, from the config or the weights' file."""
    hook = config.get("hook_point_in")
    norms = config.get("dataset_average_activation_norm") or {}
    found = norms.get("in", norms.get(hook))
    if found is None and f"dataset_average_activation_norm.{hook}" in tensors:
        found = float(tensors[f"dataset_average_activation_norm.{hook}"])
    if not found:
        raise UnsupportedDictionary(asked.where, "it does not state its average activation norm")
    return float(config["d_model"]) ** 0.5 / float(found)


def _activation(
    config: Mapping[str, Any],
    tensors: Mapping[str, Any],
    asked: Asked,
    lengths: Tensor,
    c: float,
) -> Activation:
    """The activation function; lengths are those of the decoder's rows as stored."""
    kind = config.get("act_fn", "jumprelu").replace("-", "").lower()
    if not config.get("sparsity_include_decoder_norm", False):
        lengths = torch.ones_like(lengths)
    if kind == "relu":
        return ReLU()
    if kind == "topk":
        return TopK(int(config.get("top_k", 0)), None if bool((lengths == 1).all()) else lengths)
    refuse(asked, (kind != "jumprelu", f"act_fn {kind!r}"))
    logarithm = [n for n in tensors if n.endswith("log_jumprelu_threshold")]
    if logarithm:
        return JumpReLU(numbers(tensors, logarithm[0])[0].exp() / lengths)
    if "jump_relu_threshold" not in config:
        raise UnsupportedDictionary(asked.where, "it does not state its threshold")
    # Version 1 states it in units of the unscaled input.
    return JumpReLU(torch.full_like(lengths, config["jump_relu_threshold"] * c) / lengths)


def _model(source: Source) -> str | None:
    named = any("Llama3_1-8B-Base" in part for part in source.parts)
    return "meta-llama/Llama-3.1-8B" if named else None


READER = Reader(format=FORMAT, matches=matches, read=read)
