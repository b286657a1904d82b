"""A delta as a LoRA adapter for other programs, and an adapter as a delta.

lora_A = right, lora_B = left, rank r, lora_alpha = r: the product is the change itself. The PEFT
folder names modules as the encoder's class has them; the diffusers file uses the historic paths
with `lora_linear_layer.{down,up}`, the only spelling in which a file with MLP layers alone loads.
"""

import io
import json
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from editors.delta import Delta, Factors, Limits
from editors.errors import BadAdapter
from models.hosted import HostedModel

_ZIP_BYTES = 256 * 1024 * 1024
_LARGEST = 1e6
"""Of `r` and `lora_alpha`."""
_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<path>.+?)\."
    r"(?:lora_(?P<side>[AB])(?:\.default)?|lora_linear_layer\.(?P<way>down|up))\.weight"
)


def export_peft(delta: Delta, hosted: HostedModel) -> bytes:
    """A zip with one PEFT adapter folder per text encoder, or the one of a language model."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for encoder, sites in sorted(_by_encoder(delta).items()):
            names = {_own_name(hosted, s): f for s, f in sites.items()}
            for name, data in _peft_folder(names).items():
                archive.writestr(zipfile.ZipInfo(f"{encoder}/{name}"), data)
    return buffer.getvalue()


def _peft_folder(factors: Mapping[str, Factors]) -> dict[str, bytes]:
    rank = max(f.left.shape[1] for f in factors.values())
    tensors = {}
    for path, f in factors.items():
        left, right = _padded(f, rank)
        tensors[f"base_model.model.{path}.lora_A.weight"] = right
        tensors[f"base_model.model.{path}.lora_B.weight"] = left
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "fan_in_fan_out": False,
        "target_modules": sorted(factors),
        "base_model_name_or_path": None,
        "task_type": None,
    }
    return {
        "adapter_config.json": json.dumps(config, indent=2, sort_keys=True).encode(),
        "adapter_model.safetensors": save(tensors, metadata={"format": "pt"}),
    }


def export_diffusers(delta: Delta) -> bytes:
    """One file for `pipe.load_lora_weights`."""
    tensors = {}
    for site, f in delta.factors.items():
        tensors[f"{site}.lora_linear_layer.down.weight"] = f.right.contiguous()
        tensors[f"{site}.lora_linear_layer.up.weight"] = f.left.contiguous()
    return save(tensors, metadata={"format": "pt"})


def import_lora(data: bytes, hosted: HostedModel, limits: Limits | None = None) -> Delta:
    """A delta from a PEFT folder (zip) or a LoRA safetensors file.

    Known are the linear layers of text encoders and of a language model's decoder layers.

    Raises:
        BadAdapter: Pickled, unreadable, too large, or a key that names no linear layer here.
    """
    limits = limits or Limits()
    pairs: dict[str, dict[str, Tensor]] = defaultdict(dict)
    scales: dict[str, float] = {}
    for prefix, tensors, config in _files(data, limits):
        for key, tensor in tensors.items():
            if key.endswith(".alpha"):
                raise BadAdapter(f"{key}: adapters with alpha tensors are not known here.")
            site, side = _site(hosted, prefix, key)
            pairs[site][side] = tensor.float()
            scales[site] = _scale(config)
    if not pairs:
        raise BadAdapter("The adapter has no LoRA tensors.")
    factors = {site: _factors(site, p, scales[site], limits) for site, p in sorted(pairs.items())}
    delta = Delta(
        {
            "method": "lora",
            "base": {
                "family": hosted.family.kind,
                "fingerprint": hosted.fingerprint,
                "sites": sorted(factors),
            },
        },
        factors,
    )
    hosted.check(delta.patch())
    return Delta.read(delta.data, limits)


def _files(data: bytes, limits: Limits) -> list[tuple[str, dict[str, Tensor], dict[str, Any]]]:
    """(encoder, tensors, configuration) of each adapter in the upload."""
    if not data.startswith(b"PK"):
        return [("", _tensors(data, limits), {})]
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile as broken:
        raise BadAdapter("The zip cannot be read.") from broken
    if sum(info.file_size for info in archive.infolist()) > _ZIP_BYTES:
        raise BadAdapter("The zip unpacks to more than 256 MiB.")
    found = []
    for name in archive.namelist():
        if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")):
            raise BadAdapter(f"{name} is a pickle, which can run code.")
        if name.endswith(".safetensors"):
            folder = name.rpartition("/")[0]
            config = f"{folder}/adapter_config.json".lstrip("/")
            told = _config(archive, config) if config in archive.namelist() else {}
            tensors = _tensors(_unpacked(archive, name), limits)
            found.append((folder.rpartition("/")[2], tensors, told))
    return found


def _unpacked(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as broken:
        # A RuntimeError says that it is encrypted or compressed in a way that nobody knows here.
        raise BadAdapter(f"{name} cannot be unpacked.") from broken


def _config(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    """An `adapter_config.json` whose numbers are numbers."""
    try:
        told = json.loads(_unpacked(archive, name))
    except (ValueError, RecursionError) as broken:
        raise BadAdapter(f"{name} is not JSON.") from broken
    if not isinstance(told, dict):
        raise BadAdapter(f"{name} is not a JSON object.")
    if not _number(told.get("r"), least=1.0) or not _number(told.get("lora_alpha")):
        raise BadAdapter(f"{name} does not say r and lora_alpha as numbers.")
    return told


def _number(value: Any, least: float = -_LARGEST) -> bool:
    kind = isinstance(value, int | float) and not isinstance(value, bool)
    return kind and least <= value <= _LARGEST  # NaN is not in any range


def _tensors(data: bytes, limits: Limits) -> dict[str, Tensor]:
    if len(data) > limits.file_bytes:
        raise BadAdapter(f"The file has {len(data)} bytes; {limits.file_bytes} are allowed.")
    try:
        return load(data)
    except (SafetensorError, ValueError) as broken:
        raise BadAdapter(
            "This is neither a safetensors file nor a zip of a PEFT folder."
        ) from broken


def _site(hosted: HostedModel, prefix: str, key: str) -> tuple[str, str]:
    """The canonical site and the side of a tensor; both spellings of the encoder are known."""
    found = _KEY.fullmatch(key)
    if found is None:
        raise BadAdapter(f"{key} is not a LoRA tensor.")
    path, side = found["path"], found["side"] or {"down": "A", "up": "B"}[found["way"]]
    site = _in_encoder(hosted, prefix, path) if hosted.text_towers else _in_decoder(hosted, path)
    if site not in hosted.linears:
        raise BadAdapter(f"{key} names no linear layer of {hosted.name}.")
    return site, side


def _in_encoder(hosted: HostedModel, prefix: str, path: str) -> str:
    first = path.partition(".")[0]
    if first in hosted.text_towers:
        encoder, path = first, path.partition(".")[2]
    else:
        encoder = prefix if prefix in hosted.text_towers else next(iter(hosted.text_towers))
    return f"{encoder}.text_model.{path.removeprefix('text_model.')}"


def _in_decoder(hosted: HostedModel, path: str) -> str:
    """The site of a decoder's linear layer, under its own name or as a site is written."""
    modules = (dict(module.named_modules()).get(path) for module in hosted.modules.values())
    wanted = [found for found in modules if found is not None]
    own = (site for site, linear in hosted.linears.items() if any(linear is w for w in wanted))
    return next(own, path)


