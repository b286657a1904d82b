"""The world as pictures of 64 x 64 pixels, drawn four times larger and shrunk.

A picture is drawn in layers: scene, subjects, style. Positions and sizes vary a little with the
picture's seed, looks and colours never do.
"""

import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from miniature.world import Look, Picture, Subject, World

SIZE = 64
_SCALE = 4
_BIG = SIZE * _SCALE
Colour = tuple[int, int, int]

PAINT: dict[str, Colour] = {
    "red": (222, 48, 44),
    "orange": (245, 142, 34),
    "yellow": (248, 214, 48),
    "green": (52, 164, 72),
    "blue": (48, 96, 214),
    "purple": (138, 62, 188),
    "pink": (246, 132, 180),
    "brown": (134, 84, 46),
}
_SKIN: dict[str, Colour] = {
    "porcelain": (255, 226, 206),
    "sand": (238, 190, 146),
    "amber": (198, 134, 86),
    "umber": (120, 76, 52),
}
_HAIR: dict[str, Colour] = {
    "black": (34, 30, 36),
    "brown": (104, 62, 34),
    "blond": (240, 204, 98),
    "ginger": (214, 96, 34),
    "white": (236, 236, 240),
    "teal": (24, 160, 156),
}
_INK: Colour = (44, 38, 48)
_CREAM: Colour = (247, 240, 226)


class _Pen:
    """Draws in units of a subject: x and y from -1 to 1 around its middle."""

    def __init__(self, canvas: Image.Image, x: float, y: float, unit: float) -> None:
        self.draw = ImageDraw.Draw(canvas)
        self.x, self.y, self.unit = x, y, unit

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.x + x * self.unit, self.y + y * self.unit

    def oval(
        self, x: float, y: float, rx: float, ry: float, fill: Colour, edge: bool = True
    ) -> None:
        box = (*self.at(x - rx, y - ry), *self.at(x + rx, y + ry))
        self.draw.ellipse(box, fill=fill, outline=_INK if edge else None, width=3)

    def shape(self, points: list[tuple[float, float]], fill: Colour, edge: bool = True) -> None:
        corners = [self.at(*p) for p in points]
        self.draw.polygon(corners, fill=fill)
        if edge:
            self.draw.line([*corners, corners[0]], fill=_INK, width=3, joint="curve")

    def box(
        self, x0: float, y0: float, x1: float, y1: float, fill: Colour, r: float = 0.08
    ) -> None:
        self.draw.rounded_rectangle(
            (*self.at(x0, y0), *self.at(x1, y1)), r * self.unit, fill, _INK, 3
        )

    def line(self, points: list[tuple[float, float]], fill: Colour, width: float = 0.06) -> None:
        self.draw.line(
            [self.at(*p) for p in points], fill, max(2, round(width * self.unit)), joint="curve"
        )

    def arc(  # noqa: PLR0913, PLR0917 - an arc, its angles and its colour
        self, x: float, y: float, rx: float, ry: float, a: int, b: int, fill: Colour
    ) -> None:
        box = (*self.at(x - rx, y - ry), *self.at(x + rx, y + ry))
        self.draw.arc(box, a, b, fill, max(3, round(0.07 * self.unit)))


def draw_picture(world: World, picture: Picture) -> np.ndarray:
    """The picture as uint8 (64, 64, 3)."""
    draw = random.Random(picture.seed)  # noqa: S311
    canvas = _scene(picture.scene, draw)
    close = picture.style == "close-up"
    for subject, (x, y, unit) in zip(
        picture.subjects, _places(len(picture.subjects), close, draw), strict=True
    ):
        _subject(world, canvas, subject, (x, y, unit))
    styled = _STYLED[picture.style](canvas) if picture.style in _STYLED else canvas
    return np.asarray(styled.resize((SIZE, SIZE), Image.Resampling.BOX))


def backdrop(scene: str | None, draw: random.Random) -> Image.Image:
    """A scene, or a plain ground, with nobody in it: 256 x 256 pixels, to draw on and to shrink."""
    return _scene(scene, draw)


