"""SAELens, 6 and before: `cfg.json` with `sae_weights.safetensors`.

Covered: standard, gated, topk and jumprelu, the last also for BatchTopK and Matryoshka, which are
saved so. `apply_b_dec_to_input` counts as true where it is absent. Refused by name: every other
architecture, an unfolded average norm, covariance whitening, single heads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steerers.activation import Activation, Gated, JumpReLU, ReLU, TopK
from steerers.dictionary import Dictionary, InputNorm
from steerers.errors import UnsupportedDictionary
from steerers.hook_names import settled
from steerers.layout import Asked, Reader, declared, refuse
from steerers.sources import Source, numbers

FORMAT = "saelens"
_NORMS: Mapping[str, InputNorm] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}


def matches(source: Source) -> bool:
    """Whether there are a `cfg.json` and `sae_weights.safetensors`."""
    return source.has("cfg.json", "sae_weights.safetensors")


def read(source: Source, asked: Asked) -> Dictionary:
    """The SAE; a TopK that chooses by decoder norms is folded to unit rows, as its codes are."""
    config = source.json("cfg.json")
    said = {**config, **config.get("metadata", {})}
    architecture, norm = _architecture(config), _norm(config)
    head = said.get("hook_head_index")
    refuse(
        asked,
        (architecture not in _ACTIVATIONS, f"architecture {architecture!r}"),
        (norm == "expected_average_only_in", "its average norm is not folded into its weights"),
        (norm not in _NORMS, f"normalize_activations {norm!r}"),
        (head is not None, f"it reads the single head {head}"),
    )
    tensors = source.tensors("sae_weights.safetensors")
    encoder, decoder, decoder_bias = numbers(tensors, "W_enc", "W_dec", "b_dec")
    decoder = decoder * _finetuned(tensors, config, asked)
    gated = architecture == "gated"
    bias = torch.zeros(encoder.shape[-1]) if gated else numbers(tensors, "b_enc")[0]
    if config.get("rescale_acts_by_decoder_norm"):
        lengths = decoder.norm(dim=-1)
        encoder, bias, decoder = encoder * lengths, bias * lengths, decoder / lengths[:, None]
    return Dictionary(
        id=asked.id,
        site=settled(said.get("hook_name") or said.get("hook_point"), asked.site, asked.where),
        format=FORMAT,
        encoder=encoder,
        encoder_bias=bias,
        decoder=decoder,
        decoder_bias=decoder_bias,
        activation=_ACTIVATIONS[architecture](tensors, config),
        subtracts_decoder_bias=bool(config.get("apply_b_dec_to_input", True)),
        input_norm=_NORMS[norm],
        model=said.get("model_name") or asked.model,
        declared=declared(
            asked, l0=said.get("l0"), explained_variance=said.get("explained_variance")
        ),
    )


def _architecture(config: Mapping[str, Any]) -> str:
    """The architecture's name; before version 6 TopK was an activation function of `standard`."""
    stated = config.get("architecture", "standard")
    function = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    if function == "topk" and stated in ("standard", "topk"):
        return "topk"
    return stated if function == "relu" or stated == "topk" else f"{stated} with {function}"


def _norm(config: Mapping[str, Any]) -> str:
    """The kind of input norm; a boolean of the first versions means the average norm."""
    stated = config.get("normalize_activations")
    if isinstance(stated, bool):
        return "expected_average_only_in" if stated else "none"
    return stated or "none"


def _finetuned(tensors: Mapping[str, Any], config: Mapping[str, Any], asked: Asked) -> Tensor:
    """What decoder rows are multiplied by: `scaling_factor` if the config says that it counts."""
    if "scaling_factor" not in tensors:
        return torch.ones(1)
    (factor,) = numbers(tensors, "scaling_factor")
    if torch.allclose(factor, torch.ones_like(factor)):
        return torch.ones(1)
    if not config.get("finetuning_scaling_factor"):
        raise UnsupportedDictionary(asked.where, "a scaling factor that its config does not use")
    return factor[:, None]


def _jump_relu(tensors: Mapping[str, Any], _: Mapping[str, Any]) -> Activation:
    return JumpReLU(*numbers(tensors, "threshold"))


def _top_k(_: Mapping[str, Any], config: Mapping[str, Any]) -> Activation:
    return TopK(int(config.get("k") or config.get("activation_fn_kwargs", {}).get("k", 0)))


def _gated(tensors: Mapping[str, Any], _: Mapping[str, Any]) -> Activation:
    return Gated(*numbers(tensors, "b_gate", "r_mag", "b_mag"))


_ACTIVATIONS = {
    "standard": lambda *_: ReLU(),
    "jumprelu": _jump_relu,
    "topk": _top_k,
    "gated": _gated,
}

READER = Reader(format=FORMAT, matches=matches, read=read)
