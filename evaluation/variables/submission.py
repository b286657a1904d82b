"""MIB's submission folder for the causal-variable track: written, and read back.

`<repository>/{TASK}_{MODELCLASS}_{VARIABLE}/` holds `<unit>_featurizer`,
`<unit>_inverse_featurizer` (module dicts by `torch.save`) and `<unit>_indices` (JSON: a list, or
null for all). The modules are the benchmark's own classes, a subspace or the identity, so no code
travels with them. The benchmark's evaluator drops `_indices`, so that a mask would be scored as a
full swap: what a mask chose is written as the subspace of these features alone, all of them used.
SAEs have no such module and are refused. Reading unpickles nothing but tensors and plain values:
`weights_only=True`.
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.variables.errors import BadFeaturizers, NoFeatures
from evaluation.variables.featurizers import FULL, Codes, Coordinates, Directions, Featurizer
from evaluation.variables.learning import Rotation
from evaluation.variables.objective import Coefficients
from evaluation.variables.stored import Made
from evaluation.variables.units import Unit

SUBSPACE = ("SubspaceFeaturizerModule", "SubspaceInverseFeaturizerModule")
IDENTITY = ("IdentityFeaturizerModule", "IdentityInverseFeaturizerModule")
_ENDS = ("_featurizer", "_inverse_featurizer", "_indices")
_FILE_BYTES = 2 * 2**30
_TOLERANCE = 1e-3


def folder_name(task: str, model_class: str, variable: str) -> str:
    """The cell's folder: `4_answer_MCQA_LlamaForCausalLM_answer`."""
    return f"{task}_{model_class}_{variable}"


def export(made: Made, folder: Path, widths: Mapping[Unit, int]) -> list[Path]:
    """Write three files for each unit; where they are.

    Args:
        made: As a report has them.
        folder: The cell's, see `folder_name`.
        widths: Of every unit, see `units.width`.

    Raises:
        NoFeatures: A unit's choice is empty, which evaluators take for everything.
        BadFeaturizers: An SAE.
    """
    pairs = [pair for handle, some in made for pair in zip(handle, some, strict=True)]
    for unit, featurizer in pairs:
        if featurizer.empty:
            raise NoFeatures(unit.name)
        if isinstance(featurizer.features, Codes):
            raise BadFeaturizers(unit.name, "an SAE cannot be submitted.")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for unit, featurizer in pairs:
        there = [folder / f"{unit.name}{end}" for end in _ENDS]
        for path in there[:2]:
            torch.save(_module(featurizer, widths[unit]), path)
        there[2].write_text(json.dumps(None), encoding="utf-8")
        written += there
    return written


def submission_bytes(made: Made) -> int:
    """About how large a folder is: a subspace is kept twice, each time with a square matrix."""
    rotations = (_subspace(featurizer) for _, some in made for featurizer in some)
    sizes = (r.shape for r in rotations if r is not None)
    return sum(2 * 4 * d * (d + 2 * n) for d, n in sizes)


def told_coefficients(coefficients: Coefficients, model_class: str) -> dict[str, Any]:
    """What the indirect object's task needs as JSON beside its folders."""
    told = {
        "bias": coefficients.bias,
        "token_coeff": coefficients.token,
        "position_coeff": coefficients.position,
    }
    return {model_class: told}


def export_coefficients(coefficients: Coefficients, model_class: str, file: Path) -> None:
    """Write them."""
    told = told_coefficients(coefficients, model_class)
    file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def read_folder(folder: Path) -> dict[Unit, Featurizer]:
    """The featurizers of a cell's folder.

    Raises:
        BadFeaturizers: A file is missing, broken, of an unknown class, or its parts do not agree.
        UnknownUnit: A file's name is no unit's.
    """
    names = [path.name for path in sorted(folder.glob(f"*{_ENDS[2]}"))] if folder.is_dir() else []
    if not names:
        raise BadFeaturizers(str(folder.name), f"it holds no file that ends in {_ENDS[2]}.")
    found = {}
    for name in (name.removesuffix(_ENDS[2]) for name in names):
        unit = Unit.parse(name)
        own, inverse, chosen = (folder / f"{name}{end}" for end in _ENDS)
        there, back = _loaded(own, SUBSPACE[0]), _loaded(inverse, SUBSPACE[1])
        if (there is None) != (back is None):
            raise BadFeaturizers(name, "featurizer and inverse are of different kinds.")
        if there is not None and back is not None and not torch.equal(there, back):
            raise BadFeaturizers(name, "featurizer and inverse rotate differently.")
        found[unit] = _featurizer(name, there, _indices(chosen), _features(own))
    return found


