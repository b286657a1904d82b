"""A study of back-patching on paper: JSON, Markdown beside the paper's table, two plots."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.backpatch.report import CLUSTERS, PAPER, percent, table, write_calibration
from evaluation.backpatch.shares import Share
from evaluation.backpatch.study import Finding, StudyReport

PAPER_MODELS = ("Qwen2-VL-7B", "Pixtral-12B", "Gemma-3-12B")


@dataclass(frozen=True)
class Told:
    """What the paper prints of a task and a model (Nikankin et al. 2025, Tables 1, 4 and 7)."""

    text: float
    image: float
    patched: float
    deviation: float
    plan: str


PAPER_TASKS: dict[str, tuple[Told, Told, Told]] = {
    "counting": (
        Told(79.3, 70.8, 75.0, 1.9, "20→15 w3"),
        Told(49.3, 66.1, 68.3, 1.1, "28→23 w5"),
        Told(89.3, 73.4, 75.4, 2.1, "36→5 w3"),
    ),
    "arithmetic": (
        Told(99.2, 67.5, 76.9, 1.3, "11→7 w3"),
        Told(25.7, 22.7, 29.4, 1.6, "37→10 w5"),
        Told(99.0, 87.5, 94.2, 0.7, "32→5 w1"),
    ),
    "spatial order": (
        Told(86.8, 74.2, 74.8, 0.6, "18→15 w1"),
        Told(77.4, 80.6, 84.7, 1.4, "32→22 w5"),
        Told(76.1, 46.0, 47.5, 0.9, "34→24 w1"),
    ),
    "factual recall": (
        Told(73.5, 68.1, 69.7, 2.2, "11→6 w5"),
        Told(83.4, 45.0, 49.1, 2.3, "32→18 w5"),
        Told(80.7, 66.5, 68.6, 1.8, "34→20 w5"),
    ),
    "sentiment": (
        Told(97.4, 92.6, 94.8, 1.4, "15→5 w5"),
        Told(98.3, 69.7, 87.4, 2.2, "37→19 w5"),
        Told(98.7, 92.6, 98.0, 0.9, "23→3 w5"),
    ),
}


_PUNCTUATION = re.compile(r"[^\w.]+")
"""What a folder is not named with."""


def write_study(report: StudyReport, folder: Path) -> list[Path]:
    """Write `study.json`, `study.md`, `accuracy.png`, `alignment.png`, and a folder a task."""
    folder.mkdir(parents=True, exist_ok=True)
    told, page = folder / "study.json", folder / "study.md"
    told.write_text(json.dumps(report.as_dict(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    page.write_text(study_markdown(report), encoding="utf-8")
    written = [told, page, folder / "accuracy.png"]
    accuracy_plot(report.findings, written[-1])
    if any(one.alignment for one in report.findings):
        written.append(folder / "alignment.png")
        alignment_plot(report.findings, written[-1])
    for one in report.findings:
        written += write_calibration(one.calibration, folder / _PUNCTUATION.sub("-", one.name))
    return written


def study_markdown(report: StudyReport) -> str:
    """The report as a page."""
    header = json.dumps(dict(report.header), indent=1, sort_keys=True)
    parts = [
        "# Does back-patching make it see better?",
        report.verdict,
        "Accuracies in per cent of the half of each task's examples that chose nothing, with the "
        f"95 % bootstrap interval over clusters ({CLUSTERS}); the gain is paired by example. Where "
        "chosen: the same plan's gain on the half where it was the best of all. Gap closed: only "
        "where hardly any bootstrap draw is without a gap. Of several tasks at 95 %, one in twenty "
        "moves by chance.",
        _table(report.findings),
        _controls(report.findings),
        "![Words, pictures, and pictures with back-patching](accuracy.png)",
        _beside(report.findings),
        _alignment(report.findings),
        PAPER,
        f"## Made with\n\n```json\n{header}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(findings: Sequence[Finding]) -> str:
    heads = ["task", "words", "pictures", "with back-patching", "gain", "plan"]
    heads += ["where chosen", "words ahead", "gap closed", "examples", "clusters"]
    rows = []
    for one in findings:
        told, side = one.calibration, one.calibration.image
        gap = told.gap
        rows.append(
            [
                one.name,
                "-" if told.text is None else percent(told.text.plain),
                percent(side.plain),
                percent(side.patched),
                percent(side.gain, sign=True),
                f"{side.place.source}→{side.place.target} w{side.place.window}",
                f"{100 * one.chosen_gain:+.1f}",
                "-" if gap is None else percent(gap.ahead, sign=True),
                "-" if gap is None or gap.closed is None else f"{percent(gap.closed)} %",
                str(side.gain.examples),
                str(side.gain.clusters),
            ]
        )
    return table(heads, rows)


def _controls(findings: Sequence[Finding]) -> str:
    """The same in words: the best plan there, and the pictures' plan."""
    rows = []
    for one in findings:
        words, same = one.calibration.text, one.calibration.same_in_text
        if words is not None and same is not None:
            plan = f"{words.place.source}→{words.place.target} w{words.place.window}"
            gains = [percent(share, sign=True) for share in (words.gain, same)]
            rows.append([one.name, gains[0], plan, gains[1]])
    if not rows:
        return ""
    heads = ["task", "gain of the best plan in words", "plan", "gain of the pictures' plan there"]
    return "## The control: the same in words\n\n" + table(heads, rows)


