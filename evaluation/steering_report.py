"""A steering report on paper: JSON for programs, Markdown with the table, scores against depth."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.steering_result import Depth, Line, Result, SteeringReport, depth_told

PAPER = """## What the papers found

Arad et al. 2025 on AxBench, Gemma-2-9B-it: 0.293 unfiltered, 0.546 with output score >= 0.1 at
layer 20 (1.9x), 0.387 and 0.470 at layer 31 (1.2x); "2-3x" is against other published figures. An
independent replication (arXiv 2510.03659): 1.7 to 1.8x with one judge. Prompting won everywhere.
Output scores are high in the last third of the depth, input scores in the first half. These are
other models, judges and scales: compare ratios and order, not numbers."""


def write_steering(report: SteeringReport, folder: Path) -> list[Path]:
    """Write `steering.json`, `steering.md` and `steering.png` to the folder; where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    told, page, picture = (folder / f"steering.{end}" for end in ("json", "md", "png"))
    told.write_text(json.dumps(report.as_dict(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    page.write_text(steering_markdown(report), encoding="utf-8")
    plot(report, picture)
    return [told, page, picture]


def steering_markdown(report: SteeringReport) -> str:
    """The report as a page."""
    settings, half = report.settings, len(report.settings.openers) // 2
    header = json.dumps(dict(report.header), indent=1, sort_keys=True)
    chance = float(np.mean(list(report.plain.values())))
    parts = [
        "# Does steering work?",
        f"{len(report.topics)} topics; texts of {settings.tokens} new tokens at temperature "
        f"{settings.temperature:g} behind neutral openers. {len(settings.openers) - half} openers "
        f"choose the strength of each way, the other {half} are reported. Score: harmonic mean of "
        "success (the judge finds the topic) and coherence (likelihood under the unsteered model "
        "times variety), with the 95 % bootstrap interval over topics. Lens tokens: how many of "
        "the new tokens are among the feature's 20. Topics and kept: what a filter leaves. Ratio: "
        "to the unfiltered features of all topics.",
        _table(report.lines),
        f"Unsteered, {100 * chance:.1f} % of the texts are about a given topic.",
        _depth_table(report),
        _samples(report.results),
        PAPER,
        "![Scores against depth](steering.png)",
        f"## Made with\n\n```json\n{header}\n```",
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _table(lines: Sequence[Line]) -> str:
    heads = ["", "score", "success", "coherence", "lens tokens", "topics", "kept", "ratio"]
    return "\n".join([_cells(heads), _cells(["---"] * len(heads)), *map(_line, lines)])


def _line(line: Line) -> str:
    if line.score is None:
        return _cells([line.name, *["-"] * 4, "0", "0 %", "-"])
    score = f"{line.score.value:.3f} [{line.score.low:.3f}, {line.score.high:.3f}]"
    ratio = "-"
    if line.ratio is not None:
        ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*line.ratio)
    shares = [f"{100 * share:.0f} %" for share in (line.success, line.coherence)]
    kept = f"{100 * line.kept:.0f} %"
    return _cells([line.name, score, *shares, f"{line.hits:.2f}", str(line.topics), kept, ratio])


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _depth_table(report: SteeringReport) -> str:
    if not report.depths:
        return ""
    heads = ["dictionary", "layer", "features", "usable", "strong", "median", "90 %", "input score"]
    rows = []
    for told in (depth_told(depth, report.settings) for depth in report.depths):
        mean = "-" if told["input_mean"] is None else f"{told['input_mean']:.3f}"
        rows.append(
            _cells(
                [
                    told["dictionary"],
                    str(told["layer"]),
                    str(told["features"]),
                    f"{100 * told['usable']:.0f} %",
                    f"{100 * told['strong']:.0f} %",
                    f"{told['output_median']:.1e}",
                    f"{told['output_90']:.2g}",
                    mean,
                ]
            )
        )
    title = "## Scores of all features, by depth\n"
    return "\n".join([title, _cells(heads), _cells(["---"] * len(heads)), *rows])


_SAMPLES = 8


def _samples(results: Sequence[Result]) -> str:
    best = sorted((r for r in results if r.kind == "feature"), key=lambda r: -r.score)
    seen: dict[str, Result] = {}
    for result in best:
        seen.setdefault(result.topic, result)
    rows = [
        _cells([r.topic, r.name, f"{r.strength:g}", " ".join(r.sample.split())])
        for r in list(seen.values())[:_SAMPLES]
    ]
    if not rows:
        return ""
    heads = _cells(["topic", "feature", "strength", "a text"])
    return "\n".join(["## Samples\n", heads, _cells(["---"] * 4), *rows])


def plot(report: SteeringReport, file: Path) -> None:
    """Output and input scores of all features against depth."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for place, what in enumerate(("output", "input"), start=1):
        axes = figure.add_subplot(1, 2, place)
        for kind, depths in _kinds(report.depths).items():
            _curve(axes, kind, depths, what)
        axes.set(xlabel="depth (layer / layers)", title=f"{what} score", xlim=(0, 1.05))
        axes.set(ylim=(-0.02, 1.02), ylabel="median, and from 10 % to 90 %")
        axes.grid(visible=True, alpha=0.25)
        if report.depths:
            axes.legend(fontsize="small", frameon=False)
    figure.savefig(file, dpi=110)


def _kinds(depths: Sequence[Depth]) -> dict[str, list[Depth]]:
    """Dictionaries of one kind: what their names have behind the last dash."""
    found: dict[str, list[Depth]] = {}
    for depth in sorted(depths, key=lambda d: d.depth):
        found.setdefault(depth.dictionary.rpartition("-")[2], []).append(depth)
    return found


def _curve(axes: Any, kind: str, depths: Sequence[Depth], what: str) -> None:
    told = [(d.depth, [s for s in getattr(d, what) if s is not None]) for d in depths]
    places = [place for place, values in told if values]
    ends = [np.percentile(values, [10, 50, 90]) for _, values in told if values]
    if not ends:
        return
    low, middle, high = np.array(ends).T
    line = axes.plot(places, middle, marker="o", label=kind)[0]
    axes.fill_between(places, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
