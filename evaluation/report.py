"""A fact report on paper: JSON for programs, Markdown with tables, a contact sheet to look at."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.facts import FactReport, Measures
from evaluation.protocol import PARTS, Arm, Done, Estimate, Journal, Score
from evaluation.sheet import Cell, Strip, contact_sheet

ARMS: Mapping[Arm, str] = {
    "base": "unedited",
    "oracle": "unedited, told in words",
    "edited": "edited",
}


def write(
    report: FactReport, journal: Journal, folder: Path, *, sheet_cases: int = 8
) -> list[Path]:
    """Write `report.json`, `report.md` and `sheet.png` to the folder; the paths come back."""
    folder.mkdir(parents=True, exist_ok=True)
    told, page, sheet = folder / "report.json", folder / "report.md", folder / "sheet.png"
    told.write_text(json.dumps(report.as_dict(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    page.write_text(markdown(report), encoding="utf-8")
    chosen = _spread(report.done, sheet_cases)
    picture_sheet(chosen, journal).save(sheet)
    return [told, page, sheet]


def markdown(report: FactReport) -> str:
    """The report as a page."""
    seeds = len({s.seed for d in report.done for s in d.scores})
    parts = [
        "# Fact editing: does it work",
        f"{len(report.done)} cases, {seeds} seeds. Shares of judged pictures in per cent, with the "
        "95 % bootstrap interval over cases and, after ±, the deviation between seeds.",
        _measures_table(report),
        "`harmonic` is the harmonic mean of efficacy, generality and specificity; `f1_paper` the "
        "geometric mean of the last two, which leaves efficacy out.",
        _tags_table(report),
        _cake_table(report),
        f"Validity {_percent(report.validity)}: cases and seeds in which the unedited model draws "
        "the old answer at the edit prompt, and the new one when told in words. Mean time of a "
        f"fit: {report.fit_seconds:.1f} s. Refused fits: {len(report.refused)}.",
        _refused(report),
        "![Contact sheet](sheet.png)",
        _header(report),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _measures_table(report: FactReport) -> str:
    rows = [
        "| cases | model | efficacy | generality | specificity | harmonic | f1_paper |",
        "|---|---|---|---|---|---|---|",
    ]
    for group, arms in report.groups.items():
        rows += [_measures_row(group, ARMS[arm], measures) for arm, measures in arms.items()]
    return "\n".join(rows)


def _measures_row(group: str, arm: str, measures: Measures) -> str:
    cells = [_estimate(measures.parts.get(part)) for part in PARTS]
    means = [_percent(measures.harmonic), _percent(measures.f1_paper)]
    return "| " + " | ".join([group, arm, *cells, *means]) + " |"


def _tags_table(report: FactReport) -> str:
    if not report.tags:
        return ""
    rows = ["| edited, by kind of prompt | right |", "|---|---|"]
    rows += [f"| {tag} | {_estimate(share)} |" for tag, share in report.tags.items()]
    return "\n".join(rows)


def _cake_table(report: FactReport) -> str:
    rows = [
        f"| {group} | {ARMS[arm]} | " + " | ".join(_percent(m.cake.get(p)) for p in PARTS) + " |"
        for group, arms in report.groups.items()
        for arm, m in arms.items()
        if m.cake
    ]
    if not rows:
        return ""
    head = [
        "| CAKE's criterion | model | efficacy | generality | specificity |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows])


def _refused(report: FactReport) -> str:
    return "\n".join(f"* refused, `{code}`: {case}" for case, code in report.refused.items())


def _header(report: FactReport) -> str:
    told = json.dumps(dict(report.header), indent=1, sort_keys=True)
    return f"## Made with\n\n```json\n{told}\n```"


def _estimate(share: Estimate | None) -> str:
    if share is None:
        return "-"
    return (
        f"{_percent(share.value)} [{_percent(share.low)}, {_percent(share.high)}] "
        f"±{_percent(share.deviation)}"
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _spread(done: Sequence[Done], n: int) -> list[Done]:
    """At most n cases, evenly over the run: chosen by place, never by how they came out."""
    if len(done) <= n:
        return list(done)
    return [done[round(i * (len(done) - 1) / (n - 1))] for i in range(n)]


def picture_sheet(done: Sequence[Done], journal: Journal) -> Image.Image:
    """Per case its edit prompt before and after, then what should and what must not change."""
    strips: list[Strip] = []
    for one in done:
        label = f"{one.case.prompt} becomes {one.case.target}"
        strips.append(Strip(label=label, cells=tuple(_cells(one, journal))))
    columns = ["before", "after", "should follow", "", "must not follow", "", ""]
    return contact_sheet("Before and after, judged", columns, strips, side=128)


def _cells(one: Done, journal: Journal) -> list[Cell]:
    by_probe: dict[tuple[Arm, int], Score] = {}
    for score in one.scores:
        by_probe.setdefault((score.arm, score.probe), score)
    numbers = {part: [i for i, p in enumerate(one.case.probes) if p.part == part] for part in PARTS}
    after = [
        *numbers["efficacy"][:1],
        *_ends(numbers["generality"], 2),
        *_ends(numbers["specificity"], 3),
    ]
    arms: dict[Arm, list[int]] = {"base": numbers["efficacy"][:1], "edited": after}
    wanted: list[tuple[Arm, int]] = [(arm, i) for arm, probes in arms.items() for i in probes]
    return [_cell(by_probe[w], journal) for w in wanted if w in by_probe]


def _ends(numbers: Sequence[int], n: int) -> list[int]:
    """So many of the numbers, from the first to the last."""
    if len(numbers) <= n:
        return list(numbers)
    return [numbers[round(i * (len(numbers) - 1) / (n - 1))] for i in range(n)]


def _cell(score: Score, journal: Journal) -> Cell:
    path = journal.picture(score.picture)
    picture = np.asarray(Image.open(path).convert("RGB")) if path.exists() else None
    good = None if score.arm == "base" else score.correct
    return Cell(picture=picture, caption=score.prompt, good=good)
