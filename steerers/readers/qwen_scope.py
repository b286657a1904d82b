"""Qwen Scope: `layerN.sae.pt` in `Qwen/SAE-Res-<model>-W32K-L0_50`; TopK, beta 0, no input norm.

k is the number behind `L0_` in the repository's name; without it there is no telling k.
"""

import re

from steerers.activation import TopK
from steerers.dictionary import Dictionary
from steerers.errors import UnsupportedDictionary
from steerers.hook_names import settled
from steerers.layout import Asked, Reader, declared
from steerers.sources import Source, numbers

FORMAT = "qwen-scope"
_FILE = re.compile(r"layer(\d+)\.sae\.pt")
_REPOSITORY = re.compile(r"SAE-Res-(?P<model>.+?)-W\d+K-L0_(?P<k>\d+)")


def matches(source: Source) -> bool:
    """Whether there is one `layerN.sae.pt`, or it was asked for."""
    return len(_files(source)) == 1


def read(source: Source, asked: Asked) -> Dictionary:
    """The SAE."""
    ((file, layer),) = _files(source)
    repository = _REPOSITORY.search("/".join(source.parts))
    if repository is None:
        raise UnsupportedDictionary(asked.where, "k is not in its path (SAE-Res-...-L0_<k>)")
    encoder, bias, decoder, decoder_bias = numbers(
        source.tensors(file), "W_enc", "b_enc", "W_dec", "b_dec"
    )
    return Dictionary(
        id=asked.id,
        site=settled(f"layers.{layer}", asked.site, asked.where),
        format=FORMAT,
        encoder=encoder.T,
        encoder_bias=bias,
        decoder=decoder.T,
        decoder_bias=decoder_bias,
        activation=TopK(int(repository["k"])),
        model=asked.model or f"Qwen/{repository['model']}",
        declared=declared(asked),
    )


def _files(source: Source) -> list[tuple[str, str]]:
    found = [(name, _FILE.fullmatch(name)) for name in source.names]
    return [(name, match[1]) for name, match in found if match]


READER = Reader(format=FORMAT, matches=matches, read=read)
