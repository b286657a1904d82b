"""What one request may bring: pictures are bounded before anything is decoded."""

import base64
import io
import struct
import warnings

import pytest
from PIL import Image

from service.errors import BadPicture, NotAnImage, TooMuch
from service.pictures_in import picture_bytes
from service.settings import Limits

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


def test_lossless_webp_is_taken_too():
    assert checked(encoded("WEBP", lossless=True))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM"])
def test_other_kinds_are_refused(kind):
    with pytest.raises(NotAnImage) as refused:
        checked(encoded(kind))
    assert "WebP" in refused.value.remedy


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_too_many_pixels_are_refused_before_they_are_decoded(kind, monkeypatch):
    def decoded(*_):
        raise AssertionError("it was decoded")

    data = encoded(kind, 65)
    monkeypatch.setattr(type(Image.open(io.BytesIO(data))), "load", decoded)
    with pytest.raises(TooMuch):
        checked(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_half_a_picture_is_refused(kind):
    data = encoded(kind, 64)
    with pytest.raises(NotAnImage):
        checked(data[: len(data) // 2])


def test_a_webp_whose_header_lies_about_its_size_is_refused():
    data = bytearray(encoded("WEBP", 16, lossless=True))
    at = data.index(b"VP8L") + 9
    data[at : at + 4] = struct.pack("<I", (16383 - 1) | (16383 - 1) << 14)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((TooMuch, NotAnImage, BadPicture)):
            checked(bytes(data))


def test_what_is_not_base64_is_refused():
    with pytest.raises(NotAnImage):
        picture_bytes("***", "target_images[0]", LIMITS)
