"""`tiller evaluate`: the protocols of `evaluation`, run against a service."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import editors.progress
from evaluation.cases import read_cases
from evaluation.errors import FitRefused
from evaluation.facts import Drawing, FactSettings, Fitted, evaluate_facts
from evaluation.judge import Judge, Picture, Verdict
from evaluation.protocol import Case, Journal
from evaluation.report import markdown, write
from service.asking import (
    asked_at,
    drained,
    drawn_with,
    evenly,
    in_order,
    judged_by,
    pixels,
)
from service.client import Tiller, TillerError
from service.evaluating_backpatch import evaluate_backpatch_command
from service.evaluating_lens import evaluate_lens_command
from service.evaluating_steering import evaluate_steering_command

app = typer.Typer(no_args_is_help=True, help="Does it work: measured on judged pictures and texts.")
app.command("lens")(evaluate_lens_command)
app.command("steering")(evaluate_steering_command)
app.command("backpatch")(evaluate_backpatch_command)
out = Console()

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
        with closing(in_order([partial(self._ask, group) for group in _runs(drawings)])) as asked:
            for pictures in asked:
                yield from pictures

    def _ask(self, group: Sequence[Drawing]) -> list[Picture]:
        first = group[0]
        pictures = self.tiller.images.generate(
            first.prompt,
            model=self.model,
            edits=[first.edit] if first.edit else [],
            n=len(group),
            seed=first.seed,
            steps=self.steps,
        )
        return [pixels(p.png) for p in pictures]


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
    wanted = evenly(chosen, limit)
    seen_by = _clip_judge(judge) if judge else miniature_judge()
    settings = FactSettings(seeds=tuple(range(seeds)), cake_seeds=cake_seeds)
    with asked_at(url, api_key, ray=ray, config=config) as tiller:
        header = _header(tiller, model, cases, judge, settings, steps)
        journal = Journal(output / "scores.jsonl", header)
        side = ServiceSide(tiller, model, steps=steps)
        report = drained(
            evaluate_facts(wanted, side.draw, side.fit, seen_by, journal, settings), len(wanted)
        )
    written = write(report, journal, output)
    out.print(markdown(report).split("\n## Made with")[0], markup=False, highlight=False)
    out.print(*written)


def _header(
    tiller: Tiller,
    model: str,
    cases: Path | None,
    judge: Path | None,
    settings: FactSettings,
    steps: int | None,
) -> dict[str, Any]:
    return {
        "cases": cases.name if cases else "miniature/cases/facts.json",
        "seeds": list(settings.seeds),
        "cake_seeds": settings.cake_seeds,
        **drawn_with(tiller, model, steps),
        "judge": judged_by(judge),
        "version": version("tiller"),
    }
