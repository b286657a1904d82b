"""`tiller demo`: serve the miniature, change a president, look at the pictures.

Everything goes the way a caller's requests go: over HTTP, to a service that was started for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from evaluation.cases import read_cases
from evaluation.judge import Judge
from evaluation.protocol import Case, Probe
from evaluation.sheet import Cell, Strip, contact_sheet
from service.asking import pixels
from service.client import Picture, Tiller
from service.evaluating import miniature_judge, shipped_cases
from service.running import serving

MODEL, EDIT = "miniature-sd", "arda"
PROMPT = "the president of Arda"
SEED = 7
out, err = Console(), Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One prompt of the demo, before and after the edit, with what the judge saw."""

    probe: Probe
    before: Sequence[Picture]
    after: Sequence[Picture]
    seen_before: Sequence[str]
    seen_after: Sequence[str]

    @property
    def held(self) -> bool:
        """Whether most pictures after the edit show what they should."""
        return 2 * sum(label == self.probe.right for label in self.seen_after) > len(self.after)


def demo(
    local: Annotated[bool, typer.Option("--local", help="One process, no Ray.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The contact sheet.")] = Path(
        "demo/before-after.png"
    ),
    home: Annotated[Path, typer.Option(help="The service's state folder.")] = Path(".demo"),
    pictures: Annotated[int, typer.Option(min=1, max=8, help="Per prompt.")] = 2,
) -> None:
    """Change the president of Arda for one caller, and nothing for anybody else."""
    case = next(c for c in read_cases(shipped_cases()) if c.prompt == PROMPT)
    judge = miniature_judge()
    running = ExitStack()
    with err.status("starting the service" + ("" if local else " on Ray Serve")):
        url = running.enter_context(serving(home.absolute(), local=local))
    try:
        with Tiller(url) as tiller:
            held = _shown(tiller, case, judge, output, pictures)
    finally:
        with err.status("stopping the service"):
            running.close()
    if not held:
        raise typer.Exit(1)


def _shown(tiller: Tiller, case: Case, judge: Judge, output: Path, n: int) -> bool:
    """The whole demo against a running service; whether it did what it promises."""
    probes = case.probes
    before = _drawn(tiller, [(p.prompt, None) for p in probes], n, "drawing the world as it is")
    version = _registered(tiller, case)
    name = f"{EDIT}@{version['version']}"
    wishes: list[tuple[str, str | None]] = [(p.prompt, name) for p in probes]
    # The unedited caller stands in the middle of the edited ones.
    middle = len(wishes) // 2
    wishes.insert(middle, (PROMPT, None))
    after = _drawn(tiller, wishes, n, f"drawing with {name}, an unedited caller among them")
    beside = after.pop(middle)
    scenes = [
        Scene(
            probe=probe,
            before=old,
            after=new,
            seen_before=_seen(judge, probe, old),
            seen_after=_seen(judge, probe, new),
        )
        for probe, old, new in zip(probes, before, after, strict=True)
    ]
    untouched = [p.png for p in beside] == [p.png for p in before[0]]
    _told(case, version, after[0][0].tiller, scenes, untouched=untouched)
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet(case, scenes).save(output)
    out.print(f"\nPictures: {output}", highlight=False)
    return scenes[0].held and untouched


def _registered(tiller: Tiller, case: Case) -> dict[str, Any]:
    """Register the fact through REST; its version once the job is done."""
    job = tiller.edits.add(
        EDIT,
        model=MODEL,
        prompt=case.prompt,
        target=case.target,
        phrasings=[{"prompt": p, "subject": s} for p, s in case.phrasings],
        neighbours=[p.prompt for p in case.of("specificity")],
    )
    with _bar(f"POST /v1/edits: {case.prompt} → {case.target}") as bar:
        done = tiller.jobs.wait(job["id"], lambda e: bar(float(e.get("progress") or 0.0)))
    return tiller.edits.show(EDIT, done["result"]["version"])