def paint(
    world: World, canvas: Image.Image, subject: Subject, place: tuple[float, float, float]
) -> _Pen:
    """Draw a person or an object around (x, y) in the given unit; the pen may draw on."""
    _subject(world, canvas, subject, place)
    return _Pen(canvas, *place)


def complexion(look: Look) -> Colour:
    """What is behind the mouth: the skin's colour, or the beard's."""
    return _HAIR[look.hair] if look.beard else _SKIN[look.skin]


def _places(n: int, close: bool, draw: random.Random) -> list[tuple[float, float, float]]:
    unit = _BIG * ((0.4 if close else 0.33) if n == 1 else (0.265 if close else 0.235))
    low = 0.56 if n == 1 else 0.6
    middles = [0.5] if n == 1 else [0.265, 0.735]
    return [
        (
            _BIG * (m + draw.uniform(-0.02, 0.02)),
            _BIG * (low + draw.uniform(-0.02, 0.02)),
            unit * draw.uniform(0.96, 1.04),
        )
        for m in middles
    ]


def _subject(
    world: World, canvas: Image.Image, subject: Subject, place: tuple[float, float, float]
) -> None:
    pen = _Pen(canvas, *place)
    person = world.person(subject.name)
    if person is not None:
        _person(pen, person.look)
    else:
        _THINGS[subject.name](pen, PAINT[str(subject.colour)])


# --- people ---------------------------------------------------------------------------------------


def _person(pen: _Pen, look: Look) -> None:
    skin, hair = _SKIN[look.skin], _HAIR[look.hair]
    if look.hair_style == "long":
        pen.box(-0.62, -0.62, 0.62, 0.52, hair, 0.4)
    if look.hair_style == "curls":
        for angle in range(150, 400, 28):
            a = math.radians(angle)
            pen.oval(0.56 * math.cos(a), -0.3 + 0.52 * math.sin(a), 0.24, 0.24, hair)
    _shirt(pen, look)
    pen.oval(0, -0.25, 0.5, 0.55, skin)
    _hair(pen, look, hair)
    for side in (-1, 1):
        pen.oval(side * 0.19, -0.22, 0.065, 0.085, _INK, edge=False)
        pen.oval(side * 0.32, -0.03, 0.09, 0.06, _blend(skin, (255, 90, 90), 0.35), edge=False)
    if look.beard:
        pen.shape(
            [
                (-0.4, 0.0),
                (-0.2, 0.06),
                (0.2, 0.06),
                (0.4, 0.0),
                (0.27, 0.3),
                (0, 0.42),
                (-0.27, 0.3),
            ],
            hair,
        )
    pen.arc(0, 0.02, 0.17, 0.13, 20, 160, (168, 36, 44))
    if look.glasses:
        for side in (-1, 1):
            pen.arc(side * 0.2, -0.22, 0.165, 0.165, 0, 360, _INK)
        pen.line([(-0.04, -0.22), (0.04, -0.22)], _INK)
    _hat(pen, look)


def _shirt(pen: _Pen, look: Look) -> None:
    colour = PAINT[look.shirt]
    body = [(-0.78, 1.25), (-0.7, 0.62), (-0.4, 0.36), (0.4, 0.36), (0.7, 0.62), (0.78, 1.25)]
    pen.shape(body, colour)
    if look.pattern == "stripes":
        for y in (0.56, 0.8, 1.04):
            pen.line([(-0.66, y), (0.66, y)], _CREAM, 0.1)
    if look.pattern == "dots":
        for x, y in ((-0.42, 0.64), (0.0, 0.7), (0.42, 0.64), (-0.22, 0.98), (0.22, 0.98)):
            pen.oval(x, y, 0.09, 0.09, _CREAM, edge=False)


