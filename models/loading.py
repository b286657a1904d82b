"""From a folder or a hub id to a hosted model: device, dtype, fingerprint; safetensors only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from models.errors import NotSafetensors, UnsupportedFamily
from models.family import known_families
from models.hosted import HostedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name: str,
    where: str | Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
) -> HostedModel:
    """Host the model of a folder or hub id.

    Args:
        name: What requests call it.
        where: A folder written by `save_pretrained`, or a hub id.
        dtype: Of weights and activations; stated, never taken from the checkpoint.
        device: `cpu`, `cuda`, `cuda:1` or `auto`.
        options: What the family takes: `edit_block`, `projection` (a CLIP's folder), `cache`.

    Raises:
        UnsupportedFamily: No family knows the model.
        NotSafetensors: The folder has pickled weights only.
    """
    folder = _folder(where)
    if not any(folder.rglob("*.safetensors")):
        raise NotSafetensors(str(where))
    families = known_families()
    for family in families.values():
        if family.matches(folder):
            return family.load(
                name, folder, dtype=DTYPES[dtype], device=_device(device), options=options or {}
            )
    raise UnsupportedFamily(str(where), ", ".join(families))


def _folder(where: str | Path) -> Path:
    if Path(where).is_dir():
        return Path(where)
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only for hub ids

    patterns = ["*.safetensors", "*.json", "*.txt", "*.model"]
    return Path(snapshot_download(str(where), allow_patterns=patterns))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
