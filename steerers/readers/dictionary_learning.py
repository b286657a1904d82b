"""dictionary_learning: `ae.pt` (or `ae.safetensors`) with a `config.json`.

beta 1, but for JumpRelu and AutoEncoderNew. BatchTopK and Matryoshka have one threshold; -1 means
that it was never set, and is refused. Decoder rows are kept as stored, where the library's own
loader may fold their norms. The site is the layer's output only where `submodule_name` says so.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from steerers.activation import Activation, Gated, JumpReLU, ReLU, TopK
from steerers.dictionary import Dictionary
from steerers.errors import UnsupportedDictionary
from steerers.hook_names import settled
from steerers.layout import Asked, Reader, declared, refuse
from steerers.sources import Source, numbers

FORMAT = "dictionary-learning"
_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
_PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec")
_NAMES = {
    "AutoEncoder": (*_LINEAR, "bias"),
    "AutoEncoderNew": (*_LINEAR, "decoder.bias"),
    "AutoEncoderTopK": (*_LINEAR, "b_dec"),
    "BatchTopKSAE": (*_LINEAR, "b_dec"),
    "GatedAutoEncoder": ("encoder.weight", "mag_bias", "decoder.weight", "decoder_bias"),
    "JumpReluAutoEncoder": _PLAIN,
    "MatryoshkaBatchTopKSAE": _PLAIN,
}
_ADDS_ONLY = ("AutoEncoderNew", "JumpReluAutoEncoder")


def matches(source: Source) -> bool:
    """Whether there is an `ae.pt` or `ae.safetensors` with a config that names a class."""
    return bool(_files(source)) and "dict_class" in source.json("config.json").get("trainer", {})


def read(source: Source, asked: Asked) -> Dictionary:
    """The SAE."""
    trainer = source.json("config.json")["trainer"]
    kind = trainer["dict_class"]
    refuse(asked, (kind not in _NAMES, f"dict_class {kind!r}"))
    contents = source.tensors(_files(source)[0])
    encoder, bias, decoder, decoder_bias = numbers(contents, *_NAMES[kind])
    if "encoder.weight" in contents:
        encoder, decoder = encoder.T, decoder.T
    return Dictionary(
        id=asked.id,
        site=settled(_hook(trainer), asked.site, asked.where),
        format=FORMAT,
        encoder=encoder,
        encoder_bias=torch.zeros_like(bias) if kind == "GatedAutoEncoder" else bias,
        decoder=decoder,
        decoder_bias=decoder_bias,
        activation=_activation(kind, contents, trainer, asked),
        subtracts_decoder_bias=kind not in _ADDS_ONLY,
        model=trainer.get("lm_name") or asked.model,
        declared=declared(asked),
    )


def _files(source: Source) -> tuple[str, ...]:
    return tuple(n for n in ("ae.safetensors", "ae.pt") if source.has(n))


def _activation(
    kind: str, contents: Mapping[str, Any], trainer: Mapping[str, Any], asked: Asked
) -> Activation:
    if kind == "GatedAutoEncoder":
        return Gated(*numbers(contents, "gate_bias", "r_mag", "mag_bias"))
    if kind in ("AutoEncoder", "AutoEncoderNew"):
        return ReLU()
    if kind == "AutoEncoderTopK":
        return TopK(int(contents.get("k", trainer.get("k", 0))))
    (threshold,) = numbers(contents, "threshold")
    if threshold.ndim == 0:
        if float(threshold) < 0:
            raise UnsupportedDictionary(asked.where, f"its threshold is {float(threshold)}: unset")
        features = trainer.get("dict_size") or numbers(contents, _NAMES[kind][1])[0].shape[0]
        threshold = threshold.expand(int(features))
    return JumpReLU(threshold)


def _hook(trainer: Mapping[str, Any]) -> str | None:
    """The hook, if the submodule's name says which place it is."""
    name, layer = str(trainer.get("submodule_name") or ""), trainer.get("layer")
    if re.search(r"resid[_.]?post", name) and layer is not None:
        return f"blocks.{layer}.hook_resid_post"
    return name if re.search(r"attn|attention|mlp|layers\.\d+$", name) else None


READER = Reader(format=FORMAT, matches=matches, read=read)