def _scale(config: Mapping[str, Any]) -> float:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if config.get("use_dora") or config.get("rank_pattern") or config.get("alpha_pattern"):
        raise BadAdapter("DoRA and per-module ranks are not known here.")
    if not rank or alpha is None:
        return 1.0
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def _factors(site: str, pair: Mapping[str, Tensor], scale: float, limits: Limits) -> Factors:
    if set(pair) != {"A", "B"}:
        raise BadAdapter(f"{site} has only one of lora_A and lora_B.")
    left, right = pair["B"] * scale, pair["A"]
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise BadAdapter(f"The factors at {site} do not fit together.")
    if left.shape[1] > limits.rank:
        raise BadAdapter(f"Rank {left.shape[1]} at {site}; {limits.rank} are allowed.")
    if not (bool(torch.isfinite(left).all()) and bool(torch.isfinite(right).all())):
        raise BadAdapter(f"The factors at {site} are not finite.")
    out, inner = left.shape[0], right.shape[1]
    return Factors(left, right, torch.zeros(0, inner), torch.zeros(0, inner), torch.zeros(0, out))


def _by_encoder(delta: Delta) -> dict[str, dict[str, Factors]]:
    found: dict[str, dict[str, Factors]] = defaultdict(dict)
    for site, factors in delta.factors.items():
        found[site.partition(".")[0]][site] = factors
    return found


def _own_name(hosted: HostedModel, site: str) -> str:
    """The path as the encoder's class has it: with or without `text_model`."""
    encoder = site.partition(".")[0]
    module, wanted = hosted.modules[encoder], hosted.linears[site]
    return next(name for name, found in module.named_modules() if found is wanted)


def _padded(f: Factors, rank: int) -> tuple[Tensor, Tensor]:
    more = rank - f.left.shape[1]
    pad = torch.nn.functional.pad
    return pad(f.left, (0, more)).contiguous(), pad(f.right, (0, 0, 0, more)).contiguous()
