"""Which tokens are meant: the subject of a prompt, whatever stands around it."""

from dataclasses import dataclass
from typing import Any

from models.errors import SubjectNotFound


@dataclass(frozen=True)
class Span:
    """Token indices of a subject, [BOS] counted as 0.

    Attributes:
        first: Its first token.
        last: Its last token: where a fact edit reads its key.
        exact: False if the first or last token also covers characters outside the subject.
    """

    first: int
    last: int
    exact: bool


def token_span(tokenizer: Any, prompt: str, subject: str) -> Span:
    """The tokens that overlap the subject's characters in the whole prompt, tokenised once.

    Upper and lower case are not distinguished, as in CLIP's own tokenizer. The caller holds the
    tokenizer's lock.

    Raises:
        SubjectNotFound: The subject occurs not at all as whole words, or more than once.
    """
    encoded = tokenizer(prompt, return_offsets_mapping=True, padding=False, truncation=False)
    start, stop = only_occurrence(prompt, subject)
    spans = enumerate(encoded.offset_mapping)
    inside = [(i, a, b) for i, (a, b) in spans if a < b and a < stop and b > start]
    if not inside:
        raise SubjectNotFound(subject, prompt, 0)
    first, begins, _ = inside[0]
    last, _, ends = inside[-1]
    return Span(first, last, begins >= start and ends <= stop)


def only_occurrence(prompt: str, subject: str) -> tuple[int, int]:
    """The characters of the subject; SubjectNotFound unless it stands there exactly once."""
    text, part = prompt.lower(), subject.lower().strip()
    starts = [at for at in _starts(text, part) if _whole(text, part, at)]
    if len(starts) != 1:
        raise SubjectNotFound(subject, prompt, len(starts))
    return starts[0], starts[0] + len(part)


def _starts(text: str, part: str) -> list[int]:
    found, at = [], text.find(part) if part else -1
    while at >= 0:
        found.append(at)
        at = text.find(part, at + 1)
    return found


def _whole(text: str, part: str, at: int) -> bool:
    """Whether no letter or digit is glued to the part: "art" does not stand in "a part"."""
    before, after = text[at - 1 : at] if at else "", text[at + len(part) : at + len(part) + 1]
    glued_before = part[0].isalnum() and before.isalnum()
    return not (glued_before or (part[-1].isalnum() and after.isalnum()))
