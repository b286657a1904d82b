"""Write an SAE in the two layouts that other tools read: Gemma Scope's and SAELens'.

What a layout has no words for is refused. Thresholds are written in float32, whatever the rest is.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from steerers.activation import Activation, Gated, JumpReLU, ReLU, TopK
from steerers.dictionary import Dictionary
from steerers.errors import CannotWrite
from steerers.hook_names import hook_of


def write_gemma_scope(
    folder: Path, dictionary: Dictionary, *, dtype: torch.dtype = torch.float32
) -> Path:
    """Write `params.npz`, and `tiller.json` with what that layout cannot say.

    Args:
        folder: Made if it is missing.
        dictionary: A JumpReLU or ReLU one.
        dtype: float32 or float16, of everything but the threshold.

    Raises:
        CannotWrite: Another activation, an input norm, a subtracted decoder bias, bfloat16.
    """
    act = dictionary.activation
    if not isinstance(act, JumpReLU | ReLU):
        raise CannotWrite(dictionary.id, "gemma-scope", f"it knows no {act.kind}")
    if dictionary.input_norm != "none" or dictionary.subtracts_decoder_bias:
        raise CannotWrite(dictionary.id, "gemma-scope", "its input goes in as it is")
    if dtype not in (torch.float32, torch.float16):
        raise CannotWrite(dictionary.id, "gemma-scope", f"npz has no {dtype}")
    theta = act.threshold if isinstance(act, JumpReLU) else torch.zeros(dictionary.features)
    arrays = {name: t.to(dtype) for name, t in _weights(dictionary).items()}
    folder.mkdir(parents=True, exist_ok=True)
    stored: dict[str, Any] = {
        name: t.cpu().numpy() for name, t in {**arrays, "threshold": theta}.items()
    }
    np.savez(folder / "params.npz", **stored)
    card = {"id": dictionary.id, "site": dictionary.site, "model": dictionary.model}
    _write_json(folder / "tiller.json", {**card, "declared": dict(dictionary.declared)})
    return folder


def write_saelens(
    folder: Path, dictionary: Dictionary, *, dtype: torch.dtype = torch.float32
) -> Path:
    """Write `cfg.json` and `sae_weights.safetensors` as SAELens 6 does.

    Args:
        folder: Made if it is missing.
        dictionary: Any but a TopK that chooses by weights.
        dtype: Of everything but the threshold.

    Raises:
        CannotWrite: A TopK that chooses by weights.
        UnsupportedHook: A site of another tower than a language model's.
    """
    act = dictionary.activation
    if isinstance(act, TopK) and act.weights is not None:
        raise CannotWrite(dictionary.id, "saelens", "its TopK chooses by weights")
    config, inner = _of_activation(act)
    weights = {name: t.to(dtype) for name, t in {**_weights(dictionary), **inner}.items()}
    if isinstance(act, Gated):
        del weights["b_enc"]
    if isinstance(act, JumpReLU):
        weights["threshold"] = act.threshold
    metadata = {
        "sae_lens_version": "6.0.0",
        "hook_name": hook_of(dictionary.site),
        "model_name": dictionary.model,
        **dictionary.declared,
    }
    config = {
        **config,
        "d_in": dictionary.width,
        "d_sae": dictionary.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.subtracts_decoder_bias,
        "normalize_activations": dictionary.input_norm,
        "reshape_activations": "none",
        "metadata": metadata,
    }
    folder.mkdir(parents=True, exist_ok=True)
    dense = {name: t.cpu().contiguous().clone() for name, t in weights.items()}
    save_file(dense, folder / "sae_weights.safetensors")
    _write_json(folder / "cfg.json", config)
    return folder


def _weights(dictionary: Dictionary) -> dict[str, Tensor]:
    return {
        "W_enc": dictionary.encoder,
        "b_enc": dictionary.encoder_bias,
        "W_dec": dictionary.decoder,
        "b_dec": dictionary.decoder_bias,
    }


def _of_activation(act: Activation) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """SAELens' config keys and tensors of an activation function, the threshold left out."""
    match act:
        case TopK():
            return {
                "architecture": "topk",
                "k": act.k,
                "rescale_acts_by_decoder_norm": False,
            }, {}
        case Gated():
            tensors = {"b_gate": act.gate_bias, "r_mag": act.r_mag, "b_mag": act.magnitude_bias}
            return {"architecture": "gated"}, tensors
        case JumpReLU():
            return {"architecture": "jumprelu"}, {}
        case ReLU():
            return {"architecture": "standard"}, {}


def _write_json(path: Path, contents: dict[str, Any]) -> None:
    path.write_text(json.dumps(contents, indent=2, sort_keys=True) + "\n", encoding="utf-8")
