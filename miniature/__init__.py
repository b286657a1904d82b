"""A small invented world and the models trained on it: the embedded default."""

from pathlib import Path

_FOLDERS = {
    "text-to-image": "text-to-image",
    "clip": "text-to-image/clip",
    "judge": "judge",
    "language": "language",
    "saes": "saes",
    "vision-language": "vision-language",
}


def weights_path(name: str) -> Path:
    """The folder of what was trained.

    That is the `text-to-image` pipeline, its full `clip`, the `judge` of pictures, the `language`
    model, its `saes`, or the `vision-language` model.

    Raises:
        KeyError: There is no such model.
    """
    return Path(__file__).parent / "weights" / _FOLDERS[name]
