"""What weights are these: a content hash over canonical names, cached beside size and time."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn



def fingerprint(parts: Mapping[str, nn.Module], configs: Mapping[str, object]) -> str:
    """SHA-256 of all parameters and buffers under canonical names, and of the configurations."""
    found = hashlib.sha256(json.dumps(configs, sort_keys=True, default=str).encode())
    for part in sorted(parts):
        for name, tensor in sorted(canonical(parts[part].state_dict()).items()):
            found.update(f"{part}.{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            found.update(_bytes(tensor))
    return found.hexdigest()


def canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the historic names, with `text_model.` in front of a text tower's."""
    top = ("embeddings.", "encoder.", "final_layer_norm.")
    return {f"text_model.{n}" if n.startswith(top) else n: t for n, t in state.items()}


def _bytes(tensor: Tensor) -> bytes:


    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def cached_fingerprint(
    folder: Path, dtype: str, compute: Callable[[], str], cache: Path | None
) -> str:
    """The fingerprint of a folder's weights, computed only if a file's size or time changed."""
    key = _stamp(folder, dtype)
    if cache is None:
        return compute()
    side = cache / f"{key}.fingerprint"
    if side.exists():
        return side.read_text().strip()
    value = compute()
    cache.mkdir(parents=True, exist_ok=True)
    part = side.with_suffix(f".{os.getpid()}.part")
    part.write_text(value)
    part.replace(side)
    return value


def _stamp(folder: Path, dtype: str) -> str:
    files = sorted(p for p in folder.rglob("*") if p.suffix in {".safetensors", ".json"})
    lines = [f"{p.relative_to(folder)}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files]
    return hashlib.sha256("\n".join([str(folder.resolve()), dtype, *lines]).encode()).hexdigest()
