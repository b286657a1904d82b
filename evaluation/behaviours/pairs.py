"""Clean and corrupted prompts of equal length, and the two answers between which they decide.

As MIB's circuit track has them (Mueller et al. 2025): a first token is always put in front, the
answer's token is its first one without marks, and a row that cannot be used falls out alone, with
its reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from models.hosted import HostedModel
from models.words import Words

Answers = Literal["whole", "first"]
"""Whether an answer is one token, or is known by the first of its tokens."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two prompts and two answers; these bring the leading space that the task wants.

    Attributes:
        correct: What follows the clean prompt.
        incorrect: What the corrupted prompt would rather have, or the distractor.
        alike: Further answers that must have as many tokens (MIB asks it of a third name).
    """

    clean: str
    corrupted: str
    correct: str
    incorrect: str
    alike: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PairIds:
    """The same in token ids: both prompts begin with the first token and are equally long."""

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    correct: int
    incorrect: int


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A row that was left out, counted from 0, and why."""

    row: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The rows that can be used, in their order, and those that cannot."""

    kept: tuple[PairIds, ...]
    dropped: tuple[Dropped, ...]


def prepare(pairs: Sequence[Pair], hosted: HostedModel, answers: Answers = "whole") -> Prepared:
    """The pairs in the model's tokens.

    Args:
        pairs: In text.
        hosted: A model of a language family.
        answers: `whole` keeps answers of one token; `first` those of equally many, which differ in
            the first (a digit-wise tokenizer's sums).
    """
    kept: list[PairIds] = []
    dropped: list[Dropped] = []
    words: Words = hosted.parts["tokenizer"]
    first, most = first_token(words), longest(hosted)
    for row, pair in enumerate(pairs):
        ids = _Row(*(tuple(words.ids(t, special=False)) for t in _texts(pair)))
        others = [len(words.ids(t, special=False)) for t in pair.alike]
        if (reason := _unusable(ids, most - len(first), answers)) is not None:
            dropped.append(Dropped(row=row, reason=reason))
            continue
        if any(n != len(ids.correct) for n in others):
            dropped.append(
                Dropped(row=row, reason="a name beside the answers is of another length")
            )
            continue
        kept.append(
            PairIds(
                clean=(*first, *ids.clean),
                corrupted=(*first, *ids.corrupted),
                correct=ids.correct[0],
                incorrect=ids.incorrect[0],
            )
        )
    return Prepared(kept=tuple(kept), dropped=tuple(dropped))


def first_token(words: Words) -> tuple[int, ...]:
    """The token that begins a text, the one that ends it where there is none, or nothing."""
    tokenizer = words.tokenizer
    found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return () if found is None else (int(found),)


def longest(hosted: HostedModel) -> int:
    """Tokens that the model's context holds."""
    length: Callable[[HostedModel], int] = hosted.family.context_length  # pyright: ignore[reportAttributeAccessIssue]
    return length(hosted)


@dataclass(frozen=True)
class _Row:
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    correct: tuple[int, ...]
    incorrect: tuple[int, ...]


def _texts(pair: Pair) -> tuple[str, str, str, str]:
    return pair.clean, pair.corrupted, pair.correct, pair.incorrect


def _unusable(ids: _Row, most: int, answers: Answers) -> str | None:  # noqa: PLR0911 - a table
    right, wrong = ids.correct, ids.incorrect
    if not ids.clean or not ids.corrupted:
        return "a prompt is empty"
    if not right or not wrong:
        return "an answer is empty"
    if len(ids.clean) != len(ids.corrupted):
        return f"the prompts have {len(ids.clean)} and {len(ids.corrupted)} tokens"
    if len(ids.clean) > most:
        return f"the prompts have {len(ids.clean)} tokens, and {most} fit the model"
    if answers == "whole" and (len(right), len(wrong)) != (1, 1):
        return f"the answers have {len(right)} and {len(wrong)} tokens, not one each"
    if len(right) != len(wrong):
        return f"the answers have {len(right)} and {len(wrong)} tokens"
    if right[0] == wrong[0]:
        return "both answers begin with the same token"
    return None
