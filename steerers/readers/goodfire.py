"""Goodfire's SAEs of Llama 3: one torch file, ReLU, beta 0, no input norm.

The layer is in the repository's name, `Goodfire/Llama-3.1-8B-Instruct-SAE-l19`.
"""

import re

from steerers.activation import ReLU
from steerers.dictionary import Dictionary
from steerers.hook_names import settled
from steerers.layout import Asked, Reader, declared
from steerers.sources import Source, numbers

FORMAT = "goodfire"
_NAME = re.compile(r"(?P<model>Llama-3[\w.-]*?-Instruct)-SAE-l(?P<layer>\d+)")


def matches(source: Source) -> bool:
    """Whether there is one torch file, called as Goodfire calls them."""
    files = source.ending(".pt", ".pth")
    return len(files) == 1 and _NAME.search(files[0]) is not None


def read(source: Source, asked: Asked) -> Dictionary:
    """The SAE."""
    (file,) = source.ending(".pt", ".pth")
    encoder, bias, decoder, decoder_bias = numbers(
        source.tensors(file),
        "encoder_linear.weight",
        "encoder_linear.bias",
        "decoder_linear.weight",
        "decoder_linear.bias",
    )
    name = _NAME.search(file)
    return Dictionary(
        id=asked.id,
        site=settled(f"layers.{name['layer']}" if name else None, asked.site, asked.where),
        format=FORMAT,
        encoder=encoder.T,
        encoder_bias=bias,
        decoder=decoder.T,
        decoder_bias=decoder_bias,
        activation=ReLU(),
        model=asked.model or (f"meta-llama/{name['model']}" if name else None),
        declared=declared(asked),
    )


READER = Reader(format=FORMAT, matches=matches, read=read)
