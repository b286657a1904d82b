"""Where a hosted model's files are; `miniature:<name>` is an embedded one."""

from pathlib import Path

import miniature
from service.settings import Model

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