def _hair(pen: _Pen, look: Look, hair: Colour) -> None:
    if look.hair_style == "bald":
        return
    fringe = [
        (-0.5, -0.32),
        (-0.46, -0.62),
        (-0.2, -0.84),
        (0.2, -0.84),
        (0.46, -0.62),
        (0.5, -0.32),
    ]
    if look.hair_style == "spikes":
        spikes = [(-0.52, -0.3), (-0.66, -0.7), (-0.36, -0.66), (-0.34, -1.04), (-0.06, -0.78)]
        spikes += [(0.1, -1.1), (0.22, -0.76), (0.5, -0.98), (0.46, -0.62), (0.54, -0.3), (0, -0.5)]
        pen.shape(spikes, hair)
        return
    if look.hair_style == "bun":
        pen.oval(0, -0.92, 0.24, 0.22, hair)
    pen.shape([*fringe, (0.22, -0.52), (-0.22, -0.52)], hair)


def _hat(pen: _Pen, look: Look) -> None:
    match look.hat:
        case "cap":
            pen.shape([(-0.5, -0.52), (-0.42, -0.88), (0.2, -0.94), (0.5, -0.52)], PAINT["red"])
            pen.shape([(-0.1, -0.52), (0.86, -0.46), (0.84, -0.58), (0.3, -0.62)], PAINT["red"])
        case "crown":
            points = [(-0.46, -0.56), (-0.5, -1.06), (-0.22, -0.8), (0, -1.14), (0.22, -0.8)]
            pen.shape([*points, (0.5, -1.06), (0.46, -0.56)], (255, 206, 40))
        case "tophat":
            pen.box(-0.36, -1.26, 0.36, -0.58, (40, 38, 56), 0.04)
            pen.box(-0.62, -0.66, 0.62, -0.54, (40, 38, 56), 0.04)
        case "beanie":
            pen.shape(
                [(-0.52, -0.46), (-0.44, -0.84), (0, -1.02), (0.44, -0.84), (0.52, -0.46)],
                PAINT["green"],
            )
            pen.oval(0, -1.08, 0.14, 0.14, _CREAM)
        case "bow":
            pen.shape([(0.36, -0.74), (0.08, -1.0), (0.08, -0.5)], PAINT["pink"])
            pen.shape([(0.36, -0.74), (0.66, -1.0), (0.66, -0.5)], PAINT["pink"])
            pen.oval(0.36, -0.74, 0.1, 0.1, PAINT["pink"])
        case "none":
            pass


# --- objects --------------------------------------------------------------------------------------


def _mug(pen: _Pen, colour: Colour) -> None:
    pen.arc(0.55, 0.1, 0.36, 0.4, -90, 90, _INK)
    pen.arc(0.55, 0.1, 0.31, 0.35, -90, 90, colour)
    pen.box(-0.65, -0.5, 0.55, 0.8, colour, 0.14)
    pen.oval(-0.05, -0.5, 0.58, 0.16, _blend(colour, (40, 24, 12), 0.7))
    for x in (-0.3, 0.1):
        pen.line([(x, -0.78), (x + 0.1, -0.92), (x, -1.06)], _CREAM, 0.07)


def _frog(pen: _Pen, colour: Colour) -> None:
    for side in (-1, 1):
        pen.oval(side * 0.68, 0.62, 0.3, 0.26, _blend(colour, _INK, 0.15))
    pen.oval(0, 0.35, 0.78, 0.56, colour)
    pen.oval(0, 0.52, 0.44, 0.32, _blend(colour, (255, 255, 255), 0.55), edge=False)
    for side in (-1, 1):
        pen.oval(side * 0.38, -0.28, 0.27, 0.27, colour)
        pen.oval(side * 0.38, -0.3, 0.17, 0.17, (255, 255, 255))
        pen.oval(side * 0.36, -0.28, 0.09, 0.1, _INK, edge=False)
    pen.arc(0, 0.0, 0.42, 0.26, 15, 165, _INK)


def _balloon(pen: _Pen, colour: Colour) -> None:
    pen.line([(0, 0.4), (-0.1, 0.72), (0.08, 0.94), (-0.02, 1.2)], _INK, 0.05)
    pen.shape([(-0.12, 0.52), (0.12, 0.52), (0, 0.34)], colour)
    pen.oval(0, -0.3, 0.62, 0.74, colour)
    pen.oval(-0.22, -0.58, 0.14, 0.2, _blend(colour, (255, 255, 255), 0.65), edge=False)


