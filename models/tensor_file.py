"""Tensors and one header as safetensors bytes that are always the same: their hash is a version.

One metadata key holding sorted JSON: with several keys safetensors writes other bytes at each save.
"""

import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor


def pack(tensors: Mapping[str, Tensor], header: Mapping[str, Any], version: int) -> bytes:
    """The file; tensors in float32, the header as JSON with the format's `version` in it."""
    text = json.dumps({**header, "format": version}, sort_keys=True, ensure_ascii=True)
    dense = {name: t.float().contiguous().clone() for name, t in tensors.items()}
    return save(dense, metadata={"header": text})


def header_of(data: bytes) -> dict[str, Any]:
    """The header alone, `format` included; ValueError, KeyError or TypeError if there is none."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["header"])


def unpack(
    data: bytes, version: int, file_bytes: int, header_bytes: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header, without `format`, and tensors of a file that `pack` wrote.

    Raises:
        ValueError: Too large, broken, or of another format; its text says which, for the caller's
            own refusal.
    """
    if len(data) > file_bytes:
        raise ValueError(f"The file has {len(data)} bytes; {file_bytes} are allowed.")
    if len(data) < 16 or int.from_bytes(data[:8], "little") > header_bytes:
        raise ValueError("This is not a safetensors file, or its header is too large.")
    try:
        tensors, header = load(data), header_of(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as broken:
        raise ValueError(f"This is not such a file: {type(broken).__name__}.") from broken
    if not isinstance(header, dict) or header.pop("format", None) != version:
        raise ValueError(f"Its format is not known; this is {version}.")
    return header, tensors
