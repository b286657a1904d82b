"""Files of facts as cases: our own JSON, and RoAD, TIMED and CAKE from a path of the user's.

RoAD and TIMED carry no licence, so no copy is kept here. Cells are stripped (both files have stray
blanks) and cases are keyed by row, as names repeat in TIMED with different targets.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.errors import UnreadableCases
from evaluation.protocol import PARTS, Case, Probe

Row = Mapping[str, str]


def read_cases(path: Path) -> list[Case]:
    """The cases of a file, whichever of the known shapes it has.

    Raises:
        UnreadableCases: No known shape, or a row that cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        cases = _json(text) if path.suffix == ".json" else _table(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UnreadableCases(str(path), str(error)) from None
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableCases(str(path), f"{type(error).__name__}: {error}") from None
    if not cases:
        raise UnreadableCases(str(path), "there is not a single case in it")
    return cases


def _json(text: str) -> list[Case]:
    told = json.loads(text)
    if isinstance(told, dict) and "facts" in told:
        return [_fact(i, fact) for i, fact in enumerate(told["facts"])]
    singles = told.get("single_edit", told.get("single", ())) if isinstance(told, dict) else told
    return [_cake(i, row) for i, row in enumerate(singles)]


def _table(text: str) -> list[Case]:
    rows = [
        {(k or "").strip(): (v or "").strip() for k, v in row.items() if not isinstance(v, list)}
        for row in csv.DictReader(text.splitlines())
    ]
    if rows and "Oracle" in rows[0]:
        return [_road(i, row) for i, row in enumerate(rows)]
    return [_timed(i, row) for i, row in enumerate(rows)]


def _fact(number: int, told: Mapping[str, Any]) -> Case:
    """One entry of our own file."""
    return Case(
        key=_key(number, told["prompt"], told["target"]),
        kind=told["kind"],
        prompt=told["prompt"],
        target=told["target"],
        subject=told.get("subject"),
        source=told.get("source"),
        phrasings=tuple((p["prompt"], p["subject"]) for p in told.get("phrasings", ())),
        neighbours=tuple(told.get("neighbours", ())),
        probes=tuple(_probe(p) for p in told["probes"]),
    )


def _probe(told: Mapping[str, Any]) -> Probe:
    if told["part"] not in PARTS:
        raise ValueError(f"part {told['part']!r} is none of {', '.join(PARTS)}")
    return Probe(**told)


def _road(row: int, cells: Row) -> Case:
    """RoAD: `Old` and `New` are what the judge is asked, `Oracle` is the target."""
    positives = [
        Probe(
            part="generality",
            prompt=cells[f"Positive{i}"],
            right=cells[f"Positive_new{i}"],
            wrong=cells[f"Positive_old{i}"],
            oracle=cells.get(f"Positive_oracle{i}") or None,
        )
        for i in _numbers(cells, "Positive")
    ]
    first = Probe(
        part="efficacy",
        prompt=cells["Prompt"],
        right=cells["New"],
        wrong=cells["Old"],
        oracle=cells["Oracle"],
    )
    return Case(
        key=_key(row, cells["Prompt"], cells["Oracle"]),
        kind="role" if cells["Type"].lower().startswith("role") else "appearance",
        prompt=cells["Prompt"],
        target=cells["Oracle"],
        source=cells["Old"] or None,
        probes=(first, *positives, *_negatives(cells, "Negative", "Negative_new")),
    )


def _timed(row: int, cells: Row) -> Case:
    """TIMED: `gt` describes the edited picture, `gn` what a leak would show."""
    positives = [
        Probe(
            part="generality",
            prompt=cells[f"positive{i}"],
            right=cells[f"gt{i}"],
            wrong=cells[f"positive{i}"],
            oracle=cells[f"gt{i}"],
        )
        for i in _numbers(cells, "positive")
    ]
    first = Probe(
        part="efficacy",
        prompt=cells["old"],
        right=cells["new"],
        wrong=cells["old"],
        oracle=cells["new"],
    )
    return Case(
        key=_key(row, cells["old"], cells["new"]),
        kind="appearance",
        prompt=cells["old"],
        target=cells["new"],
        probes=(first, *positives, *_negatives(cells, "negative", "gn")),
    )


def _cake(row: int, told: Mapping[str, Any]) -> Case:
    """CAKE's single facts, judged pairwise; its two-fact rows are left out."""
    prompt = told["edit_prompt"].format(told["entity"]).strip()
    target = told["target"].strip()
    wide = [
        _cake_probe("generality", name, entry, str(entry["test"]).strip())
        for name, entries in (("scene", "generality_a"), ("paraphrase", "generality_b"))
        for entry in told[entries]
    ]
    aside = [_cake_probe("specificity", "", entry, target) for entry in told["specificity"]]
    first = Probe(
        part="efficacy",
        prompt=prompt,
        right=target,
        wrong=prompt,
        oracle=str(told["oracle"]).strip(),
    )
    return Case(
        key=_key(row, prompt, target),
        kind=f"role_type {told['role_type']}",
        prompt=prompt,
        target=target,
        probes=(first, *wide, *aside),
    )


def _cake_probe(part: Any, tag: str, entry: Mapping[str, Any], wrong: str) -> Probe:
    return Probe(
        part=part,
        tag=tag,
        prompt=entry["test"].strip(),
        right=entry["test_eval"].strip(),
        wrong=wrong,
        oracle=entry["test_oracle"].strip() if part == "generality" else None,
    )


def _negatives(cells: Row, prompt: str, leak: str) -> list[Probe]:
    return [
        Probe(
            part="specificity",
            prompt=cells[f"{prompt}{i}"],
            right=cells[f"{prompt}{i}"],
            wrong=cells[f"{leak}{i}"],
        )
        for i in _numbers(cells, prompt)
    ]


def _numbers(cells: Row, column: str) -> Sequence[int]:
    """Which of the five numbered columns have something in them."""
    return [i for i in range(1, 6) if cells.get(f"{column}{i}")]


def _key(row: int, prompt: str, target: str) -> str:
    return f"{row}: {prompt} -> {target}"