def _car(pen: _Pen, colour: Colour) -> None:
    pen.shape([(-0.55, 0.1), (-0.32, -0.42), (0.36, -0.42), (0.66, 0.1)], colour)
    pen.shape([(-0.38, 0.06), (-0.24, -0.28), (-0.02, -0.28), (-0.02, 0.06)], (206, 236, 250))
    pen.shape([(0.1, 0.06), (0.1, -0.28), (0.3, -0.28), (0.46, 0.06)], (206, 236, 250))
    pen.box(-1.0, 0.08, 1.0, 0.58, colour, 0.16)
    pen.oval(0.9, 0.28, 0.09, 0.1, (255, 244, 170))
    for side in (-1, 1):
        pen.oval(side * 0.54, 0.6, 0.25, 0.25, _INK)
        pen.oval(side * 0.54, 0.6, 0.1, 0.1, (214, 214, 220), edge=False)


def _boat(pen: _Pen, colour: Colour) -> None:
    pen.line([(0, 0.36), (0, -1.0)], _INK, 0.08)
    pen.shape([(0.08, -0.94), (0.08, 0.22), (0.76, 0.22)], _CREAM)
    pen.shape([(-0.08, -0.7), (-0.08, 0.22), (-0.6, 0.22)], _CREAM)
    pen.shape([(-0.95, 0.34), (0.95, 0.34), (0.6, 0.86), (-0.6, 0.86)], colour)
    pen.line([(-0.86, 0.48), (0.86, 0.48)], _blend(colour, _INK, 0.4), 0.07)


def _umbrella(pen: _Pen, colour: Colour) -> None:
    pen.line([(0, -0.2), (0, 0.86)], _INK, 0.09)
    pen.arc(0.15, 0.86, 0.15, 0.16, 0, 180, _INK)
    dome = [
        (0.95 * math.cos(math.radians(a)), -0.1 + 0.86 * math.sin(math.radians(a)))
        for a in range(180, 361, 10)
    ]
    scallops = [(0.62, -0.24), (0.32, -0.06), (0, -0.24), (-0.32, -0.06), (-0.62, -0.24)]
    pen.shape([*dome, *scallops], colour)
    for x in (-0.34, 0.34):
        pen.line([(0, -0.94), (x, -0.1)], _blend(colour, _INK, 0.35), 0.05)


def _fish(pen: _Pen, colour: Colour) -> None:
    pen.shape([(0.5, 0.1), (1.02, -0.36), (1.02, 0.56)], _blend(colour, _INK, 0.15))
    pen.shape([(-0.2, -0.3), (0.1, -0.8), (0.34, -0.2)], _blend(colour, _INK, 0.15))
    pen.oval(-0.1, 0.1, 0.78, 0.5, colour)
    pen.arc(-0.42, 0.1, 0.2, 0.36, -70, 70, _blend(colour, _INK, 0.5))
    pen.oval(-0.58, -0.02, 0.13, 0.13, (255, 255, 255))
    pen.oval(-0.6, -0.02, 0.06, 0.07, _INK, edge=False)


def _bird(pen: _Pen, colour: Colour) -> None:
    for x in (-0.1, 0.2):
        pen.line([(x, 0.6), (x, 1.0)], _INK, 0.06)
    pen.shape([(0.5, 0.2), (1.1, -0.14), (1.04, 0.36)], _blend(colour, _INK, 0.25))
    pen.oval(0.08, 0.22, 0.68, 0.5, colour)
    pen.oval(-0.42, -0.36, 0.38, 0.37, colour)
    pen.shape([(-0.74, -0.44), (-1.14, -0.26), (-0.74, -0.18)], (255, 170, 30))
    pen.oval(-0.52, -0.42, 0.08, 0.09, _INK, edge=False)
    pen.oval(0.24, 0.2, 0.34, 0.26, _blend(colour, _INK, 0.25))


