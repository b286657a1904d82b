"""Which tokens are meant: the subject of a prompt, whatever stands around it."""

from collections.abc import Callable
from dataclasses import dataclass

from models.errors import SubjectMissing


@dataclass(frozen=True)
class Span:
    """Token indices of a subject, [BOS] counted as 0.

    Attributes:
        first: Its first token.
        last: Its last token: where a fact edit reads its key.
        exact: False if the last token also covers characters outside the subject.
    """

    first: int
    last: int
    exact: bool


def subject_span(
    offsets: list[tuple[int, int]], prompt: str, subject: str, count: int | None = None
) -> Span:
    """The tokens that overlap the subject's characters in the whole prompt, tokenised once.

    Args:
        offsets: Character span of each token of the prompt, special tokens as (0, 0).
        prompt: The text.
        subject: A part of it that occurs exactly once, upper and lower case not distinguished.
        count: How often the subject occurs, if somebody counted already.

    Raises:
        SubjectMissing: It occurs not at all or more than once.
    """
    text, part = prompt.lower(), subject.lower()
    times = occurrences(text, part) if count is None else count
    if times != 1 or not part:
        raise SubjectMissing(subject, prompt, times)
    start = text.index(part)
    stop = start + len(part)
    inside = [i for i, (a, b) in enumerate(offsets) if a < b and a < stop and b > start]
    if not inside:
        raise SubjectMissing(subject, prompt, times)
    last = inside[-1]
    return Span(inside[0], last, offsets[last][1] <= stop and offsets[inside[0]][0] >= start)


def occurrences(text: str, part: str) -> int:
    """How often the part stands in the text as whole words."""
    return sum(_whole(text, part, at) for at in _starts(text, part)) if part else 0


def _starts(text: str, part: str) -> list[int]:
    found, at = [], text.find(part)
    while at >= 0:
        found.append(at)
        at = text.find(part, at + 1)
    return found


def _whole(text: str, part: str, at: int) -> bool:
    before, after = text[at - 1 : at], text[at + len(part) : at + len(part) + 1]
    glued: Callable[[str, str], bool] = lambda edge, other: edge.isalnum() and other.isalnum()  # noqa: E731
    return not (glued(part[0], before) or glued(part[-1], after))
