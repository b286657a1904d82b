"""Before and after: one prompt and the same seeds without an edit and with it, on one sheet."""

import io
from collections.abc import Mapping, Sequence

LARGEST, SMALLEST = 384, 128
"""Pixels of a picture's side on the sheet."""


def compared_sheet(
    prompt: str, seeds: Sequence[int], strips: Mapping[str, Sequence[bytes]], *, note: str = ""
) -> bytes:
    """A PNG with one strip a label and one column a seed.

    Args:
        prompt: The title.
        seeds: One a column.
        strips: PNGs by label (`without`, `with potus@3`), in the order of the seeds.
        note: A line below the title.
    """
    import numpy as np
    from PIL import Image

    from evaluation.sheet import Cell, Strip, contact_sheet

    shown = {
        label: [np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in pngs]
        for label, pngs in strips.items()
    }
    widest = max(max(picture.shape) for pictures in shown.values() for picture in pictures)
    sheet = contact_sheet(
        prompt,
        [f"seed {seed}" for seed in seeds],
        [
            Strip(label=label, cells=tuple(Cell(picture=picture) for picture in pictures))
            for label, pictures in shown.items()
        ],
        note=note,
        side=min(LARGEST, max(SMALLEST, widest)),
    )
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def largest_difference(one: bytes, other: bytes) -> int | None:
    """Of two PNGs in levels of 255; 0 is equal to the bit, None another size."""
    import numpy as np
    from PIL import Image

    a, b = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int) for png in (one, other))
    return int(np.abs(a - b).max()) if a.shape == b.shape else None
