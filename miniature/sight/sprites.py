"""Things, people and scenes as small pictures, drawn once and then only pasted.

The world's own drawings, four times larger and shrunk, kept by size: a picture of seven objects
costs seven pastes. Light and grain vary per picture, so that no two are alike.
"""

import random
from functools import cache

import numpy as np
from PIL import Image

from miniature.drawing import backdrop, complexion, paint
from miniature.sight.moods import draw_mood
from miniature.world import Subject, World, make_world

LIGHT, GRAIN = 0.12, 9.0
"""How much the light varies from picture to picture, and the grain's deviation in 8-bit values."""
TINTS = ((240, 236, 228), (226, 234, 240), (236, 226, 234), (228, 238, 226), (214, 214, 220))
SHIFTS = 6
"""Variants of each scene."""
_SCALE = 4


@cache
def world() -> World:
    """The one world that pictures show."""
    return make_world()


@cache
def thing(name: str, colour: str, side: int) -> Image.Image:
    """An object in a colour on nothing (RGBA), `side` pixels wide and high."""
    return _drawn(Subject(name=name, colour=colour), side, unit=0.42, middle=0.5)


@cache
def person(name: str, side: int) -> Image.Image:
    """A person as everywhere in the world, on nothing (RGBA)."""
    return _drawn(Subject(name=name), side, unit=0.4, middle=0.52)


@cache
def face(name: str, mood: str, side: int) -> Image.Image:
    """A person from near, in a mood, on nothing (RGBA)."""
    canvas = Image.new("RGBA", (_SCALE * side, _SCALE * side))
    place = (0.5 * canvas.width, 0.6 * canvas.height, 0.6 * canvas.width)
    pen = paint(world(), canvas, Subject(name=name), place)
    one = world().person(name)
    if one is None:
        raise KeyError(name)
    draw_mood(pen, mood, complexion(one.look))
    return canvas.resize((side, side), Image.Resampling.BOX)


def _drawn(subject: Subject, side: int, *, unit: float, middle: float) -> Image.Image:
    big = _SCALE * side
    canvas = Image.new("RGBA", (big, big))
    paint(world(), canvas, subject, (0.5 * big, middle * big, unit * big))
    return canvas.resize((side, side), Image.Resampling.BOX)


@cache
def _scene(name: str | None, variant: int, size: tuple[int, int]) -> Image.Image:
    draw = random.Random(variant)  # noqa: S311 - pictures, not secrets
    return backdrop(name, draw).resize(size, Image.Resampling.BOX)


def ground(name: str | None, size: tuple[int, int], draw: random.Random) -> Image.Image:
    """A fresh canvas (width, height): a scene, or a plain tint."""
    if name is None:
        return Image.new("RGB", size, draw.choice(TINTS))
    return _scene(name, draw.randrange(SHIFTS), size).copy()


def put(canvas: Image.Image, sprite: Image.Image, x: float, y: float) -> None:
    """Paste a sprite with its middle at (x, y)."""
    corner = round(x - sprite.width / 2), round(y - sprite.height / 2)
    canvas.paste(sprite, corner, sprite)


@cache
def _grain() -> np.ndarray:
    return np.random.default_rng(0).normal(0, GRAIN, 1 << 17).astype(np.int16)


def lit(canvas: Image.Image, draw: random.Random) -> Image.Image:
    """The picture in its own light and grain."""
    pixels = np.asarray(canvas)
    start = draw.randrange(len(_grain()) - pixels.size)
    grain = _grain()[start : start + pixels.size].reshape(pixels.shape)
    light = round(256 * draw.uniform(1 - LIGHT, 1 + LIGHT))
    bright = ((pixels.astype(np.int32) * light) >> 8) + grain
    return Image.fromarray(bright.clip(0, 255).astype(np.uint8))
