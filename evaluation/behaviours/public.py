"""MIB's public data sets from files of the user's: JSON lines, JSON or parquet, as published.

Nothing is fetched and no copy is kept here. `ioi`, `copycolors_mcqa`, `arc_easy`, `arc_challenge`,
`arithmetic_addition`, `arithmetic_subtraction` and `ravel` are told as pairs (circuits) and as
interchanges (variables). A row without the counterfactual that is asked for, or with another
operator, falls out with its reason; which rows a model's tokens allow is asked later.

Answers are as MIB's circuit track reads them: names behind a space, letters and numbers bare though
the prompt ends in "Answer:". The variable track reads letters behind a space.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.behaviours import attributes
from evaluation.behaviours.arithmetic import Wording as Sum
from evaluation.behaviours.arithmetic import causal_model as sum_model
from evaluation.behaviours.behaviour import Row
from evaluation.behaviours.choices import POINTED, places
from evaluation.behaviours.errors import UnknownVariable, UnreadableRows
from evaluation.behaviours.indirect_object import SETS_SIGNS
from evaluation.behaviours.pairs import Dropped, Pair
from evaluation.behaviours.swaps import SwapText

Told = Mapping[str, Any]
SUFFIX = "_counterfactual"
RAVEL_VARIABLES = ("Continent", "Country", "Language")
_OPERATORS = {"arithmetic_addition": "+", "arithmetic_subtraction": "-"}


@dataclass(frozen=True, kw_only=True)
class PublicPairs:
    """Pairs, and the rows of the file that have none."""

    pairs: tuple[Pair, ...]
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True, kw_only=True)
class PublicSwaps:
    """Interchanges, and the rows of the file that have none."""

    swaps: tuple[SwapText, ...]
    dropped: tuple[Dropped, ...]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file.

    Raises:
        UnreadableRows: It is not there, is no such file, or parquet cannot be read here.
    """
    try:
        if path.suffix == ".parquet":
            return _parquet(path)
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else list(map(json.loads, _lines(text)))
    except (OSError, ValueError) as error:
        raise UnreadableRows(str(path), str(error)) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UnreadableRows(str(path), "it is not a list of rows with named fields")
    return rows


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet  # an extra, for these files only
    except ImportError:
        problem = "parquet is read with pyarrow: pip install 'tiller[parquet]'"
        raise UnreadableRows(str(path), problem) from None
    return parquet.read_table(path).to_pylist()


def public_pairs(task: str, rows: Sequence[Told], of_set: str | None = None) -> PublicPairs:
    """The rows of a task as pairs; by default with the counterfactuals of MIB's circuit track.

    Raises:
        UnreadableRows: There is no such task, or a field is missing.
    """
    if task not in _PAIRS:
        raise UnreadableRows(task, f"pairs are known for {', '.join(_PAIRS)}")
    told, default = _PAIRS[task]
    pairs: list[Pair] = []
    dropped: list[Dropped] = []
    for number, row, other in _with(task, rows, of_set or default, dropped):
        with _Reading(task, number):
            pairs.append(told(row, other))
    return PublicPairs(pairs=tuple(pairs), dropped=tuple(dropped))


def public_swaps(task: str, rows: Sequence[Told], sets: Sequence[str] | None = None) -> PublicSwaps:
    """The rows of a task as interchanges, of each set in turn; by default MIB's sets.

    Raises:
        UnreadableRows: There is no such task, or a field is missing.
    """
    if task not in _SWAPS:
        raise UnreadableRows(task, f"interchanges are known for {', '.join(_SWAPS)}")
    reader, default = _SWAPS[task]
    with _Reading(task, 0):
        told = reader(rows)
    swaps: list[SwapText] = []
    dropped: list[Dropped] = []
    for name in sets or default:
        for number, row, other in _with(task, rows, name, dropped):
            with _Reading(task, number):
                swaps.append(told(row, other, name))
    return PublicSwaps(swaps=tuple(swaps), dropped=tuple(dropped))


class _Reading:
    """A row that lacks a field is told of with its number."""

    def __init__(self, task: str, row: int) -> None:
        self.task, self.row = task, row

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if isinstance(error, KeyError | IndexError | TypeError | ValueError | AttributeError):
            raise UnreadableRows(self.task, f"row {self.row} {_lacks(error)}") from error