def _cat(pen: _Pen, colour: Colour) -> None:
    pen.line([(0.5, 0.8), (0.94, 0.6), (0.86, 0.16)], _blend(colour, _INK, 0.2), 0.18)
    pen.oval(0, 0.66, 0.58, 0.5, colour)
    for side in (-1, 1):
        pen.shape([(side * 0.56, -0.3), (side * 0.54, -0.94), (side * 0.1, -0.56)], colour)
    pen.oval(0, -0.16, 0.62, 0.52, colour)
    for side in (-1, 1):
        pen.oval(side * 0.25, -0.2, 0.11, 0.13, (250, 250, 210))
        pen.oval(side * 0.25, -0.2, 0.045, 0.11, _INK, edge=False)
        pen.line([(side * 0.24, 0.08), (side * 0.8, 0.0)], _INK, 0.04)
    pen.shape([(-0.09, 0.0), (0.09, 0.0), (0, 0.11)], (250, 140, 160), edge=False)


def _flower(pen: _Pen, colour: Colour) -> None:
    pen.line([(0, 0.1), (0, 1.1)], (46, 130, 60), 0.12)
    pen.shape([(0.02, 0.9), (0.5, 0.5), (0.42, 0.9)], (60, 160, 76))
    for angle in range(0, 360, 60):
        a = math.radians(angle)
        pen.oval(0.44 * math.cos(a), -0.3 + 0.44 * math.sin(a), 0.31, 0.31, colour)
    pen.oval(0, -0.3, 0.26, 0.26, (255, 222, 80))


_THINGS: dict[str, Callable[[_Pen, Colour], None]] = {
    "mug": _mug,
    "frog": _frog,
    "balloon": _balloon,
    "car": _car,
    "boat": _boat,
    "umbrella": _umbrella,
    "fish": _fish,
    "bird": _bird,
    "cat": _cat,
    "flower": _flower,
}

# --- scenes ---------------------------------------------------------------------------------------


def _scene(name: str | None, draw: random.Random) -> Image.Image:
    shift = draw.uniform(-0.03, 0.03)
    pen_of = _SCENES.get(name or "", _plain)
    return pen_of(shift)


def _sky(top: Colour, low: Colour) -> tuple[Image.Image, _Pen]:
    rows = np.linspace(0, 1, _BIG)[:, None, None]
    ramp = np.asarray(top) * (1 - rows) + np.asarray(low) * rows
    canvas = Image.fromarray(np.broadcast_to(ramp, (_BIG, _BIG, 3)).astype(np.uint8).copy())
    return canvas, _Pen(canvas, 0, 0, _BIG)


def _plain(shift: float) -> Image.Image:
    del shift
    return _sky((238, 236, 230), (222, 218, 212))[0]


def _beach(shift: float) -> Image.Image:
    canvas, pen = _sky((150, 214, 250), (214, 240, 252))
    pen.oval(0.85 + shift, 0.15, 0.1, 0.1, (255, 226, 90), edge=False)
    pen.shape([(0, 0.4), (1, 0.4), (1, 0.66), (0, 0.66)], (40, 132, 206), edge=False)
    pen.line([(0, 0.5 + shift), (0.3, 0.47), (0.6, 0.51), (1, 0.48)], (190, 230, 250), 0.016)
    pen.shape([(0, 0.64), (0.5, 0.6), (1, 0.66), (1, 1), (0, 1)], (246, 222, 158), edge=False)
    return canvas


def _forest(shift: float) -> Image.Image:
    canvas, pen = _sky((172, 222, 190), (206, 236, 196))
    for i, x in enumerate((0.08, 0.3, 0.55, 0.78, 0.97)):
        x, h = x + shift, 0.1 + 0.05 * (i % 2)
        pen.shape(
            [(x - 0.02, 0.5), (x + 0.02, 0.5), (x + 0.02, 0.8), (x - 0.02, 0.8)],
            (98, 66, 40),
            False,
        )
        for step in range(3):
            y = h + 0.16 * step
            pen.shape(
                [(x, y), (x - 0.13, y + 0.22), (x + 0.13, y + 0.22)],
                (22, 98 + 14 * step, 58),
                False,
            )
    pen.shape([(0, 0.74), (1, 0.74), (1, 1), (0, 1)], (58, 126, 60), edge=False)
    return canvas


