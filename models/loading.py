"""From a folder or a hub id to a hosted model: device, dtype, fingerprint; safetensors only."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from models.errors import ModelNotFound, NotSafetensors, UnknownSetting, UnsupportedFamily
from models.family import FAMILIES, Family, LoadOptions
from models.hosted import HostedModel
from models.unhostable import why_not

_ONE_AT_A_TIME = threading.Lock()
"""diffusers builds a pipeline's parts without memory by changing `nn.Module` for the whole process:
weights that another thread reads meanwhile would have none either."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""What x86 and ARM call instructions that multiply bfloat16."""


def load(  # noqa: PLR0913 - every setting is stated by name
    name: str,
    where: str | Path,
    *,
    dtype: str = "float32",
    denoiser_dtype: str | None = None,
    device: str = "cpu",
    family: str | None = None,
    projection: str | Path | None = None,
    cache: Path | None = None,
) -> HostedModel:
    """Host the model of a folder or hub id.

    Args:
        name: What requests call it.
        where: A folder written by `save_pretrained`, or a hub id.
        dtype: Of weights and activations; stated, never taken from the checkpoint.
        denoiser_dtype: Of the denoiser alone; None as `dtype`, `auto` as `fastest_dtype` says
            where the family's denoiser can have its own.
        device: `cpu`, `cuda`, `cuda:1` or `auto`.
        family: Its kind; None asks every family whether the folder is one of its own.
        projection: A full CLIP whose text tower is the pipeline's; None looks into `clip/`.
        cache: A folder for fingerprints, so that big files are hashed once.

    Raises:
        ModelNotFound: There is no such folder or hub id.
        UnsupportedFamily: No family knows the model, or it cannot be hosted, with the reason.
        NotSafetensors: The folder has pickled weights only.
        UnknownSetting: Of a dtype or family, or of a denoiser that computes as all other parts do.
    """
    if dtype not in DTYPES:
        raise UnknownSetting("dtype", dtype, ", ".join(DTYPES))
    folder = _folder(where)
    if not any(folder.rglob("*.safetensors")):
        raise NotSafetensors(str(where))
    kind = _family(folder, str(where), family)
    options = LoadOptions(
        dtype=DTYPES[dtype],
        denoiser_dtype=_denoiser_dtype(denoiser_dtype or dtype, dtype, _device(device), kind),
        device=_device(device),
        projection=None if projection is None else Path(projection),
        cache=cache,
        defaults=_defaults(folder),
    )
    with _ONE_AT_A_TIME:
        return kind.load(name, folder, options)


def fastest_dtype(
    dtype: torch.dtype, device: torch.device, capabilities: Mapping[str, object]
) -> torch.dtype:
    """What a denoiser of a model in `dtype` computes in: bfloat16 where a CPU multiplies it.

    Elsewhere as the model: a CPU without the instructions is slower in bfloat16, and on a GPU the
    whole model is in it already if its operator wants that.

    Args:
        dtype: Of the whole model.
        device: Where it runs.
        capabilities: Of the CPU, as `torch.cpu.get_capabilities` tells them.
    """
    native = any(capabilities.get(flag) is True for flag in _BFLOAT16)
    cast = device.type == "cpu" and dtype == torch.float32 and native
    return torch.bfloat16 if cast else dtype


def family_of(where: str | Path, kind: str | None = None) -> Family:
    """The family that recognises the model of a folder or hub id, before anything is loaded.

    Raises:
        ModelNotFound, UnsupportedFamily, UnknownSetting: As `load`.
    """
    return _family(_folder(where), str(where), kind)


def _family(folder: Path, where: str, kind: str | None) -> Family:
    if kind is not None and kind not in FAMILIES:
        raise UnknownSetting("family", kind, ", ".join(FAMILIES))
    why = why_not(folder) if kind is None else None
    if why is not None:
        raise UnsupportedFamily(where, ", ".join(FAMILIES), why)
    for family in [FAMILIES[kind]] if kind is not None else FAMILIES.values():
        if kind is not None or family.matches(folder):
            return family
    raise UnsupportedFamily(where, ", ".join(FAMILIES))


def _defaults(folder: Path) -> dict[str, object]:
    stated = folder / "tiller.json"
    return json.loads(stated.read_text()) if stated.exists() else {}


def _folder(where: str | Path) -> Path:
    if Path(where).is_dir():
        return Path(where)
    try:
        found = Path(
            snapshot_download(str(where), allow_patterns=["*.json", "*.txt", "*.model", "*.jinja"])
        )
        # Beside a pipeline's parts lie the same weights in one file and in other precisions.
        parts = "*/*.safetensors" if (found / "model_index.json").exists() else "*.safetensors"
        others = ["*.fp16.*", "*.non_ema.*"]
        return Path(snapshot_download(str(where), allow_patterns=parts, ignore_patterns=others))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFound(str(where)) from error


def _denoiser_dtype(name: str, dtype: str, device: torch.device, family: Family) -> torch.dtype:
    whole = DTYPES[dtype]
    if name == AUTO and family.mixes:
        return fastest_dtype(whole, device, torch.cpu.get_capabilities())
    known = (AUTO, *DTYPES) if family.mixes else (AUTO, dtype)
    if name not in known:
        raise UnknownSetting("denoiser_dtype", name, ", ".join(known))
    return whole if name == AUTO else DTYPES[name]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
