import io

import numpy as np
from PIL import Image

from service.comparing import LARGEST, compared_sheet, largest_difference
from service.hosting import png_of


def flat(colour, size=(16, 16)):
    return png_of(np.full((*size, 3), colour, dtype=np.uint8))


RED, BLUE = (250, 10, 20), (20, 10, 250)


def pixels_of(sheet, colour):
    return (np.asarray(Image.open(io.BytesIO(sheet))) == colour).all(-1).sum()


def test_every_strip_and_every_seed_is_on_the_sheet():
    sheet = compared_sheet(
        "a king", [1, 2], {"without": [flat(RED)] * 2, "with king@1": [flat(BLUE)] * 2}
    )
    assert pixels_of(sheet, RED) == pixels_of(sheet, BLUE) == 2 * 128 * 128


def test_large_pictures_are_made_smaller_in_their_proportions():
    sheet = compared_sheet("a king", [1], {"without": [flat(RED, (400, 800))]})
    assert pixels_of(sheet, RED) == LARGEST * LARGEST // 2


def test_the_difference_is_of_the_pixels_whatever_the_text():
    assert (
        largest_difference(flat(RED), png_of(np.full((16, 16, 3), RED, np.uint8), {"a": "b"})) == 0
    )
    assert largest_difference(flat(RED), flat((250, 12, 15))) == 5
    assert largest_difference(flat(RED), flat(RED, (16, 32))) is None
