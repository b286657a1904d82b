"""What a name is the name of, besides an edit."""

STEERING = "steering"
"""A preset that steers."""

VECTOR = "vector"
"""A direction."""


def word_of(kind: str) -> str:
    """How people call a thing of that kind, and its path."""
    return "preset" if kind == STEERING else kind
