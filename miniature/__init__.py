"""A small invented world and the models trained on it: the embedded default."""

from pathlib import Path

_FOLDERS = {"text-to-image": "text-to-image", "clip": "text-to-image/clip", "judge": "judge"}


def weights_path(name: str) -> Path:
    """The folder of the trained `text-to-image` pipeline, its full `clip`, or the `judge`.

    Raises:
        KeyError: There is no such model.
    """
    return Path(__file__).parent / "weights" / _FOLDERS[name]
