"""`tiller evaluate`: the protocols of `evaluation`, run against a service."""

import io
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import editors.progress
from evaluation.cases import read_cases
from evaluation.errors import FitRefused
from evaluation.facts import Drawing, FactReport, FactSettings, Fitted, evaluate_facts
from evaluation.judge import Judge, Picture, Verdict
from evaluation.protocol import Case, Journal
from evaluation.report import markdown, write
from service.client import Tiller, TillerError
from service.running import serving

app = typer.Typer(no_args_is_help=True, help="Does it work: measured on judged pictures.")
out, err = Console(), Console(stderr=True)

AT_ONCE = 4
"""Requests under way at a time; each asks for the pictures of all seeds."""
PATIENCE_SECONDS = 120.0
EDIT = "evaluation"
"""One edit with a version per case, so that no case is another's neighbour in the registry."""


class ServiceSide:
    """Fits and draws through REST, as any caller would."""

    def __init__(
        self, tiller: Tiller, model: str, *, steps: int | None = None, options: Any = None
    ) -> None:
        self.tiller, self.model, self.steps, self.options = tiller, model, steps, options

    def fit(self, case: Case) -> Generator[editors.progress.Progress, None, Fitted]:
        """Register the case's fact and wait for its version.

        Raises:
            FitRefused: The service refused the fact, or its job failed.
        """
        try:
            job = self.tiller.edits.add(
                EDIT,
                model=self.model,
                prompt=case.prompt,
                target=case.target,
                subject=case.subject,
                source=case.source,
                phrasings=[{"prompt": p, "subject": s} for p, s in case.phrasings],
                neighbours=list(case.neighbours),
                options=self.options,
            )
            for event in self.tiller.jobs.events(job["id"]):
                yield _progress(event)
            result = self.tiller.jobs.wait(job["id"])["result"]
        except TillerError as error:
            if error.code == "unreachable":
                raise
            raise FitRefused(error.code or "job_failed", error.problem) from error
        name = f"{EDIT}@{result['version']}"
        report = {"status": result["status"], **(result["report"] or {})}
        return Fitted(edit=name, digest=result["digest"], report=report)

    def draw(self, drawings: Sequence[Drawing]) -> Iterator[Picture]:
        """Pictures in order; seeds in a row of one prompt travel in one request."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            asked = [pool.submit(self._ask, group) for group in _runs(drawings)]
            try:
                for answer in asked:
                    yield from answer.result()
            finally:
                _cancel(asked)

    def _ask(self, group: Sequence[Drawing]) -> list[Picture]:
        first = group[0]
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                pictures = self.tiller.images.generate(
                    first.prompt,
                    model=self.model,
                    edits=[first.edit] if first.edit else [],
                    n=len(group),
                    seed=first.seed,
                    steps=self.steps,
                )
                return [pixels(p.png) for p in pictures]
            except TillerError as error:
                if error.status not in (429, 503) or time.monotonic() > until:
                    raise
                time.sleep(1.0)


def _cancel(asked: Sequence[Future[Any]]) -> None:
    for one in asked:
        one.cancel()


def _runs(drawings: Sequence[Drawing], longest: int = 8) -> list[list[Drawing]]:
    """Neighbours of one prompt and edit whose seeds count up."""
    found: list[list[Drawing]] = []
    for wanted in drawings:
        last = found[-1] if found else None
        if (
            last
            and len(last) < longest
            and (last[-1].prompt, last[-1].edit) == (wanted.prompt, wanted.edit)
            and last[-1].seed + 1 == wanted.seed
        ):
            last.append(wanted)
        else:
            found.append([wanted])
    return found


def pixels(png: bytes) -> Picture:
    """A PNG as (height, width, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _progress(event: Mapping[str, Any]) -> editors.progress.Progress:
    share = event.get("progress") or 0.0
    stage = str(event.get("stage") or "fit")
    return editors.progress.Progress(stage=stage, done=round(100 * share), total=100)


def miniature_judge() -> Judge:
    """The miniature's own classifier: trained on drawn pictures, never on generated ones."""
    from miniature.judge import load_judge

    judge = load_judge()

    def judged(pictures: Sequence[Picture], answers: Sequence[tuple[str, str]]) -> list[Verdict]:
        seen = judge(list(pictures))
        return [
            Verdict(best=label, probabilities=shares)
            for (label, shares), _ in zip(seen, answers, strict=True)
        ]

    return judged


def _clip_judge(folder: Path) -> Judge:
    from evaluation.zero_shot import ClipJudge  # a command line without it starts in no time

    return ClipJudge(folder)


def shipped_cases() -> Path:
    """The miniature's facts."""
    return Path(str(files("miniature").joinpath("cases/facts.json")))


@app.callback()
def evaluate() -> None:
    """Does it work: measured on judged pictures."""


@app.command("facts")
def evaluate_facts_command(  # noqa: PLR0913, PLR0917 - one argument per option
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder.")],
    url: Annotated[
        str | None,
        typer.Option(envvar="TILLER_URL", help="A running service; else one is started."),
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="TILLER_API_KEY")] = None,
    model: Annotated[str, typer.Option("--model", "-m")] = "miniature-sd",
    cases: Annotated[
        Path | None,
        typer.Option(exists=True, help="Our JSON, RoAD, TIMED or CAKE; the miniature's facts."),
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(help="A CLIP folder; else the miniature's own judge.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Pictures per prompt.")] = 4,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    cake_seeds: Annotated[
        int, typer.Option(min=0, max=100, help="CAKE's criterion too (50); needs --judge.")
    ] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many cases.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", exists=True)] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Start the service on Ray Serve.")] = False,
) -> None:
    """Efficacy, generality and specificity of fact edits; a stopped run goes on where it was."""
    if cake_seeds and judge is None:
        raise typer.BadParameter("CAKE's criterion needs a CLIP judge: --judge FOLDER")
    chosen = read_cases(cases or shipped_cases())
    wanted = _evenly(chosen, limit)
    seen_by = _clip_judge(judge) if judge else miniature_judge()
    settings = FactSettings(seeds=tuple(range(seeds)), cake_seeds=cake_seeds)
    with ExitStack() as stack:
        if url is None:
            home = Path(stack.enter_context(TemporaryDirectory(prefix="tiller-evaluation-")))
            with err.status("starting a service"):
                url = stack.enter_context(serving(home, local=not ray, config=config))
        tiller = stack.enter_context(Tiller(url, api_key))
        header = _header(tiller, model, cases, judge, settings, steps)
        journal = Journal(output / "scores.jsonl", header)
        side = ServiceSide(tiller, model, steps=steps)
        report = _drained(
            evaluate_facts(wanted, side.draw, side.fit, seen_by, journal, settings), len(wanted)
        )
    written = write(report, journal, output)
    out.print(markdown(report).split("\n## Made with")[0], markup=False, highlight=False)
    out.print(*written)


