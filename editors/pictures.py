"""Pictures as targets: read, prepared as the hosted CLIP was trained to see them, and embedded."""

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from editors.errors import BadImage, BadPreprocessor
from editors.suffix import full
from models.hosted import HostedModel
from models.text_tower import TextTower

MOST_PIXELS = 4096 * 4096
PREPROCESSOR = "preprocessor_config.json"


def vision_of(hosted: HostedModel, tower: TextTower) -> Any:
    """The full CLIP whose text tower this is.

    Raises:
        BadImage: There is none: nothing can look at a picture.
    """
    # Only a tower whose full CLIP is at hand knows its logit scale; SDXL's second has none.
    if hosted.clip is None or tower.logit_scale is None:
        raise BadImage(f"{hosted.name} has no vision tower beside its {tower.attribute}.")
    return hosted.clip


def processor_of(clip: Any) -> CLIPImageProcessorPil:
    """How the CLIP's pictures are resized, cropped, scaled and normalised.

    That is what `preprocessor_config.json` in its folder says; without one the library's defaults,
    at the size that the vision tower reads.

    Raises:
        BadPreprocessor: The file cannot be read.
    """
    side = int(clip.config.vision_config.image_size)
    file = Path(clip.name_or_path) / PREPROCESSOR
    if not clip.name_or_path or not file.is_file():
        return CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        found: Any = CLIPImageProcessorPil.from_dict(told)
    except (OSError, ValueError, TypeError, AttributeError) as broken:
        raise BadPreprocessor(
            f"{PREPROCESSOR} beside the CLIP cannot be read: {broken}"
        ) from broken
    return found


def pixels_of(
    pictures: Sequence[bytes], processor: CLIPImageProcessorPil, side: int
) -> Float[Tensor, "n 3 side side"]:
    """What the vision tower sees.

    Raises:
        BadImage: A picture that does not decode, or is too large.
        BadPreprocessor: The processor's pictures do not fit the vision tower.
    """
    opened = [_opened(data) for data in pictures]
    try:
        seen: Tensor = processor(images=opened, return_tensors="pt")["pixel_values"]
    except (ValueError, TypeError, KeyError) as broken:
        raise BadPreprocessor(f"{PREPROCESSOR} cannot be followed: {broken}") from broken
    if tuple(seen.shape[1:]) != (3, side, side):
        shape = "x".join(map(str, seen.shape[1:]))
        raise BadPreprocessor(
            f"{PREPROCESSOR} gives {shape}; the vision tower reads 3x{side}x{side}."
        )
    return seen.float()


def embed_pictures(
    hosted: HostedModel, tower: TextTower, pictures: Sequence[bytes]
) -> Float[Tensor, "n out"]:
    """e(tau): projected image embeddings, not normalised."""
    clip = vision_of(hosted, tower)
    side = int(clip.config.vision_config.image_size)
    seen = pixels_of(pictures, processor_of(clip), side)
    with torch.no_grad():
        pooled = clip.vision_model(seen.to(hosted.device, clip.dtype)).pooler_output
        return full(clip.visual_projection(pooled))


def _opened(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        if image.width * image.height > MOST_PIXELS:
            raise BadImage("An image target has more than 16 megapixels.")
        return image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as broken:
        raise BadImage(f"An image target cannot be decoded: {type(broken).__name__}.") from broken
    except Image.DecompressionBombError as bomb:
        raise BadImage("An image target has more than 16 megapixels.") from bomb
