"""Pictures that are harder to read than any that training showed; their words stay as they are.

A model that reads the world's pictures as well as words has no gap that could be closed. Spoiled
pictures make one, as a bad camera does.
"""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from miniature.sight.item import Item


def blurred(picture: Image.Image, amount: float, draw: random.Random) -> Image.Image:  # noqa: ARG001
    """Out of focus, by a Gaussian of that many pixels."""
    return picture.filter(ImageFilter.GaussianBlur(amount))


def grainy(picture: Image.Image, amount: float, draw: random.Random) -> Image.Image:
    """With more grain, of that deviation in 8-bit values."""
    grain = np.random.default_rng(draw.getrandbits(32)).normal(0, amount, (*picture.size[::-1], 3))
    return Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))


def pale(picture: Image.Image, amount: float, draw: random.Random) -> Image.Image:  # noqa: ARG001
    """With that share of the contrast gone."""
    pixels = np.asarray(picture).astype(np.float32)
    middle = pixels.mean()
    return Image.fromarray((middle + (1 - amount) * (pixels - middle)).astype(np.uint8))


SPOILS: dict[str, Callable[[Image.Image, float, random.Random], Image.Image]] = {
    "blur": blurred,
    "grain": grainy,
    "pale": pale,
}


def spoiled(item: Item, kind: str, amount: float, seed: int = 0) -> Item:
    """The item with its picture spoiled; the same for the same seed.

    Raises:
        KeyError: There is no such kind.
    """
    draw = random.Random(f"{kind} {item.description} {seed}")  # noqa: S311 - pictures, not secrets
    return replace(item, picture=SPOILS[kind](item.picture, amount, draw))
