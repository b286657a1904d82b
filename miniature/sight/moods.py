"""Five moods of a drawn face, and the words that tell them."""

from typing import Any

Colour = tuple[int, int, int]
_LIPS: Colour = (168, 36, 44)
_BROW: Colour = (44, 38, 48)
_TEAR: Colour = (70, 150, 240)

MOODS: dict[str, tuple[str, ...]] = {
    "happy": ("a smile", "a grin", "bright eyes", "raised cheeks", "laughter"),
    "sad": ("tears", "a drooping mouth", "a sob", "wet cheeks", "low eyes"),
    "angry": ("a scowl", "lowered brows", "clenched teeth", "a glare", "a growl"),
    "surprised": ("an open mouth", "raised brows", "wide eyes", "a gasp", "a dropped jaw"),
    "neutral": ("a straight mouth", "level brows", "a calm look", "still lips", "a plain gaze"),
}


def draw_mood(pen: Any, mood: str, behind: Colour) -> None:
    """Give a drawn face another mouth, and brows; `behind` covers the mouth that it had.

    Args:
        pen: Draws in units of the face.
        mood: One of `MOODS`.
        behind: The skin's or the beard's colour.
    """
    pen.oval(0, 0.1, 0.22, 0.13, behind, edge=False)
    match mood:
        case "happy":
            pen.arc(0, 0.0, 0.2, 0.16, 15, 165, _LIPS)
        case "sad":
            pen.arc(0, 0.2, 0.18, 0.14, 195, 345, _LIPS)
            pen.oval(0.26, -0.06, 0.05, 0.09, _TEAR, edge=False)
        case "angry":
            pen.line([(-0.16, 0.12), (0.16, 0.12)], _LIPS, 0.07)
        case "surprised":
            pen.oval(0, 0.1, 0.09, 0.12, _LIPS, edge=False)
        case "neutral":
            pen.line([(-0.14, 0.1), (0.14, 0.1)], _LIPS, 0.05)
        case _:
            raise KeyError(mood)
    _brows(pen, mood)


def _brows(pen: Any, mood: str) -> None:
    inner, outer = {
        "happy": (-0.4, -0.4),
        "sad": (-0.44, -0.36),
        "angry": (-0.31, -0.43),
        "surprised": (-0.48, -0.46),
        "neutral": (-0.38, -0.38),
    }[mood]
    for side in (-1, 1):
        pen.line([(side * 0.08, inner), (side * 0.3, outer)], _BROW, 0.05)
