"""What one request may bring: pictures are bounded before anything is decoded."""

import base64
import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from service.errors import BadPicture, NotAnImage, TooMuch
from service.pictures_in import decoded, from_data_uri, picture_bytes, pixels_of
from service.settings import Limits
from tests.service.shown import data_uri, drawn, written

LIMITS = Limits(target_image_pixels=64 * 64)


def encoded(kind, side=16, **options):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(buffer, kind, **options)
    return buffer.getvalue()


def checked(data):
    return picture_bytes(base64.b64encode(data).decode(), "target_images[0]", LIMITS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_what_the_remedy_names_is_taken_as_it_came(kind):
    data = encoded(kind)
    assert checked(data) == data
    uri = f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
    assert picture_bytes(uri, "target_images[0]", LIMITS) == data


def test_line_breaks_and_spaces_in_base64_do_not_count():
    data = encoded("PNG")
    printed = base64.encodebytes(data).decode()
    assert printed.count("\n") > 1
    assert from_data_uri(f"data:image/png;base64, {printed} ", "url", LIMITS) == data
    assert picture_bytes(printed, "target_images[0]", LIMITS) == data
    with pytest.raises(BadPicture, match="it is empty"):
        from_data_uri("data:image/png;base64,\n", "url", LIMITS)


def test_lossless_webp_is_taken_too():
    assert checked(encoded("WEBP", lossless=True))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM"])
def test_other_kinds_are_refused(kind):
    with pytest.raises(NotAnImage) as refused:
        checked(encoded(kind))
    assert "WebP" in refused.value.remedy


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_too_many_pixels_are_refused_before_they_are_decoded(kind, monkeypatch):
    def decode(*_):
        raise AssertionError("it was decoded")

    data = encoded(kind, 65)
    monkeypatch.setattr(type(Image.open(io.BytesIO(data))), "load", decode)
    with pytest.raises(TooMuch):
        checked(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_half_a_picture_is_refused(kind):
    data = encoded(kind, 64)
    with pytest.raises(NotAnImage):
        checked(data[: len(data) // 2])


def swollen():
    """A WebP of a few bytes that says that it has 268 million pixels."""
    data = bytearray(encoded("WEBP", 16, lossless=True))
    at = data.index(b"VP8L") + 9
    data[at : at + 4] = struct.pack("<I", (16383 - 1) | (16383 - 1) << 14)
    return bytes(data)


def test_a_webp_whose_header_lies_about_its_size_is_refused():
    data = swollen()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((TooMuch, NotAnImage, BadPicture)):
            checked(data)


def test_what_is_not_base64_is_refused():
    with pytest.raises(NotAnImage):
        picture_bytes("***", "target_images[0]", LIMITS)


# --- what a conversation shows --------------------------------------------------------------------


def refused(data, kind=NotAnImage):
    with pytest.raises(kind) as told:
        pixels_of(data, "here")
    assert told.value.param == "here"
    return told.value.problem


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_data_uri_is_its_bytes(kind):
    data = encoded(kind.upper())
    assert from_data_uri(data_uri(data, kind), "here", LIMITS) == data
    assert pixels_of(data, "here") == 256
    told = (
        data_uri(data, kind).replace("data:image", "DATA:Image").replace(";base64", ";a=b;BASE64")
    )
    assert from_data_uri(told, "here", LIMITS) == data


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("data:image/png,abc", BadPicture),
        ("data:,abc", BadPicture),
        ("data:image/gif;base64,R0lGODlh", BadPicture),
        ("data:text/html;base64,AAAA", BadPicture),
        ("data:image/png;base64", BadPicture),
        ("data:image/png;base64,***", NotAnImage),
        ("data:image/png;base64,AAA-A", NotAnImage),
        ("data:image/png;base64,A", NotAnImage),
        ("data:image/png;base64," + "A" * 4000, TooMuch),
    ],
)
def test_other_data_uris_are_refused(address, kind):
    few = Limits(input_picture_bytes=2000)
    with pytest.raises(kind) as told:
        from_data_uri(address, "here", few)
    assert told.value.param == "here"


def animated(kind):
    return written(drawn(seed=1), kind, save_all=True, append_images=[drawn(seed=2)])


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_moves_is_refused(kind):
    assert "it moves" in refused(animated(kind), BadPicture)


def test_a_jpeg_with_a_second_one_inside_shows_its_first():
    data = written(drawn(seed=1), "MPO", save_all=True, append_images=[drawn(seed=2)])
    assert pixels_of(data, "here") == 48 * 48
    plain = decoded(written(drawn(seed=1), "JPEG"), "here")
    assert decoded(data, "here").tobytes() == plain.tobytes()


def test_bombs_are_refused_before_anything_is_decoded():
    assert len(swollen()) < 1000
    assert "far more pixels" in refused(swollen(), BadPicture)


@pytest.mark.parametrize("size", [(101, 1), (1, 101)])
def test_a_picture_that_is_nearly_a_line_is_refused(size):
    assert "101" in refused(written(Image.new("RGB", size)), BadPicture)


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8X", b"GIF89a" * 9]
)
def test_what_has_no_header_is_refused(data):
    refused(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_that_is_cut_off_does_not_decode(kind):
    data = encoded(kind, 64)
    with pytest.raises(NotAnImage):
        decoded(data[: len(data) * 2 // 3], "here")


def test_a_picture_with_a_spoiled_middle_does_not_decode():
    data = bytearray(written(drawn(64, 64)))
    data[len(data) // 2 : len(data) // 2 + 64] = b"x" * 64
    with pytest.raises(NotAnImage):
        decoded(bytes(data), "here")


def test_transparent_parts_are_white():
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    half = Image.new("LA", (4, 4), (0, 128))
    flat = Image.new("P", (4, 4), 1)
    flat.putpalette([0, 0, 0, 9, 8, 7])
    assert decoded(written(clear), "here").getpixel((0, 0)) == (255, 255, 255)
    assert decoded(written(half), "here").getpixel((0, 0)) == (127, 127, 127)
    assert decoded(written(flat), "here").getpixel((0, 0)) == (9, 8, 7)
    assert decoded(written(flat, transparency=1), "here").getpixel((0, 0)) == (255, 255, 255)


def test_of_sixteen_bits_the_upper_eight_are_kept():
    grey = Image.fromarray(np.array([[0, 256, 0x80FF, 0xFFFF]], dtype=np.uint16))
    shown = decoded(written(grey), "here")
    assert [shown.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 0x80, 255]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode):
    made = Image.new("RGB", (8, 8), (250, 250, 250)).convert(mode)
    shown = decoded(written(made, "PNG" if mode in ("1", "L") else "JPEG", quality=95), "here")
    assert shown.mode == "RGB"
    assert min(shown.getpixel((4, 4))) >= 245


def test_a_picture_lies_as_its_camera_says():
    lying = Image.new("RGB", (8, 4))
    lying.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it right by 90 degrees
    upright = decoded(written(lying, exif=exif), "here")
    assert upright.size == (4, 8)
    assert upright.getpixel((3, 0)) == (255, 0, 0)
