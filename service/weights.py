"""Where a hosted model's files are; `miniature:<name>` is an embedded one."""

import json
from collections.abc import Mapping
from pathlib import Path

import miniature
from service.errors import BadSettings
from service.registry.records import FeatureLabel
from service.settings import Model
from steerers.dictionary import Dictionary
from steerers.readers import read

EMBEDDED = "miniature:"


def weights_of(model: Model) -> str:
    """The folder or hub id of the model's weights."""
    if not model.path.startswith(EMBEDDED):
        return model.path
    return str(miniature.weights_path(model.path.removeprefix(EMBEDDED)))


def corpus_of(model: Model) -> Path:
    """The captions that say what the text encoder usually reads."""
    if model.corpus.path:
        return Path(model.corpus.path)
    return Path(miniature.__file__).parent / "cases" / "captions.txt"


def dictionaries_of(model: Model) -> list[Dictionary]:
    """The SAEs of a language model; the embedded one brings its own.

    Raises:
        Refusal: One of them cannot be read: what `steerers.readers.read` says.
    """
    if _brings_its_own(model):
        return [read(folder, id=folder.name) for folder in _own()]
    return [read(sae.path, id=sae.id, site=sae.site or None) for sae in model.saes]


def labels_of(model: Model) -> Mapping[str, list[FeatureLabel]]:
    """By SAE the labels that lie beside its files: `labels.jsonl`, as they are uploaded.

    Raises:
        BadSettings: A file that is no list of labels.
    """
    folders = {folder.name: folder for folder in _own()} if _brings_its_own(model) else {}
    folders |= {sae.id: Path(sae.path) for sae in model.saes}
    files = {sae: folder / "labels.jsonl" for sae, folder in folders.items()}
    return {sae: _labels(file) for sae, file in files.items() if file.exists()}


def _labels(file: Path) -> list[FeatureLabel]:
    try:
        return [FeatureLabel(**json.loads(line)) for line in file.read_text().splitlines() if line]
    except (OSError, ValueError, TypeError) as error:
        raise BadSettings(str(file), f"no labels: {error}") from None


def _brings_its_own(model: Model) -> bool:
    return model.path == f"{EMBEDDED}language" and not model.saes


def _own() -> list[Path]:
    return [f for f in sorted(miniature.weights_path("saes").iterdir()) if f.is_dir()]
