"""Contact sheets: pictures in a grid, with a label over each column, row and picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, FAINT, PAPER = (32, 32, 36), (130, 130, 136), (252, 251, 248)
GOOD, BAD = (38, 132, 78), (196, 52, 48)
GAP, MARGIN = 8, 16
_LONGEST = 500
"""No line of a sheet has room for more characters; each is measured."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A picture with a line of text below it; the frame says whether it is as hoped."""

    picture: np.ndarray | None
    """(height, width, 3) uint8; None leaves the place empty."""
    caption: str = ""
    good: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One row of the sheet."""

    label: str
    cells: tuple[Cell, ...]


def contact_sheet(
    title: str,
    columns: Sequence[str],
    strips: Sequence[Strip],
    *,
    note: str = "",
    side: int = 128,
    left: int = 190,
) -> Image.Image:
    """Draw a sheet; pictures are scaled until their longer side has `side` pixels.

    What is too long for its place ends in dots.

    Args:
        title: Stands over everything.
        columns: A heading per column.
        strips: The rows; shorter ones leave places empty.
        note: A line below the title.
        side: Of a picture, in pixels.
        left: Width of the row labels, in pixels.
    """
    wide = max([len(columns), *(len(s.cells) for s in strips)])
    line = 15
    head = MARGIN + 30 + line * 2
    step = side + GAP
    tall = side + line + GAP
    sheet = Image.new(
        "RGB", (left + wide * step + MARGIN * 2, head + len(strips) * tall + MARGIN), PAPER
    )
    pen = ImageDraw.Draw(sheet)
    _text(pen, (MARGIN, MARGIN), title, sheet.width - 2 * MARGIN, INK, size=18)
    _text(pen, (MARGIN, MARGIN + 24), note, sheet.width - 2 * MARGIN, FAINT)
    for i, name in enumerate(columns):
        _text(pen, (MARGIN + left + i * step, head - line - 4), name, side, FAINT)
    for j, strip in enumerate(strips):
        top = head + j * tall
        _lines(pen, (MARGIN, top + side // 2 - line), strip.label, left - GAP)
        for i, cell in enumerate(strip.cells):
            _cell(sheet, pen, (MARGIN + left + i * step, top), cell, side)
    return sheet


def _cell(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, at: tuple[int, int], cell: Cell, side: int
) -> None:
    if cell.picture is None:
        return
    x, y = at
    height, width = (round(n * side / max(cell.picture.shape[:2])) for n in cell.picture.shape[:2])
    fitted = max(1, width), max(1, height)
    small = Image.fromarray(cell.picture).resize(fitted, Image.Resampling.LANCZOS)
    sheet.paste(small, at)
    colour = FAINT if cell.good is None else GOOD if cell.good else BAD
    if cell.good is not None:
        pen.rectangle((x - 2, y - 2, x + side + 1, y + side + 1), outline=colour, width=2)
    _text(pen, (x, y + side + 3), cell.caption, side, colour)


def _text(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    width: int,
    colour: tuple[int, ...],
    *,
    size: int = 11,
) -> None:
    """One line, cut with dots where it would run into its neighbour."""
    font = ImageFont.load_default(size)
    text = " ".join(text[:_LONGEST].split())
    while text and pen.textlength(text, font) > width:
        text = text.rstrip("…")[:-1].rstrip() + "…" if len(text) > 2 else ""
    pen.text(at, text, colour, font)


def _lines(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int) -> None:
    """Words on as many lines as they need."""
    font = ImageFont.load_default(13)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and pen.textlength(longer, font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    for i, line in enumerate(lines):
        pen.text((at[0], at[1] + 16 * (i - len(lines) // 2)), line, INK, font)
