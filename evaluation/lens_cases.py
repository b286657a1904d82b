"""Files of prompts for the lens: our own JSON, and lists of prompts from a path of the user's.

The lists of the paper's repository carry no licence, so no copy is kept here; their names are
known, so that each counts as simple or compound, common or rare.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from evaluation.errors import UnreadableCases
from evaluation.lens import Frequency, Group, LensCase, Place, Question

PROMPT = "prompt"
"""The one question about a prompt of a list: which of the list's prompts does it look most like?"""
PUBLISHED: Mapping[str, tuple[Group, Frequency | None]] = {
    "simple_objects": ("simple", None),
    "single_color": ("simple", None),
    "two_colors": ("compound", None),
    "relations": ("compound", None),
    "syntactic_ralations_coco": ("compound", None),
    "prompts_familiar_animals": ("simple", "common"),
    "unfamiliar_animals": ("simple", "rare"),
    "famous": ("simple", None),
}


def read_lens_cases(path: Path) -> list[LensCase]:
    """The cases of a file: our JSON, a CSV with a column `prompt`, or one prompt per line.

    Raises:
        UnreadableCases: No known shape, or an entry that cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        cases = _told(json.loads(text)) if path.suffix == ".json" else _listed(path, text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UnreadableCases(str(path), str(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnreadableCases(str(path), f"{type(error).__name__}: {error}") from None
    if not cases:
        raise UnreadableCases(str(path), "there is not a single prompt in it")
    return cases


def _told(told: Mapping[str, Any]) -> list[LensCase]:
    return [told_case(i, entry) for i, entry in enumerate(told["cases"])]


def told_case(number: int, told: Mapping[str, Any]) -> LensCase:
    """One entry of our own format; KeyError or ValueError if it is none."""
    questions = tuple(_question(q) for q in told["questions"])
    if not questions:
        raise ValueError(f"{told['prompt']!r} asks nothing")
    return LensCase(
        key=f"{number}: {told['prompt']}",
        prompt=told["prompt"],
        group=_one_of(Group, told["group"]),
        frequency=told.get("frequency") and _one_of(Frequency, told["frequency"]),
        kind=told.get("kind", ""),
        questions=questions,
    )


def _question(told: Mapping[str, Any]) -> Question:
    options = tuple(told.get("options", ()))
    if options and told["right"] not in options:
        raise ValueError(f"{told['right']!r} is not among its own options")
    return Question(
        question=told["question"],
        right=told["right"],
        place=_one_of(Place, told.get("place", "whole")),
        options=options,
    )


def _one_of(known: Any, value: str) -> Any:
    if value not in get_args(known):
        raise ValueError(f"{value!r} is none of {', '.join(get_args(known))}")
    return value


def _listed(path: Path, text: str) -> list[LensCase]:
    """Prompts that are judged against each other."""
    rows = _rows(path, text)
    group, frequency = PUBLISHED.get(path.stem.lower(), ("simple", None))
    texts = tuple(dict.fromkeys(row[PROMPT] for row in rows))
    return [
        LensCase(
            key=f"{path.stem} {i}: {row[PROMPT]}",
            prompt=row[PROMPT],
            group=_one_of(Group, row.get("group") or group),
            frequency=_one_of(Frequency, row["frequency"]) if row.get("frequency") else frequency,
            kind=row.get("kind") or path.stem,
            questions=(Question(question=PROMPT, right=row[PROMPT], options=texts),),
        )
        for i, row in enumerate(rows)
    ]


def _rows(path: Path, text: str) -> Sequence[Mapping[str, str]]:
    if path.suffix != ".csv":
        return [{PROMPT: line.strip()} for line in text.splitlines() if line.strip()]
    rows = [
        {(k or "").strip().lower(): v.strip() for k, v in row.items() if isinstance(v, str)}
        for row in csv.DictReader(text.splitlines())
    ]
    return [row for row in rows if row[PROMPT]]
