"""Pictures that a request brings: checked by their headers, decoded later, where the model is.

Nothing is decoded before its bytes, its format and its size are known to be within the operator's
limits: a few bytes can say that they are a picture of gigabytes. What is decoded is 8-bit RGB as a
viewer would show it: upright, transparent parts on white, of several frames none.
"""

import base64
import binascii
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
from PIL import Image, ImageOps

from models.hosted import HostedModel
from models.language import Language
from models.sight import Sight
from models.vision_language import VisionLanguage
from service.errors import BadPicture, NotAnImage, TooMuch
from service.orders import PictureOrder
from service.settings import Limits

FORMATS = ("PNG", "JPEG", "WEBP")
EMPTY = "it is empty"
MOST_OBLONG = 100
"""How many times longer than wide a picture may be; processors refuse more than twice that."""
_DATA = re.compile(r"data:(?P<type>[^;,]*)(?:;[^;,]*)*?(?P<base64>;base64)?,", re.IGNORECASE)
_TYPES = frozenset({"image/png", "image/jpeg", "image/jpg", "image/webp"})
_SIXTEEN_BITS = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})


def is_data(url: str) -> bool:
    """Whether the picture stands in the address itself."""
    return url[:5].lower() == "data:"


def from_data_uri(url: str, param: str, limits: Limits) -> bytes:
    """The bytes of `data:image/png;base64,...`; they are not looked at yet.

    Raises:
        BadPicture: It says that it is something else, or is not base64.
        TooMuch: More bytes than allowed.
    """
    head = _DATA.match(url[:256])
    if head is None or head["base64"] is None:
        raise BadPicture(param, "the data URI is not in base64")
    if head["type"].lower() not in _TYPES:
        raise BadPicture(param, f"it says that it is {head['type'][:40] or 'plain text'!r}")
    return from_base64(url[head.end() :], param, limits.input_picture_bytes)


def from_base64(text: str, param: str, most: int) -> bytes:
    """The bytes of a base64 text; line breaks and spaces in it, as tools print them, do not count.

    Raises:
        NotAnImage: It is none.
        BadPicture: It is empty.
        TooMuch: More bytes than `most`.
    """
    text = "".join(text.split())
    if not text:
        raise BadPicture(param, EMPTY)
    size = len(text) * 3 // 4 - text[-2:].count("=")
    if size > most:
        raise TooMuch(param, size, most, " bytes")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NotAnImage(param) from None


def pixels_of(data: bytes, param: str) -> int:
    """How many pixels the picture has, from its header.

    Raises:
        NotAnImage: It is no PNG, JPEG or WebP.
        BadPicture: It moves, is a decompression bomb, or has a side much longer than the other.
    """
    opened = opened_picture(data, param)
    # A JPEG with a second one inside (MPO, as some phones write) shows its first.
    if opened.format in ("PNG", "WEBP") and getattr(opened, "is_animated", False):
        raise BadPicture(param, "it moves")
    width, height = opened.size
    if max(width, height) > MOST_OBLONG * min(width, height):
        why = f"{width} x {height} pixels are more than {MOST_OBLONG} times as long as wide"
        raise BadPicture(param, why)
    return width * height


def check_pixels(pixels: int, most: int, param: str) -> None:
    """TooMuch if there are more than `most`."""
    if pixels > most:
        raise TooMuch(param, pixels, most, " pixels")


def opened_picture(data: bytes, param: str) -> Image.Image:
    """The picture with its header read, and nothing of it decoded.

    Raises:
        NotAnImage: It is no PNG, JPEG or WebP.
        BadPicture: A decompression bomb.
    """
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPicture(param, "it has far more pixels than any model looks at") from None
    except Exception:  # noqa: BLE001 - a broken header makes the readers raise anything
        raise NotAnImage(param) from None


def decoded(data: bytes, param: str) -> Image.Image:
    """The picture in RGB; its header was checked before.

    Raises:
        NotAnImage: It is cut off or broken.
    """
    opened = opened_picture(data, param)
    try:
        opened.load()
        return in_rgb(ImageOps.exif_transpose(opened))
    except Exception:  # noqa: BLE001 - as above
        raise NotAnImage(param) from None


class Pictures(Sequence[Image.Image]):
    """Encoded pictures that are decoded each time somebody looks: hundreds wait, few are open."""

    def __init__(self, encoded: Sequence[bytes], param: str) -> None:
        self._encoded, self._param = encoded, param

    def __len__(self) -> int:
        """How many."""
        return len(self._encoded)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> "Pictures": ...
    def __getitem__(self, index: int | slice) -> "Image.Image | Pictures":
        """One in RGB, or some that still wait."""
        if isinstance(index, slice):
            return Pictures(self._encoded[index], self._param)
        return decoded(self._encoded[index], self._param)


def looked(
    hosted: HostedModel, messages: Sequence[Mapping[str, Any]], pictures: Sequence[PictureOrder]
) -> tuple[list[int], Sight | None]:
    """The ids of a conversation and its pictures, which are decoded for it.

    Raises:
        NotAnImage: A picture that is cut off or broken.
        BadPicture: The model reads none, or its processor refuses them.
        Refusal: What the family's `chat` and `look` refuse.
    """
    family = hosted.family
    assert isinstance(family, Language)  # noqa: S101 - its host says so
    if not pictures:
        return family.chat(hosted, messages), None
    if not isinstance(family, VisionLanguage):
        raise BadPicture(pictures[0].place, f"{hosted.name} reads text, no pictures")
    shown = [decoded(picture.data, picture.place) for picture in pictures]
    try:
        return family.look(hosted, messages, shown)
    except ValueError:  # what processors say of a size that they do not take
        sizes = ", ".join(f"{one.width} x {one.height}" for one in shown)
        why = f"the model's processor takes no pictures of {sizes} pixels"
        raise BadPicture(pictures[0].place, why) from None


def in_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB: what was transparent is white, of 16 bits the upper 8 are kept."""
    if picture.mode in _SIXTEEN_BITS:
        grey = np.asarray(picture).astype(np.int64) >> 8
        picture = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        over = picture.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    return picture.convert("RGB")


def picture_bytes(text: str, param: str, limits: Limits) -> bytes:
    """An image target: the picture of a base64 text or data URI, checked to be a whole one.

    Raises:
        NotAnImage: It does not decode.
        TooMuch: More bytes or pixels than allowed; pixels are read from the header only.
    """
    encoded = text.partition("base64,")[2] if text.startswith("data:") else text
    data = from_base64(encoded, param, limits.target_image_bytes)
    opened = opened_picture(data, param)
    check_pixels(opened.width * opened.height, limits.target_image_pixels, param)
    decoded(data, param)
    return data
