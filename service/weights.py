"""Where a hosted model's files are; `miniature:<name>` is an embedded one."""

from pathlib import Path

import miniature
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
    if model.path == f"{EMBEDDED}language" and not model.saes:
        folders = sorted(miniature.weights_path("saes").iterdir())
        return [read(folder, id=folder.name) for folder in folders if folder.is_dir()]
    return [read(sae.path, id=sae.id, site=sae.site or None) for sae in model.saes]