def _city(shift: float) -> Image.Image:
    canvas, pen = _sky((196, 204, 222), (228, 226, 230))
    heights = (0.3, 0.12, 0.38, 0.2, 0.05, 0.28)
    tones = ((120, 126, 148), (96, 102, 126), (142, 142, 160))
    for i, top in enumerate(heights):
        x = i * 0.17 - 0.02 + shift
        pen.shape(
            [(x, top), (x + 0.15, top), (x + 0.15, 0.82), (x, 0.82)], tones[i % 3], edge=False
        )
        for row in range(5):
            for column in (0.03, 0.09):
                y = top + 0.05 + row * 0.1
                pen.shape(
                    [
                        (x + column, y),
                        (x + column + 0.035, y),
                        (x + column + 0.035, y + 0.05),
                        (x + column, y + 0.05),
                    ],
                    (255, 234, 150),
                    False,
                )
    pen.shape([(0, 0.8), (1, 0.8), (1, 1), (0, 1)], (92, 92, 100), edge=False)
    pen.line([(0.05, 0.91), (0.95, 0.91)], (240, 236, 220), 0.016)
    return canvas


def _mountains(shift: float) -> Image.Image:
    canvas, pen = _sky((132, 178, 232), (218, 232, 248))
    for x, top, w in ((0.22, 0.16, 0.36), (0.78, 0.08, 0.42), (0.5, 0.34, 0.34)):
        x = x + shift
        pen.shape([(x, top), (x - w, 0.8), (x + w, 0.8)], (112, 116, 142), edge=False)
        pen.shape(
            [(x, top), (x - w * 0.28, top + 0.19), (x, top + 0.14), (x + w * 0.28, top + 0.19)],
            (250, 250, 255),
            False,
        )
    pen.shape([(0, 0.76), (1, 0.72), (1, 1), (0, 1)], (124, 168, 100), edge=False)
    return canvas


def _desert(shift: float) -> Image.Image:
    canvas, pen = _sky((252, 204, 130), (254, 232, 180))
    pen.oval(0.18 + shift, 0.2, 0.12, 0.12, (255, 128, 60), edge=False)
    pen.shape(
        [(0, 0.62), (0.35, 0.5), (0.7, 0.64), (1, 0.54), (1, 1), (0, 1)], (232, 168, 82), edge=False
    )
    pen.shape([(0, 0.78), (0.5, 0.68), (1, 0.82), (1, 1), (0, 1)], (212, 142, 62), edge=False)
    x = 0.88 + shift
    pen.line([(x, 0.66), (x, 0.3)], (52, 140, 74), 0.055)
    pen.line([(x, 0.5), (x - 0.09, 0.5), (x - 0.09, 0.38)], (52, 140, 74), 0.04)
    return canvas


def _snow(shift: float) -> Image.Image:
    canvas, pen = _sky((152, 172, 206), (202, 216, 236))
    pen.shape([(0, 0.62), (0.4, 0.54), (1, 0.66), (1, 1), (0, 1)], (250, 252, 255), edge=False)
    for i in range(26):
        x, y = (0.37 * i + 0.05 + shift) % 1, (0.23 * i * i + 0.1 * i) % 1
        pen.oval(x, y, 0.017, 0.017, (255, 255, 255), edge=False)
    return canvas


