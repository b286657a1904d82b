"""Digits and signs as strokes of a pen, a little different each time."""

import math
import random
from functools import cache

from PIL import Image, ImageDraw

Point = tuple[float, float]
_SCALE = 4
VARIANTS = 40
"""Of each sign: leaning, widths of the pen and wobbles."""


def _turn(x: float, y: float, r: float, s: float, angles: tuple[int, int]) -> list[Point]:
    """Part of an oval of half-widths r and s, in degrees clockwise from the right."""
    first, last = angles
    steps = max(2, abs(last - first) // 20)
    turned = [math.radians(first + (last - first) * i / steps) for i in range(steps + 1)]
    return [(x + r * math.cos(a), y + s * math.sin(a)) for a in turned]


STROKES: dict[str, tuple[list[Point], ...]] = {
    "0": (_turn(0, 0, 0.55, 0.95, (0, 360)),),
    "1": ([(-0.35, -0.55), (0.1, -0.95), (0.1, 0.95)],),
    "2": ([*_turn(0, -0.4, 0.52, 0.55, (190, 390)), (-0.55, 0.93), (0.6, 0.93)],),
    "3": (_turn(-0.05, -0.45, 0.5, 0.48, (200, 450)), _turn(-0.05, 0.46, 0.58, 0.5, (270, 520))),
    "4": ([(0.3, 0.95), (0.3, -0.95), (-0.6, 0.35), (0.6, 0.35)],),
    "5": (
        [(0.5, -0.93), (-0.42, -0.93), (-0.48, -0.1), *_turn(-0.05, 0.38, 0.55, 0.56, (230, 500))],
    ),
    "6": ([(0.4, -0.9), (-0.3, -0.4), *_turn(0, 0.42, 0.52, 0.52, (180, 540))],),
    "7": ([(-0.55, -0.93), (0.55, -0.93), (-0.1, 0.95)],),
    "8": (_turn(0, -0.48, 0.45, 0.45, (0, 360)), _turn(0, 0.46, 0.55, 0.5, (0, 360))),
    "9": ([*_turn(0, -0.42, 0.52, 0.52, (0, 360)), (0.48, -0.1), (0.2, 0.95)],),
    "+": ([(-0.5, 0.05), (0.5, 0.05)], [(0, -0.45), (0, 0.55)]),
    "=": ([(-0.5, -0.2), (0.5, -0.2)], [(-0.5, 0.3), (0.5, 0.3)]),
}


@cache
def glyph(sign: str, height: int, variant: int) -> Image.Image:
    """How dark the paper is under a sign (L), `height` pixels high and three quarters wide."""
    draw = random.Random(f"{sign} {variant}")  # noqa: S311 - pictures, not secrets
    big = _SCALE * height
    canvas = Image.new("L", (3 * big // 4, big))
    lean, unit = draw.uniform(-0.12, 0.12), 0.42 * big
    width = round(draw.uniform(0.07, 0.13) * big)
    pen = ImageDraw.Draw(canvas)
    for stroke in STROKES[sign]:
        points = [
            (
                canvas.width / 2 + unit * (0.8 * x - lean * y + draw.uniform(-0.03, 0.03)),
                big / 2 + unit * (y + draw.uniform(-0.03, 0.03)),
            )
            for x, y in stroke
        ]
        pen.line(points, 255, width, joint="curve")
    return canvas.resize((canvas.width // _SCALE, height), Image.Resampling.BOX)


def written(
    canvas: Image.Image, text: str, place: tuple[float, float], height: int, draw: random.Random
) -> None:
    """Write dark signs from the left edge and middle height at `place`."""
    x, y = place
    ink = (draw.randint(0, 70), draw.randint(0, 60), draw.randint(0, 110))
    for sign in text:
        mask = glyph(sign, height, draw.randrange(VARIANTS))
        top = round(y - height / 2 + draw.uniform(-1.2, 1.2))
        canvas.paste(ink, (round(x), top), mask)
        x += 0.72 * height + draw.uniform(-0.5, 1.0)
