"""What a reader is: it knows the files of one published layout and turns them into a `Dictionary`.

Each lives in one file of `steerers/readers/`, which ends in `READER`. It refuses by name what is
not implemented and never guesses; tensors become float32 before any arithmetic.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from steerers.dictionary import Dictionary
from steerers.errors import UnsupportedDictionary
from steerers.sources import Source


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the caller, or a `tiller.json` beside the files, says of an SAE.

    Attributes:
        where: What to call it in errors.
        id: What requests shall call it.
        site: Its site where the files declare none, or None.
        model: Its base model where the files declare none, or None.
        declared: `l0` and `explained_variance`, which go before those of the files.
    """

    where: str
    id: str
    site: str | None = None
    model: str | None = None
    declared: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One layout.

    Attributes:
        format: Its name.
        matches: Whether a source holds such files; looks at names and JSON, opens no weights.
        read: The SAE.
    """

    format: str
    matches: Callable[[Source], bool]
    read: Callable[[Source, Asked], Dictionary]


def rescaled(
    c: float,
    encoder: Float[Tensor, "d features"],
    decoder: Float[Tensor, "features d"],
    decoder_bias: Float[Tensor, " d"],
) -> tuple[Tensor, Tensor, Tensor]:
    """An SAE of c * x as one of x: codes, thresholds and the encoder's bias stay the same."""
    return encoder * c, decoder / c, decoder_bias / c


def refuse(asked: Asked, *cases: tuple[Any, str]) -> None:
    """UnsupportedDictionary with the text of the first case that is true."""
    for refused, what in cases:
        if refused:
            raise UnsupportedDictionary(asked.where, what)


def declared(asked: Asked, **found: Any) -> dict[str, float]:
    """The declared quality: what the files say, then what was asked; None is left out."""
    stated = {name: float(v) for name, v in found.items() if isinstance(v, int | float)}
    return {**stated, **asked.declared}