def _beside(findings: Sequence[Finding]) -> str:
    """Words / pictures -> with back-patching, here and in the paper."""
    rows = []
    for one in findings:
        if one.paper is not None:
            side, words = one.calibration.image, one.calibration.text
            here = Told(
                100 * (words.plain.value if words else float("nan")),
                100 * side.plain.value,
                100 * side.patched.value,
                100 * (side.gain.high - side.gain.low) / 3.92,
                f"{side.place.source}→{side.place.target} w{side.place.window}",
            )
            rows.append([f"{one.name} ({one.paper})", *map(_cell, (here, *PAPER_TASKS[one.paper]))])
    if not rows:
        return ""
    heads = ["task (the paper's)", "here", *PAPER_MODELS]
    said = (
        "Words / pictures → with back-patching ± deviation (plan). The paper's plans were chosen "
    )
    said += "on the prompts that are told; these are other models, pictures and sizes."
    return f"## Beside the paper\n\n{said}\n\n" + table(heads, rows)


def _cell(told: Told) -> str:
    text = "-" if np.isnan(told.text) else f"{told.text:.1f}"
    return f"{text} / {told.image:.1f} → {told.patched:.1f} ± {told.deviation:.1f} ({told.plan})"


def _alignment(findings: Sequence[Finding]) -> str:
    aligned = [(one.name, one.alignment) for one in findings if one.alignment is not None]
    if not aligned:
        return ""
    layers = len(aligned[0][1].same_layer)
    shown = sorted({0, layers // 4, layers // 2, 3 * layers // 4, layers - 1})
    rows = [
        [
            name,
            *(percent(of.same_layer[layer]) for layer in shown),
            percent(of.last_layer[layers // 2]),
            f"{100 * of.rise:+.1f}",
            str(of.examples),
        ]
        for name, of in aligned
    ]
    heads = ["task", *(f"layer {layer}" for layer in shown)]
    heads += [f"layer {layers // 2}, words of the last", "rise", "examples"]
    said = (
        "How often a picture's tokens are nearer to the words that tell it than to those of "
        "another picture, both behind the same decoder layer (chance: 50 %). Nearer: a higher mean "
        "cosine over all pairs of a visual token and a word, each form freed of its mean in that "
        "layer. Rise: the best layer of the later half less layer 0. The paper explains "
        "back-patching by visual tokens that become like words in late layers only."
    )
    title = "## Do visual tokens become like words?"
    picture = "![Alignment by layer](alignment.png)"
    return "\n\n".join([title, said, table(heads, rows), picture])


def accuracy_plot(findings: Sequence[Finding], file: Path) -> None:
    """Words, pictures and patched pictures of each task, with intervals."""
    figure, axes = _figure(1.6 + 1.5 * len(findings))
    kinds = [("words", "#8c8c8c"), ("pictures", "#4c72b0"), ("with back-patching", "#dd8452")]
    for at, (kind, colour) in enumerate(kinds):
        shares = [_shares(one)[at] for one in findings]
        places = [i + 0.27 * (at - 1) for i, share in enumerate(shares) if share is not None]
        told = [share for share in shares if share is not None]
        if not told:
            continue
        ends = [[s.value - s.low for s in told], [s.high - s.value for s in told]]
        axes.bar(places, [s.value for s in told], 0.25, yerr=ends, color=colour, label=kind)
    axes.set_xticks(range(len(findings)), [one.name for one in findings])
    axes.set(ylabel="accuracy, reported half", ylim=(0, 1.02))
    figure.legend(fontsize="small", frameon=False, ncols=3, loc="outside upper center")
    figure.savefig(file, dpi=100)


def _shares(one: Finding) -> tuple[Share | None, Share, Share]:
    words, side = one.calibration.text, one.calibration.image
    return (None if words is None else words.plain), side.plain, side.patched


def alignment_plot(findings: Sequence[Finding], file: Path) -> None:
    """How often a picture is nearest to its own words, by decoder layer."""
    figure, axes = _figure(7.2)
    for one in findings:
        if one.alignment is None:
            continue
        told = one.alignment.same_layer
        layers = range(len(told))
        line = axes.plot(layers, [share.value for share in told], marker="o", label=one.name)[0]
        ends = [share.low for share in told], [share.high for share in told]
        axes.fill_between(layers, *ends, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="decoder layer", ylabel="nearer to its own words", ylim=(0.3, 1.0))
    axes.grid(visible=True, alpha=0.25)
    axes.legend(fontsize="small", frameon=False)
    figure.savefig(file, dpi=100)


def _figure(width: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot(1, 1, 1)
