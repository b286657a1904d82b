"""The grammar of places, and the one way to count blocks.

`text.embedding` is what enters block 0, `text.block.7` what leaves block 7; towers are `text`,
`text_2`, `lm`, ... A linear layer is named by its historic path, whatever the installed library
calls it: `text_encoder.text_model.encoder.layers.7.mlp.fc2`.
"""

import re
from dataclasses import dataclass
from typing import Literal

from models.errors import BadSite

_STREAM = re.compile(r"(?P<tower>[a-z]+(?:_\d)?)\.(?:embedding|block\.(?P<block>0|[1-9]\d*))")
_ALMOST_STREAM = re.compile(r"\w+\.(?:embedding|block\.\w+)")
_LINEAR = re.compile(r"[a-z_]\w*(?:\.\w+)+")


@dataclass(frozen=True, order=True)
class Site:
    """A parsed place; `str(site)` is its canonical spelling.

    Attributes:
        path: The canonical spelling.
        kind: `stream` for the residual stream, `linear` for a module's weight.
        tower: The tower of a stream site, the first part of a linear's path.
        block: The block that the stream leaves; None for the embedding and for linear sites.
    """

    path: str
    kind: Literal["stream", "linear"]
    tower: str
    block: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read a place; BadSite for anything else, negative blocks included."""
        found = _STREAM.fullmatch(text)
        if found:
            block = found["block"]
            return cls(text, "stream", found["tower"], None if block is None else int(block))
        if _LINEAR.fullmatch(text) and not _ALMOST_STREAM.fullmatch(text):
            return cls(text, "linear", text.partition(".")[0])
        raise BadSite(text)

    def __str__(self) -> str:
        return self.path


def embedding(tower: str) -> str:
    """What enters block 0."""
    return f"{tower}.embedding"


def block(tower: str, index: int) -> str:
    """What leaves the block of that index, counted from 0."""
    if index < 0:
        raise BadSite(f"{tower}.block.{index}")
    return f"{tower}.block.{index}"
