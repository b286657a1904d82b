"""A calibration on paper: JSON for programs, Markdown with the verdict, heat maps of the grid."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from evaluation.backpatch.calibration import CalibrationReport, Side
from evaluation.backpatch.shares import Gap, Share

PAPER = """## What the paper found

Nikankin et al. 2025: the best plan of several hundred gains 4.7 points on average and closes about
30 % of the gap to words, chosen and reported on the same prompts and scored by the answer's first
token among a set of labels. Gains there are upper bounds; here the reported half chose nothing."""


def write_calibration(report: CalibrationReport, folder: Path) -> list[Path]:
    """Write `calibration.json`, `calibration.md` and a heat map for each form; where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    told, page = folder / "calibration.json", folder / "calibration.md"
    told.write_text(json.dumps(report.as_dict(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sides = [side for side in (report.image, report.text) if side is not None]
    plots = [folder / f"grid-{side.form}.png" for side in sides]
    page.write_text(calibration_markdown(report), encoding="utf-8")
    for side, plot in zip(sides, plots, strict=True):
        heat_map(side, report.layers, plot)
    return [told, page, *plots]


def calibration_markdown(report: CalibrationReport) -> str:
    """The report as a page."""
    header = json.dumps(dict(report.header), indent=1, sort_keys=True)
    sides = [side for side in (report.image, report.text) if side is not None]
    parts = [
        "# Does back-patching help?",
        report.verdict,
        "Accuracies of the half of the examples that nothing was chosen on, with the 95 % "
        f"bootstrap interval over clusters: {CLUSTERS}. Best where chosen: the same plan where it "
        f"was the best of {len(report.image.tried)}, too good by that choice.",
        table(_HEADS, [_line(side) for side in sides]),
        _beside(report),
        *(f"![Accuracy over source and target](grid-{side.form}.png)" for side in sides),
        _dropped(report),
        PAPER,
        f"## Made with\n\n```json\n{header}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_HEADS = ["", "plan", "unpatched", "patched", "gain", "best where chosen", "examples", "clusters"]
CLUSTERS = "examples that show one thing in common are drawn together"


def _line(side: Side) -> list[str]:
    place = side.place
    plan = f"{place.source} → {place.target}, window {place.window}"
    shares = [percent(share) for share in (side.plain, side.patched, side.gain, side.chosen_on)]
    return [side.form, plan, *shares, str(side.gain.examples), str(side.gain.clusters)]


def percent(share: Share, *, sign: bool = False) -> str:
    """In per cent, with its interval."""
    form = "{:+.1f} [{:+.1f}, {:+.1f}]" if sign else "{:.1f} [{:.1f}, {:.1f}]"
    return form.format(100 * share.value, 100 * share.low, 100 * share.high)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    cells = [list(heads), ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _beside(report: CalibrationReport) -> str:
    said = []
    if report.same_in_text is not None:
        gained = percent(report.same_in_text, sign=True)
        said.append(f"The image plan in words: {gained} points.")
    if report.gap is not None:
        said += _closed(report.gap)
    said.append(
        f"{report.answered} answers were asked for, unpatched ones among them; the whole grid has "
        f"{report.full_grid}. A patched one takes two passes when it is asked for alone."
    )
    return " ".join([*said, *_left_out(report)])


def _left_out(report: CalibrationReport) -> Iterator[str]:
    """Plans that a budget of answers had no room for."""
    for side in (report.image, report.text):
        if side is not None and side.left_out:
            plans = len(side.tried) + side.left_out
            yield (
                f"{side.left_out} of {plans} plans were left out by lot ({side.form}): choosing "
                f"may ask for {report.settings.most} answers."
            )


def _closed(gap: Gap) -> list[str]:
    """How far words are ahead, and how much of that is closed, or why nobody can say."""
    ahead = f"Words are ahead by {percent(gap.ahead, sign=True)} points."
    if gap.closed is None:
        return [ahead, f"How much of that is closed cannot be said: {gap.reason}."]
    closed = f"Of that it closes {percent(gap.closed)} %"
    return [ahead, f"{closed}; {gap.without} of {gap.draws} bootstrap draws had no gap."]


def _dropped(report: CalibrationReport) -> str:
    if not report.dropped:
        return ""
    lines = [f"- {d.id}: {d.reason}" for d in report.dropped[:20]]
    more = len(report.dropped) - len(lines)
    return "\n".join(["## Not used", "", *lines, *([f"- and {more} more"] if more > 0 else [])])


def heat_map(side: Side, layers: int, path: Path) -> None:
    """Accuracy over source and target for each window, as the choosing part saw it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    windows = sorted({tried.place.window for tried in side.tried})
    figure = Figure(figsize=(1.2 + 3.6 * len(windows), 3.8), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(1, len(windows), squeeze=False)[0])
    asked = [tried for tried in side.tried if tried.examples]
    low, high = min(t.accuracy for t in asked), max(t.accuracy for t in asked)
    drawn = None
    for axis, window in zip(axes, windows, strict=True):
        grid = np.full((layers, layers), np.nan)
        for tried in asked:
            if tried.place.window == window:
                grid[tried.place.target, tried.place.source] = tried.accuracy
        drawn = axis.imshow(
            grid,
            origin="lower",
            cmap="viridis",
            vmin=low,
            vmax=max(high, low + 1e-6),
        )
        axis.set(title=f"window {window}", xlabel="source layer", ylabel="target layer")
        if side.place.window == window:
            axis.plot(side.place.source, side.place.target, "r*", markersize=12)
    if drawn is not None:
        figure.colorbar(drawn, ax=list(axes), label=f"accuracy ({side.form}), choosing half")
    figure.savefig(path)