class _NoPrompt(ValueError):
    """A row that asks nothing."""


def _lacks(error: Exception) -> str:
    """What is wrong with a row, in words."""
    match error:
        case KeyError():
            return f"has no {error.args[0]}"
        case _NoPrompt():
            return "has no prompt"
        case _:
            return f"is not as the data set is published: {error}"


def _with(
    task: str, rows: Sequence[Told], of_set: str, dropped: list[Dropped]
) -> Iterator[tuple[int, Told, Told]]:
    """The rows of the task that have such a counterfactual, with their numbers."""
    for number, row in enumerate(rows):
        with _Reading(task, number):
            other = row.get(of_set + SUFFIX) or {}
            reason = _unfit(task, row) if _asks(other) else f"it has no {of_set}{SUFFIX}"
            if not _asks(row):
                raise _NoPrompt
        if reason is None:
            yield number, row, other
        else:
            dropped.append(Dropped(row=number, reason=reason))


def _asks(told: Told) -> bool:
    prompt = told.get("prompt")
    return isinstance(prompt, str) and bool(prompt)


def _unfit(task: str, row: Told) -> str | None:
    wanted = _OPERATORS.get(task)
    if wanted is not None and row.get("operator", wanted) != wanted:
        return f"its operator is {row['operator']}"
    if task.startswith("arc") and len(row["choices"]["label"]) != 4:
        return f"it has {len(row['choices']['label'])} choices"
    return None


def _names(row: Told, other: Told) -> Pair:
    told = row["metadata"]
    third = (f" {told['random_c']}",) if told.get("random_c") else ()
    return Pair(
        clean=row["prompt"],
        corrupted=other["prompt"],
        correct=f" {told['indirect_object']}",
        incorrect=f" {told['subject']}",
        alike=third,
    )


def _letters(row: Told, other: Told) -> Pair:
    return Pair(
        clean=row["prompt"],
        corrupted=other["prompt"],
        correct=_letter(row),
        incorrect=_letter(other),
    )


def _numbers(row: Told, other: Told) -> Pair:
    return Pair(
        clean=row["prompt"],
        corrupted=other["prompt"],
        correct=str(row["label"]),
        incorrect=str(other["label"]),
    )


def _letter(row: Told) -> str:
    return row["choices"]["label"][_pointer(row)]


def _pointer(row: Told) -> int:
    """Index of the right choice; the key is an index, or the choice's letter."""
    key = row["answerKey"]
    return int(key) if str(key).isdigit() else row["choices"]["label"].index(key)


Swapping = Callable[[Told, Told, str], SwapText]


def _swap_names(rows: Sequence[Told]) -> Swapping:  # noqa: ARG001 - read row by row
    def told(row: Told, other: Told, of_set: str) -> SwapText:
        right, wrong = f" {row['metadata']['indirect_object']}", f" {row['metadata']['subject']}"
        token, position = SETS_SIGNS[of_set]
        return SwapText(
            base=row["prompt"],
            counterfactual=other["prompt"],
            base_answer=right,
            counterfactual_answer=right if token == 1 else wrong,
            expected={
                "output_token": right if token == 1 else wrong,
                "output_position": right if position == 1 else wrong,
            },
            of_set=of_set,
            distractor=wrong,
            signs={"output_token": (token, 1), "output_position": (1, position)},
        )

    return told


def _swap_letters(rows: Sequence[Told]) -> Swapping:  # noqa: ARG001 - read row by row
    def told(row: Told, other: Told, of_set: str) -> SwapText:
        base, cf = f" {_letter(row)}", f" {_letter(other)}"
        here = places({"prompt": row["prompt"], "answer": base})
        there = places({"prompt": other["prompt"], "answer": cf})
        pointed = row["choices"]["label"][_pointer(other)]
        return SwapText(
            base=row["prompt"],
            counterfactual=other["prompt"],
            base_answer=base,
            counterfactual_answer=cf,
            expected=dict(zip(POINTED, (f" {pointed}", cf), strict=True)),
            positions={name: (here[name], there[name]) for name in here},
            of_set=of_set,
        )

    return told


