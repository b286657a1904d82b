"""Models that see and cannot be hosted, each with the reason.

Found by what `config.json` says, before anything is loaded. Models that nobody has written a family
for are not listed: they are refused without a reason of their own.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BESIDE = (
    "its layers look at a picture beside the sequence (cross-attention), so no token is a part of "
    "the picture and there is nothing that could be written back"
)
_SHARED = (
    "its last {} layers reuse the keys and values of earlier ones, so what is changed there never "
    "reaches the tokens behind it"
)
BESIDE = frozenset(
    {
        "BlipForConditionalGeneration",
        "EvollaForProteinText2Text",
        "Florence2ForConditionalGeneration",
        "IdeficsForVisionText2Text",
        "MllamaForConditionalGeneration",
        "Pix2StructForConditionalGeneration",
        "UdopForConditionalGeneration",
        "VisionEncoderDecoderModel",
    }
)
"""Classes whose text layers read a picture by cross-attention."""


def why_not(folder: Path) -> str | None:
    """Why the model of a folder cannot be hosted; None if nothing is known against it."""
    config = folder / "config.json"
    if not config.exists():
        return None
    stated: Mapping[str, Any] = json.loads(config.read_text())
    if BESIDE.intersection(stated.get("architectures") or ()):
        return _BESIDE
    shared = (stated.get("text_config") or {}).get("num_kv_shared_layers") or 0
    if shared > 0 and stated.get("vision_config") is not None:
        return _SHARED.format(shared)
    return None
