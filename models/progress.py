"""What long work says while it goes on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

FOUND_BEFORE = "found before"
"""The message of a step that says how much an earlier worker had made whole."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step of a fit, a collection, a scoring or a report."""

    stage: str
    done: int
    total: int
    message: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