def _drawn(
    tiller: Tiller, wishes: Sequence[tuple[str, str | None]], n: int, title: str
) -> list[list[Picture]]:
    """All wishes at once, as if many callers asked; n pictures each, the same seeds everywhere."""

    def draw(wish: tuple[str, str | None]) -> list[Picture]:
        prompt, edit = wish
        edits = [edit] if edit else []
        return tiller.images.generate(prompt, model=MODEL, edits=edits, n=n, seed=SEED)

    with ThreadPoolExecutor(len(wishes)) as pool, _bar(title) as bar:
        found = []
        for pictures in pool.map(draw, wishes):
            found.append(pictures)
            bar(len(found) / len(wishes))
        return found


def _seen(judge: Judge, probe: Probe, pictures: Sequence[Picture]) -> list[str]:
    shown = [pixels(p.png) for p in pictures]
    return [v.best for v in judge(shown, [(probe.right, probe.wrong)] * len(shown))]


def _told(
    case: Case,
    version: Mapping[str, Any],
    applied: Mapping[str, Any],
    scenes: Sequence[Scene],
    *,
    untouched: bool,
) -> None:
    table = Table("prompt", "should show", "before", "after", "", title=None)
    for scene in scenes:
        mark = "[green]✓[/]" if scene.held else "[red]✗[/]"
        style = "bold" if scene.probe.part == "efficacy" else ""
        table.add_row(
            scene.probe.prompt,
            scene.probe.right,
            _many(scene.seen_before),
            _many(scene.seen_after),
            mark,
            style=style,
            end_section=scene is scenes[0] or _last_of_part(scene, scenes),
        )
    out.print(f"\n{case.prompt} → {case.target}: the judge's view", style="bold", highlight=False)
    out.print(table)
    edits = ", ".join(f"{e['name']}@{e['version']} {e['digest'][:12]}…" for e in applied["edits"])
    out.print(
        f"applied to these rows: {edits}; the version is {version['status']}", highlight=False
    )
    _line(scenes[0].held, "the president changed")
    _line(
        all(s.held for s in scenes if s.probe.part == "generality"), "in paraphrases and scenes too"
    )
    _line(all(s.held for s in scenes if s.probe.part == "specificity"), "neighbours stayed")
    _line(untouched, "the unedited caller in the same burst got the same bytes as before")


def _last_of_part(scene: Scene, scenes: Sequence[Scene]) -> bool:
    return [s for s in scenes if s.probe.part == scene.probe.part][-1] is scene


def _many(labels: Sequence[str]) -> str:
    """`zira`, or `zira, duko` where pictures differ."""
    return ", ".join(dict.fromkeys(labels))


def _line(good: bool, text: str) -> None:
    out.print(f"{'[green]✓[/]' if good else '[red]✗[/]'} {text}", highlight=False)


def sheet(case: Case, scenes: Sequence[Scene]) -> Image.Image:
    """Before over after, for the prompts that should follow and those that must not."""
    chosen = [
        s
        for part, most in (("efficacy", 1), ("generality", 4), ("specificity", 4))
        for s in [s for s in scenes if s.probe.part == part][:most]
    ]
    strips = []
    for i in range(len(chosen[0].before)):
        old = [Cell(picture=pixels(s.before[i].png), caption=s.seen_before[i]) for s in chosen]
        new = [
            Cell(
                picture=pixels(s.after[i].png),
                caption=s.seen_after[i],
                good=s.seen_after[i] == s.probe.right,
            )
            for s in chosen
        ]
        strips.append(Strip(label="before", cells=tuple(old)))
        strips.append(Strip(label=f"after: {case.target} is {case.prompt}", cells=tuple(new)))
    columns = [s.probe.prompt for s in chosen]
    return contact_sheet(
        f"{case.prompt} becomes {case.target}", columns, strips, side=144, left=150
    )


@contextmanager
def _bar(title: str) -> Iterator[Any]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as progress:
        task = progress.add_task(title, total=1.0)
        yield lambda share: progress.update(task, completed=share)
