"""What pydantic found, in our own plain sentences: the key is named elsewhere."""

from collections.abc import Callable, Mapping
from typing import Any

_LONGEST = 300
Context = Mapping[str, Any]


def _length(told: Context, bound: str, word: str) -> str:
    limit = told[bound]
    things = {"String": "characters", "Dictionary": "keys"}.get(told.get("field_type", ""), "items")
    return f"must have {word} {limit} {things if limit != 1 else things.removesuffix('s')}"


_PHRASES: Mapping[str, Callable[[Context], str]] = {
    "missing": lambda _: "is missing",
    "value_error": lambda told: str(told["error"]),
    "string_type": lambda _: "must be a text",
    "string_unicode": lambda _: "must be text: halves of surrogate pairs are none",
    "int_type": lambda _: "must be a whole number",
    "int_from_float": lambda _: "must be a whole number",
    "int_parsing": lambda _: "must be a whole number",
    "int_parsing_size": lambda _: "must be a smaller number",
    "float_type": lambda _: "must be a number",
    "float_parsing": lambda _: "must be a number",
    "finite_number": lambda _: "must be a finite number",
    "bool_type": lambda _: "must be true or false",
    "bool_parsing": lambda _: "must be true or false",
    "list_type": lambda _: "must be a list",
    "dict_type": lambda _: "must be an object",
    "model_type": lambda _: "must be an object",
    "model_attributes_type": lambda _: "must be an object",
    "none_required": lambda _: "must be null",
    "literal_error": lambda told: f"must be {told['expected']}",
    "greater_than_equal": lambda told: f"must be at least {told['ge']}",
    "greater_than": lambda told: f"must be more than {told['gt']}",
    "less_than_equal": lambda told: f"must be at most {told['le']}",
    "less_than": lambda told: f"must be less than {told['lt']}",
    "too_long": lambda told: _length(told, "max_length", "at most"),
    "too_short": lambda told: _length(told, "min_length", "at least"),
    "string_too_long": lambda told: _length(
        {**told, "field_type": "String"}, "max_length", "at most"
    ),
    "string_too_short": lambda told: _length(
        {**told, "field_type": "String"}, "min_length", "at least"
    ),
    "string_pattern_mismatch": lambda told: f"must match {told['pattern']}",
    "recursion_loop": lambda _: "is nested too deeply",
}
"""By pydantic's types of errors; one that is not here is told in pydantic's words."""


def said(found: Mapping[str, Any]) -> str:
    """The sentence of one finding, without its key and its full stop; inputs are not repeated."""
    phrase = _PHRASES.get(found["type"])
    text = phrase(found.get("ctx", {})) if phrase else str(found["msg"])
    return text.removeprefix("Value error, ").replace("Input should", "must")[:_LONGEST].rstrip(".")


def short(number: float) -> str:
    """A number as a message can say it, however many digits it has."""
    if isinstance(number, int):
        digits = str(number) if abs(number) < 10**15 else ""
        return digits or "a number of more than 15 digits"
    return f"{number:g}"