def _swap_numbers(rows: Sequence[Told]) -> Swapping:  # noqa: ARG001 - read row by row
    def told(row: Told, other: Told, of_set: str) -> SwapText:
        base, cf = _operands(row["prompt"]), _operands(other["prompt"])
        minus = row.get("operator") == "-"
        model = sum_model(Sum(prompt="", operator="minus" if minus else "plus", digits=3))
        numbers = {"first": base[0][0], "second": base[1][0]}
        others = {"first": cf[0][0], "second": cf[1][0]}
        swapped = model.swap(numbers, others, "ones_carry")
        return SwapText(
            base=row["prompt"],
            counterfactual=other["prompt"],
            base_answer=model.run(numbers)["answer"],
            counterfactual_answer=model.run(others)["answer"],
            expected={"ones_carry": swapped["answer"]},
            positions={"op2_last": (base[1][1] - 1, cf[1][1] - 1), "last": (None, None)},
            of_set=of_set,
        )

    return told


def _operands(prompt: str) -> list[tuple[int, int]]:
    """The first two numbers of a prompt, each with where it ends."""
    first, second, *_ = re.finditer(r"\d+", prompt)
    return [(int(first[0]), first.end()), (int(second[0]), second.end())]


def _swap_attributes(rows: Sequence[Told]) -> Swapping:
    """The table of cities is read from the rows themselves: each tells its own attributes."""
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        for told in (row, *(v for k, v in row.items() if k.endswith(SUFFIX) and v)):
            if "entity" in told:
                known = {n: told[n] for n in RAVEL_VARIABLES if told.get(n)}
                table.setdefault(told["entity"], {}).update(known)
    behaviour = attributes.of_table(RAVEL_VARIABLES, table)

    def inputs(told: Told) -> dict[str, str]:
        asked = told.get("attribute") or ""
        queried = asked if asked in RAVEL_VARIABLES else ""
        prompt = told["prompt"].replace("{", "{{").replace("}", "}}")
        return {"template": prompt, "entity": told["entity"], "queried": queried}

    return lambda row, other, of_set: behaviour.swap(
        Row(base=inputs(row), counterfactual=inputs(other), of_set=of_set)
    )


def asking(rows: Sequence[Told], variable: str) -> list[Told]:
    """RAVEL's rows for one variable: all that ask for it, half as many for each other attribute.

    Raises:
        UnknownVariable: The rows ask for other things only.
    """
    told = [row.get("attribute") for row in rows]
    asked = [name if isinstance(name, str) else "" for name in told]
    others = sorted({name for name in asked if name} - {variable})
    most = asked.count(variable)
    if not most:
        raise UnknownVariable(variable, others)
    left = dict.fromkeys(others, most // 2) | {variable: most}
    kept: list[Told] = []
    for row, name in zip(rows, asked, strict=True):
        if left.get(name, 0) > 0:
            left[name] -= 1
            kept.append(row)
    return kept


_CHOICES = ("answerPosition", "randomLetter", "answerPosition_randomLetter")
_PAIRS: Mapping[str, tuple[Callable[[Told, Told], Pair], str]] = {
    "ioi": (_names, "s2_io_flip"),
    "copycolors_mcqa": (_letters, "symbol"),
    "arc_easy": (_letters, "symbol"),
    "arc_challenge": (_letters, "symbol"),
    "arithmetic_addition": (_numbers, "random"),
    "arithmetic_subtraction": (_numbers, "random"),
}
_SWAPS: Mapping[str, tuple[Callable[[Sequence[Told]], Swapping], tuple[str, ...]]] = {
    "ioi": (_swap_names, ("s1_io_flip", "s2_io_flip", "s1_ioi_flip_s2_ioi_flip")),
    "copycolors_mcqa": (_swap_letters, _CHOICES),
    "arc_easy": (_swap_letters, _CHOICES),
    "arc_challenge": (_swap_letters, _CHOICES),
    "arithmetic_addition": (_swap_numbers, ("random", "ones_carry")),
    "arithmetic_subtraction": (_swap_numbers, ("random",)),
    "ravel": (_swap_attributes, ("attribute", "wikipedia")),
}
PUBLIC_TASKS, PAIRED_TASKS = tuple(_SWAPS), tuple(_PAIRS)
