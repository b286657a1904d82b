"""A base prompt, a counterfactual one, and what should be said when a variable is swapped.

As MIB's causal-variable track has them (Mueller et al. 2025). To swap a variable is to take its
value from the counterfactual's run into the base's and to run the rest; `expected` is what then
comes out. Positions have names and are found separately in the two prompts, which need not be
equally long.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evaluation.behaviours.pairs import Dropped, longest
from models.hosted import HostedModel
from models.words import Words

LAST = None
"""The last token, wherever that is."""
Places = tuple[int | None, int | None]
Signs = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class SwapText:
    """One interchange; answers bring the leading space that the task wants.

    Attributes:
        base_answer, counterfactual_answer: What follows each prompt unchanged; nothing where the
            counterfactual asks nothing.
        expected: By variable, what follows the base when that variable comes from the
            counterfactual.
        positions: By name, the character whose token is meant in the base and in the
            counterfactual; None is the last token.
        of_set: The set of counterfactuals that the row belongs to (`randomLetter`, ...).
        distractor: The other candidate in the base; the indirect object's task takes differences
            from it.
        signs: By variable, the factors +1 or -1 of (token, position) in the logit difference
            after the swap; the indirect object's task only.
    """

    base: str
    counterfactual: str
    base_answer: str
    counterfactual_answer: str
    expected: Mapping[str, str]
    positions: Mapping[str, Places] = field(default_factory=lambda: {"last_token": (LAST, LAST)})
    of_set: str = ""
    distractor: str = ""
    signs: Mapping[str, Signs] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SwapIds:
    """The same in token ids; prompts begin as the tokenizer begins a text, answers have no marks.

    Attributes:
        positions: By name, the index in `base` and in `counterfactual`.
    """

    base: tuple[int, ...]
    counterfactual: tuple[int, ...]
    base_answer: tuple[int, ...]
    counterfactual_answer: tuple[int, ...]
    base_answer_text: str
    counterfactual_answer_text: str
    expected: Mapping[str, tuple[int, ...]]
    expected_text: Mapping[str, str]
    positions: Mapping[str, tuple[int, int]]
    of_set: str = ""
    distractor: tuple[int, ...] = ()
    signs: Mapping[str, Signs] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PreparedSwaps:
    """The rows that can be used, in their order, and those that cannot."""

    kept: tuple[SwapIds, ...]
    dropped: tuple[Dropped, ...]


def prepare_swaps(swaps: Sequence[SwapText], hosted: HostedModel) -> PreparedSwaps:
    """The interchanges in the tokens of a model of a language family.

    Whether the model answers them rightly is not asked here.
    """
    kept: list[SwapIds] = []
    dropped: list[Dropped] = []
    words: Words = hosted.parts["tokenizer"]
    for row, swap in enumerate(swaps):
        try:
            kept.append(_in_ids(swap, words, longest(hosted)))
        except _Unusable as found:
            dropped.append(Dropped(row=row, reason=str(found)))
    return PreparedSwaps(kept=tuple(kept), dropped=tuple(dropped))


class _Unusable(Exception):
    """Why a row falls out."""


def _in_ids(swap: SwapText, words: Words, most: int) -> SwapIds:
    base, other = _Tokens.of(swap.base, words), _Tokens.of(swap.counterfactual, words)
    if (length := max(len(base.ids), len(other.ids))) > most:
        raise _Unusable(f"a prompt has {length} tokens, and {most} fit the model")
    return SwapIds(
        base=base.ids,
        counterfactual=other.ids,
        base_answer=_answer(swap.base_answer, words),
        counterfactual_answer=tuple(words.ids(swap.counterfactual_answer, special=False)),
        base_answer_text=swap.base_answer,
        counterfactual_answer_text=swap.counterfactual_answer,
        expected={name: _answer(text, words) for name, text in swap.expected.items()},
        expected_text=dict(swap.expected),
        positions={
            name: (base.at(name, here), other.at(name, there))
            for name, (here, there) in swap.positions.items()
        },
        of_set=swap.of_set,
        distractor=_answer(swap.distractor, words) if swap.distractor else (),
        signs=dict(swap.signs),
    )


def _answer(text: str, words: Words) -> tuple[int, ...]:
    if not (ids := tuple(words.ids(text, special=False))):
        raise _Unusable("an answer is empty")
    return ids


@dataclass(frozen=True)
class _Tokens:
    """A prompt's ids, and which characters each of them covers; marks in front cover none."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, text: str, words: Words) -> "_Tokens":
        with words.lock:
            told = words.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        plain, whole = tuple(told["input_ids"]), words.ids(text)
        if not plain:
            raise _Unusable("a prompt is empty")
        # A mark that the tokenizer sets behind a text would end it before the answer.
        places = (i for i in range(len(whole)) if tuple(whole[i : i + len(plain)]) == plain)
        if (marks := next(places, None)) is None:
            raise _Unusable("the tokenizer's marks change the tokens beside them")
        spans = ((0, 0),) * marks + tuple(map(tuple, told["offset_mapping"]))
        return cls((*whole[:marks], *plain), spans)

    def at(self, name: str, character: int | None) -> int:
        """The index of the token that holds the character."""
        if character is None:
            return len(self.ids) - 1
        for index, (start, end) in enumerate(self.spans):
            if start <= character < end:
                return index
        raise _Unusable(f"no token stands at {name}")