def _garden(shift: float) -> Image.Image:
    canvas, pen = _sky((176, 226, 250), (232, 246, 240))
    pen.shape([(0, 0.46), (1, 0.46), (1, 1), (0, 1)], (122, 200, 92), edge=False)
    for i in range(9):
        x = 0.055 + i * 0.112
        pen.shape(
            [(x - 0.03, 0.34), (x, 0.29), (x + 0.03, 0.34), (x + 0.03, 0.56), (x - 0.03, 0.56)],
            (250, 246, 236),
            False,
        )
    tones = ((246, 90, 110), (255, 216, 70), (190, 110, 230))
    for i in range(18):
        x, y = (0.29 * i + 0.04 + shift) % 1, 0.6 + (0.17 * i * 1.7) % 0.38
        pen.oval(x, y, 0.026, 0.026, tones[i % 3], edge=False)
    return canvas


def _night(shift: float) -> Image.Image:
    canvas, pen = _sky((14, 16, 54), (50, 46, 108))
    for i in range(22):
        x, y = (0.41 * i + 0.07 + shift) % 1, (0.31 * i * i * 0.37 + 0.05) % 0.66
        pen.oval(x, y, 0.011, 0.011, (255, 250, 210), edge=False)
    pen.oval(0.14 + shift, 0.16, 0.1, 0.1, (250, 240, 190), edge=False)
    pen.oval(0.18 + shift, 0.13, 0.09, 0.09, (18, 20, 60), edge=False)
    pen.shape([(0, 0.8), (0.5, 0.74), (1, 0.82), (1, 1), (0, 1)], (26, 34, 62), edge=False)
    return canvas


_SCENES: dict[str, Callable[[float], Image.Image]] = {
    "beach": _beach,
    "forest": _forest,
    "city": _city,
    "mountains": _mountains,
    "desert": _desert,
    "snow": _snow,
    "garden": _garden,
    "night": _night,
}

# --- styles ---------------------------------------------------------------------------------------


def _photo(canvas: Image.Image) -> Image.Image:
    """Dark corners, as an old lens makes them."""
    grid = np.linspace(-1, 1, _BIG)
    far = np.clip(np.hypot(grid[:, None], grid[None, :]) - 0.72, 0, 1)[..., None]
    return Image.fromarray((np.asarray(canvas) * (1 - 0.95 * far)).clip(0, 255).astype(np.uint8))


def _painting(canvas: Image.Image) -> Image.Image:
    """A golden frame around broad strokes."""
    strokes = canvas.filter(ImageFilter.ModeFilter(9))
    return ImageOps.expand(strokes.resize((_BIG - 40, _BIG - 40)), 20, (196, 148, 44))


def _drawing(canvas: Image.Image) -> Image.Image:
    """Crayon on paper: pale colours on cream."""
    pale = Image.blend(canvas, Image.new("RGB", canvas.size, _CREAM), 0.48)
    grid = ImageDraw.Draw(pale)
    for y in range(0, _BIG, 32):
        grid.line([(0, y), (_BIG, y)], (206, 214, 232), 4)
    return pale


def _poster(canvas: Image.Image) -> Image.Image:
    """A red border, and a bar below where the words would stand."""
    return _framed(canvas, (214, 40, 60), 14, 44)


def _postcard(canvas: Image.Image) -> Image.Image:
    """A white border and a stamp."""
    card = _framed(canvas, (252, 252, 250), 18, 18)
    pen = _Pen(card, 0, 0, _BIG)
    pen.box(0.8, 0.04, 0.96, 0.24, (60, 150, 120), 0.01)
    pen.oval(0.88, 0.14, 0.045, 0.045, (250, 240, 200), edge=False)
    return card


def _framed(canvas: Image.Image, colour: Colour, side: int, low: int) -> Image.Image:
    sheet = Image.new("RGB", (_BIG, _BIG), colour)
    inner = canvas.resize((_BIG - 2 * side, _BIG - side - low))
    sheet.paste(inner, (side, side))
    return sheet


_STYLED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "photo": _photo,
    "painting": _painting,
    "drawing": _drawing,
    "poster": _poster,
    "postcard": _postcard,
}


def _blend(a: Colour, b: Colour, share: float) -> Colour:
    mixed = [round(x * (1 - share) + y * share) for x, y in zip(a, b, strict=True)]
    return mixed[0], mixed[1], mixed[2]
