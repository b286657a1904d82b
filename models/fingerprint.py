"""What weights are these: a content hash over canonical names, read from the files.

It does not depend on the dtype or device that a model is loaded with, on the library's names for
its modules, or on how the file is split. Reading costs about a second per gigabyte, so it is cached
beside the files' size and time; `HostedModel.verify` reads again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from models.errors import NotSafetensors

_ALGORITHM = 3
"""Part of every stamp: raise it whenever a value below is computed in another way."""

# What in a configuration says which function the weights compute; the rest is bookkeeping.
_ARCHITECTURE = (
    "activation_function",
    "attn_logit_softcapping",
    "d_ff",
    "d_kv",
    "d_model",
    "eos_token_id",
    "feed_forward_proj",
    "final_logit_softcapping",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "layer_types",
    "max_position_embeddings",
    "n_head",
    "n_layer",
    "num_attention_heads",
    "num_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_layers",
    "partial_rotary_factor",
    "query_pre_attn_scalar",
    "relative_attention_max_distance",
    "relative_attention_num_buckets",
    "rms_norm_eps",
    "rope_local_base_freq",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights",
    "sliding_window",
    "use_bidirectional_attention",
    "vocab_size",
)


_DECIDING = (".safetensors", ".json", ".txt", ".model")


def fingerprint(folder: Path, cache: Path | None = None) -> str:
    """SHA-256 of the tensors of one `save_pretrained` folder and of its architecture.

    Args:
        folder: With `config.json` and `model.safetensors`, or the latter in several files.
        cache: Where earlier results lie; never in the model's own folder.

    Raises:
        NotSafetensors: The folder has no safetensors.
    """
    files = _files(folder)
    stamp = _stamp(folder, [*files, folder / "config.json"])
    return _remembered(cache, stamp, lambda: _compute(folder, files))


def folder_digest(folder: Path, cache: Path | None = None) -> str:
    """SHA-256 of everything in a pipeline's folder that decides how its pictures look.

    The fingerprint covers the text encoders, which is what edits are made for; this one covers the
    denoiser, the decoder, the tokenizers and the configurations as well, file by file.

    Args:
        folder: As `save_pretrained` of a pipeline leaves it.
        cache: Where earlier results lie.
    """
    index = folder / "model_index.json"
    parts = [folder / name for name, said in json.loads(index.read_text()).items() if said]
    files = [index, *sorted(f for part in parts if part.is_dir() for f in _deciding(part))]
    return _remembered(cache, _stamp(folder, files), lambda: _content(folder, files))


def content_digest(folder: Path) -> str:
    """SHA-256 of the weights, tokenizers and configurations in a folder of any kind."""
    return _content(folder, sorted([*_deciding(folder), *folder.rglob("*.bin")]))


def joined(parts: Mapping[str, str]) -> str:
    """One fingerprint for several parts of a pipeline."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()


def canonical(name: str) -> str | None:
    """A text tower's tensor under its historic name; None for buffers that hold no knowledge."""
    if name.endswith("position_ids"):
        return None
    if name == "encoder.embed_tokens.weight":  # T5's, tied; files hold it under either name or both
        return "shared.weight"
    top = ("embeddings.", "encoder.layers.", "final_layer_norm.")
    return f"text_model.{name}" if name.startswith(top) else name


def bytes_of(tensor: Tensor) -> bytes:
    """The tensor's content, whatever its dtype and device."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return [folder / name for name in names]
    if not (folder / "model.safetensors").exists():
        raise NotSafetensors(str(folder))
    return [folder / "model.safetensors"]


def _remembered(cache: Path | None, stamp: str, compute: Callable[[], str]) -> str:
    if cache is None:
        return compute()
    side = cache / f"{stamp}.fingerprint"
    if not side.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = side.with_suffix(f".{os.getpid()}.part")
        part.write_text(compute())
        part.replace(side)
    return side.read_text()


def _deciding(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.suffix in _DECIDING)


def _content(folder: Path, files: Sequence[Path]) -> str:
    found = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        found.update(f"{digest} {file.relative_to(folder).as_posix()}\n".encode())
    return found.hexdigest()


def _compute(folder: Path, files: list[Path]) -> str:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    # Of models for several kinds of input, the part that reads texts.
    both = config | (config.get("text_config") or {})
    stated = {key: both[key] for key in _ARCHITECTURE if key in both}
    per_tensor: dict[str, str] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                known = canonical(name)
                if known is not None:
                    per_tensor[known] = _digest(opened.get_tensor(name))
    content = json.dumps({"architecture": stated, "tensors": per_tensor}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    return hashlib.sha256(head + bytes_of(tensor)).hexdigest()


def _stamp(folder: Path, files: Sequence[Path]) -> str:
    marks = [
        (f.relative_to(folder).as_posix(), f.stat().st_size, f.stat().st_mtime_ns) for f in files
    ]
    return hashlib.sha256(repr((_ALGORITHM, str(folder.resolve()), marks)).encode()).hexdigest()