def _evenly(cases: Sequence[Case], limit: int | None) -> list[Case]:
    """So many of the cases, spread over the file."""
    if limit is None or limit >= len(cases):
        return list(cases)
    return [cases[i * len(cases) // limit] for i in range(limit)]


def _header(
    tiller: Tiller,
    model: str,
    cases: Path | None,
    judge: Path | None,
    settings: FactSettings,
    steps: int | None,
) -> dict[str, Any]:
    card = tiller.models.show(model)
    return {
        "cases": cases.name if cases else "miniature/cases/facts.json",
        "seeds": list(settings.seeds),
        "steps": steps,
        "cake_seeds": settings.cake_seeds,
        "model": model,
        "fingerprint": card["fingerprint"],
        "judge": judge.name if judge else "miniature",
        "version": version("tiller"),
    }


def _drained(run: Generator[editors.progress.Progress, None, FactReport], total: int) -> FactReport:
    """Run to the end behind two bars: cases, and what is going on in this one."""
    with _bars() as bars:
        whole = bars.add_task("cases", total=total)
        part = bars.add_task("", total=None)
        while True:
            try:
                told = next(run)
            except StopIteration as end:
                return end.value
            if told.stage == "case":
                bars.update(whole, completed=told.done, description="cases")
            else:
                about = f"{told.stage} {told.message}"[:60]
                bars.update(part, completed=told.done, total=told.total, description=about)


@contextmanager
def _bars() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        yield bars
