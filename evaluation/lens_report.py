"""A lens report on paper: JSON for programs, Markdown with tables, curves to look at."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluation.lens import ALL_RIGHT, Arm, Curve, Halfway, LensReport
from evaluation.protocol import Estimate

PAPER = """## What the paper found

Toker et al. 2024 on Stable Diffusion 2.1 (CLIP text encoder, 23 layers): share of pictures, in per
cent, that people judged right in the released annotations.

| layer | 3 | 7 | 11 | 15 | 19 | 23 |
|---|---|---|---|---|---|---|
| one object | 12 | 52 | 76 | 81 | 95 | 97 |
| one coloured object | 3 | 11 | 25 | 34 | 39 | 89 |
| two coloured objects, all right | 0 | 1 | 0 | 11 | 18 | 37 |
| common animal | 8 | 22 | 46 | 65 | 93 | 96 |
| uncommon animal | 3 | 4 | 23 | 57 | 74 | 89 |
| famous person: is human | 26 | 97 | 100 | 98 | 99 | 100 |
| famous person: that person | 0 | 3 | 7 | 15 | 54 | 60 |

Single objects pass 50 % at layer 7 of 23; colours that must be bound and relations come in the last
third, identity in the last few layers. Uncommon animals trail common ones by about four layers (8
to 12 in DeepFloyd IF's T5). These are other models and other judges: compare the order, not the
numbers."""

INK = {
    "object": "#1f77b4",
    "colour": "#d62728",
    "default colour": "#8c564b",
    "scene": "#2ca02c",
    "human": "#9467bd",
    "identity": "#ff7f0e",
    "new fact": "#2ca02c",
    "old fact": "#7f7f7f",
    ALL_RIGHT: "#222222",
}


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """A claim of the paper about which of two curves rises first, and what this run shows.

    Attributes:
        claim: In words.
        earlier: Where the curve that should rise first passes half of its final value.
        later: Where the other does.
    """

    claim: str
    earlier: Halfway
    later: Halfway

    @property
    def verdict(self) -> str:
        """What this run says of it."""
        if self.earlier.layer is None or self.later.layer is None:
            return "one of them is never right"
        if self.earlier.layer == self.later.layer:
            return "same layer"
        found = "as in the paper" if self.earlier.layer < self.later.layer else "the other way"
        return f"{found}, but the intervals overlap" if self._overlap else found

    @property
    def _overlap(self) -> bool:
        ends = self.earlier.low, self.earlier.high, self.later.low, self.later.high
        low, high, other_low, other_high = (-1 if end is None else end for end in ends)
        return low <= other_high and other_low <= high


CLAIMS = (
    ("an object before the colours of a compound", ("simple", "object"), ("compound", "colour")),
    ("the colours of a compound before identity", ("compound", "colour"), ("simple", "identity")),
    ("an object before the same in a compound", ("simple", "object"), ("compound", "object")),
    ("a colour before the same in a compound", ("simple", "colour"), ("compound", "colour")),
    ("a human before who it is", ("simple", "human"), ("simple", "identity")),
    ("common people before rare ones", ("common", "identity"), ("rare", "identity")),
    ("simple prompts before compound ones", ("simple", "prompt"), ("compound", "prompt")),
    ("common prompts before rare ones", ("common", "prompt"), ("rare", "prompt")),
)


def orderings(report: LensReport) -> list[Ordering]:
    """Those of the paper's claims about which this run can say something."""
    found = []
    for claim, first, second in CLAIMS:
        earlier, later = report.curve(*first), report.curve(*second)
        if earlier and later:
            found.append(Ordering(claim=claim, earlier=earlier.halfway, later=later.halfway))
    return found


def write_lens(report: LensReport, folder: Path) -> list[Path]:
    """Write `lens.json`, `lens.md` and `lens.png` to the folder; the paths come back."""
    folder.mkdir(parents=True, exist_ok=True)
    told, page, curves = (folder / f"lens.{end}" for end in ("json", "md", "png"))
    plain = report.as_dict() | {
        "orderings": [asdict(o) | {"verdict": o.verdict} for o in orderings(report)]
    }
    told.write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    page.write_text(lens_markdown(report), encoding="utf-8")
    plot(report, curves)
    return [told, page, curves]


def lens_markdown(report: LensReport) -> str:
    """The report as a page."""
    seeds = len({s.seed for d in report.done for s in d.scores})
    arms: dict[Arm, None] = dict.fromkeys(c.arm for c in report.curves)
    header = json.dumps(dict(report.header), indent=1, sort_keys=True)
    parts = [
        "# What the text encoder knows, layer by layer",
        f"{len(report.done)} prompts, {seeds} seeds, layers {report.layers[0]} to "
        f"{report.layers[-1]}. Shares of judged pictures in per cent, with the 95 % bootstrap "
        "interval over prompts. Half-way is the first layer at which a curve passes half of its "
        f"final value. `{ALL_RIGHT}`: every question about the picture at once.",
        *(_table(report, arm) for arm in arms),
        _orderings_table(report),
        PAPER,
        "![Curves](lens.png)",
        f"## Made with\n\n```json\n{header}\n```",
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _table(report: LensReport, arm: Arm) -> str:
    heads = ["prompts", "question", *(f"layer {n}" for n in report.layers), "half-way"]
    rows = [_row(c) for c in _worth_showing(report.curves) if c.arm == arm]
    title = "## With the edits" if arm == "edited" else "## Shares"
    return "\n".join([f"{title}\n", _cells(heads), _cells(["---"] * len(heads)), *rows])


def _worth_showing(curves: Sequence[Curve]) -> list[Curve]:
    """Without `all right` where it says the same as a question by itself."""
    singly = {(c.arm, c.of, c.shares) for c in curves if c.question != ALL_RIGHT}
    return [c for c in curves if c.question != ALL_RIGHT or (c.arm, c.of, c.shares) not in singly]


def _row(curve: Curve) -> str:
    pictures = f"{curve.of} ({curve.shares[0].rows})"
    shares = [_share(e) for e in curve.shares]
    return _cells([pictures, curve.question, *shares, _halfway(curve.halfway)])


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _share(share: Estimate) -> str:
    return f"{100 * share.value:.0f} [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _halfway(halfway: Halfway) -> str:
    return "-" if halfway.layer is None else f"{halfway.layer} [{halfway.low}, {halfway.high}]"


def _orderings_table(report: LensReport) -> str:
    found = orderings(report)
    if not found:
        return ""
    rows = [_cells([o.claim, _halfway(o.earlier), _halfway(o.later), o.verdict]) for o in found]
    head = _cells(["the paper's order", "half-way of the first", "of the second", "here"])
    return "\n".join(["## The paper's order, here\n", head, _cells(["---"] * 4), *rows])


def plot(report: LensReport, file: Path) -> None:
    """Curves with their intervals, a panel per comparison."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    panels = {title: lines for title, lines in _panels(report).items() if lines}
    figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for label, (curve, style) in lines.items():
            _draw(axes, report.layers, label, curve, style)
        axes.set(title=title, xlabel="layer of the text encoder", ylim=(-3, 103))
        axes.set_xticks(report.layers)
        axes.grid(visible=True, alpha=0.25)
        axes.legend(fontsize="small", frameon=False)
        if place == 1:
            axes.set_ylabel("pictures that are right, %")
    figure.savefig(file, dpi=110)


_Lines = dict[str, tuple[Curve, Mapping[str, str]]]


def _panels(report: LensReport) -> dict[str, _Lines]:
    """What stands beside what."""
    plain = {c.question: c for c in report.curves if (c.arm, c.of) == ("unedited", "all")}
    panels = {
        "all prompts, by question": {
            q: (c, _ink(q)) for q, c in plain.items() if q != ALL_RIGHT or len(plain) == 2
        },
        "simple against compound": _against(report, "simple", "compound", identity=False),
        "common against rare": _against(report, "common", "rare", identity=True),
    }
    if any(c.arm == "edited" for c in report.curves):
        panels["with the edits"] = _before_after(report)
    return panels


def _against(report: LensReport, first: str, second: str, *, identity: bool) -> _Lines:
    """Each question that both sides were asked, drawn through and dashed."""
    found: _Lines = {}
    for curve in report.curves:
        asked = curve.question == "identity" if identity else curve.question != ALL_RIGHT
        other = report.curve(second, curve.question)
        if (curve.arm, curve.of) == ("unedited", first) and other and (asked or _is_list(curve)):
            ink = _ink(curve.question)
            found[f"{curve.question}, {first}"] = curve, ink
            found[f"{curve.question}, {second}"] = other, {**ink, "linestyle": "--"}
    return found


def _is_list(curve: Curve) -> bool:
    return curve.question == "prompt"


def _before_after(report: LensReport) -> _Lines:
    found: _Lines = {}
    for curve in report.curves:
        if curve.of == "all" and curve.question != ALL_RIGHT:
            style = _ink(curve.question)
            dashed = {} if curve.arm == "edited" else {"linestyle": "--"}
            found[f"{curve.question}, {curve.arm}"] = curve, {**style, **dashed}
    return found


def _ink(question: str) -> Mapping[str, str]:
    return {"color": INK.get(question, "#17becf")}


def _draw(
    axes: Any, layers: Sequence[int], label: str, curve: Curve, style: Mapping[str, str]
) -> None:
    axes.plot(layers, [100 * e.value for e in curve.shares], label=label, marker="o", **style)
    low, high = ([100 * getattr(e, end) for e in curve.shares] for end in ("low", "high"))
    axes.fill_between(layers, low, high, color=style["color"], alpha=0.12, linewidth=0)