def _module(featurizer: Featurizer, width: int) -> dict[str, Any]:
    rotation = _subspace(featurizer)
    if rotation is None:
        return _told(IDENTITY, width, {}, {})
    rotate = Rotation.of(rotation)
    state = {f"rotate.{key}": value.detach() for key, value in rotate.state_dict().items()}
    config = {"rotation_matrix": rotation.clone(), "requires_grad": False}
    return _told(SUBSPACE, rotation.shape[1], config, state)


def _subspace(featurizer: Featurizer) -> Float[Tensor, "d n"] | None:
    """The directions that are swapped, of coordinates too; None where that is everything."""
    features = featurizer.features
    if isinstance(features, Coordinates) and featurizer.count != features.count:
        rotation = torch.eye(features.count)
    elif isinstance(features, Directions):
        rotation = features.rotation.detach().float().cpu()
    else:
        return None
    if featurizer.chosen is not None:
        rotation = rotation[:, list(featurizer.chosen)]
    return rotation.contiguous()


def _told(
    classes: tuple[str, str], n: int, config: dict[str, Any], state: dict[str, Tensor]
) -> dict[str, Any]:
    return {
        "model_info": {
            "featurizer_class": classes[0],
            "inverse_featurizer_class": classes[1],
            "n_features": n,
            "additional_config": config,
        },
        "state_dict": state,
    }


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadFeaturizers(path.name, "the file is missing.")
    if path.stat().st_size > _FILE_BYTES:
        raise BadFeaturizers(path.name, f"it is larger than {_FILE_BYTES} bytes.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        return {"model_info": found["model_info"], "state_dict": found["state_dict"]}
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as no:
        raise BadFeaturizers(path.name, f"it cannot be read: {type(no).__name__}.") from no


def _features(path: Path) -> int | None:
    n = _read(path)["model_info"].get("n_features")
    return n if isinstance(n, int) and n > 0 else None


def _loaded(path: Path, subspace: str) -> Tensor | None:
    """The rotation of a module file; None for the identity."""
    told = _read(path)
    info, state = told["model_info"], told["state_dict"]
    kind = info.get("featurizer_class" if subspace == SUBSPACE[0] else "inverse_featurizer_class")
    if kind in IDENTITY:
        return None
    if kind != subspace:
        raise BadFeaturizers(path.name, f"{kind} is not a class that is read.")
    rotation = (info.get("additional_config") or {}).get("rotation_matrix")
    if not isinstance(rotation, Tensor) or rotation.ndim != 2:
        raise BadFeaturizers(path.name, "it has no rotation matrix (d, n).")
    rotate = Rotation.of(rotation)
    try:
        rotate.load_state_dict({key.removeprefix("rotate."): value for key, value in state.items()})
    except RuntimeError as broken:
        raise BadFeaturizers(path.name, "its state does not fit its rotation.") from broken
    weight = rotate.weight.detach()
    if not torch.allclose(weight, rotation.float(), atol=_TOLERANCE):
        raise BadFeaturizers(path.name, "its state and its rotation matrix differ.")
    return weight


def _indices(path: Path) -> tuple[int, ...] | None:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as broken:
        raise BadFeaturizers(path.name, "it cannot be read as JSON.") from broken
    if told is None:
        return None
    if not isinstance(told, list) or not all(type(i) is int for i in told):
        raise BadFeaturizers(path.name, "it is neither null nor a list of numbers.")
    return tuple(told)


def _featurizer(
    name: str, rotation: Tensor | None, chosen: Sequence[int] | None, n: int | None
) -> Featurizer:
    picked = None if chosen is None else tuple(sorted(chosen))
    if rotation is not None:
        return Featurizer(kind="subspace", features=Directions(rotation=rotation), chosen=picked)
    if picked is None:
        return FULL
    if n is None:
        raise BadFeaturizers(name, "it chooses coordinates, and does not say of how many.")
    return Featurizer(kind="dbm", features=Coordinates(count=n), chosen=picked)
