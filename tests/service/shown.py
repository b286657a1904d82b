"""Pictures for tests, and how a request carries them."""

import base64
import io

import numpy as np
from PIL import Image

SEER = "tiny-vl"


def drawn(width=48, height=48, seed=1):
    """A picture of noise, which is another one for every seed."""
    pixels = np.random.RandomState(seed).randint(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def written(picture, kind="PNG", **options):
    """The file's bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def data_uri(data, kind="png"):
    """The bytes as a request carries them."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def asking(*parts, role="user"):
    """A message whose parts are texts, and addresses or bytes of pictures."""
    return {"role": role, "content": [_part(part) for part in parts]}


def _part(part):
    if isinstance(part, bytes):
        part = data_uri(part)
    if part.startswith(("data:", "http")):
        return {"type": "image_url", "image_url": {"url": part}}
    return {"type": "text", "text": part}
