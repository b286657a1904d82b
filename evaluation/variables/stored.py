"""Featurizers as one safetensors file of ours, whose hash can be a version.

Kept are rotations, masks and which SAE was read; never the SAE's own tensors. A file is read back
for the model and the SAEs that it was made with.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evaluation.variables.errors import BadFeaturizers
from evaluation.variables.featurizers import FULL, Codes, Coordinates, Directions, Featurizer
from evaluation.variables.units import Handle, Unit
from models.tensor_file import pack, unpack
from steerers.dictionary import Dictionary

FORMAT = 1
FILE_BYTES = 4 * 2**30
_HEADER_BYTES = 64 * 2**20

Made = Sequence[tuple[Handle, tuple[Featurizer, ...]]]
"""Per handle a featurizer for each of its units."""


def stored(made: Made, header: Mapping[str, Any]) -> bytes:
    """The file; the same bytes for the same featurizers, in any process.

    Args:
        made: As a report has them.
        header: JSON values: `base` (the model's fingerprint), `variable`, ...
    """
    tensors: dict[str, Tensor] = {}
    handles = []
    for number, (handle, featurizers) in enumerate(made):
        units = []
        for unit, featurizer in zip(handle, featurizers, strict=True):
            units.append(_told(unit, featurizer))
            if isinstance(featurizer.features, Directions):
                tensors[f"{number}.{unit.name}"] = featurizer.features.rotation.cpu()
        handles.append(units)
    return pack(tensors, {**header, "handles": handles}, FORMAT)


def restored(
    data: bytes, dictionaries: Mapping[str, Dictionary] | None = None
) -> tuple[dict[str, Any], list[tuple[Handle, tuple[Featurizer, ...]]]]:
    """Header and featurizers of such a file.

    Raises:
        BadFeaturizers: It is none, or an SAE is missing or another one.
    """
    try:
        header, tensors = unpack(data, FORMAT, FILE_BYTES, _HEADER_BYTES)
        told = header.pop("handles")
        made = []
        for number, units in enumerate(told):
            handle = tuple(Unit.parse(one["unit"]) for one in units)
            names = [f"{number}.{unit.name}" for unit in handle]
            featurizers = tuple(
                _read(one, tensors.get(name), dictionaries or {})
                for one, name in zip(units, names, strict=True)
            )
            made.append((handle, featurizers))
    except (KeyError, TypeError, ValueError) as broken:
        raise BadFeaturizers("the file", f"it cannot be read: {broken}.") from broken
    return header, made


def _told(unit: Unit, featurizer: Featurizer) -> dict[str, Any]:
    told: dict[str, Any] = {"unit": unit.name, "kind": featurizer.kind}
    told["chosen"] = None if featurizer.chosen is None else list(featurizer.chosen)
    match featurizer.features:
        case Coordinates(count=count):
            told["coordinates"] = count
        case Codes(dictionary=dictionary):
            told |= {"sae": dictionary.id, "sae_digest": dictionary.to(torch.device("cpu")).digest}
    return told


def _read(
    told: Mapping[str, Any], rotation: Tensor | None, known: Mapping[str, Dictionary]
) -> Featurizer:
    chosen = None if told["chosen"] is None else tuple(map(int, told["chosen"]))
    kind = str(told["kind"])
    if rotation is not None:
        return Featurizer(kind=kind, features=Directions(rotation=rotation), chosen=chosen)
    if "coordinates" in told:
        count = Coordinates(count=int(told["coordinates"]))
        return Featurizer(kind=kind, features=count, chosen=chosen)
    if "sae" not in told:
        return FULL
    name = told["sae"]
    if name not in known or known[name].digest != told["sae_digest"]:
        raise BadFeaturizers(
            "the file", f"it needs the SAE {json.dumps(name)} that it was made with."
        )
    return Featurizer(kind=kind, features=Codes(dictionary=known[name]), chosen=chosen)
