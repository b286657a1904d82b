"""`tiller evaluate lens`: what the text encoder of a hosted model knows, layer by layer."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from evaluation.errors import UnreadableCases
from evaluation.judge import Picture, Verdict
from evaluation.lens import (
    LensCase,
    LensJournal,
    LensJudge,
    LensSettings,
    Look,
    Place,
    Question,
    evaluate_lens,
)
from evaluation.lens_cases import read_lens_cases, told_case
from evaluation.lens_report import lens_markdown, write_lens
from service.asking import (
    asked_at,
    drained,
    drawn_with,
    evenly,
    in_order,
    judged_by,
    pixels,
)
from service.client import LensView, Tiller
from service.looking import layers_in

if TYPE_CHECKING:
    from miniature.judge import Seen

out = Console()

AT_ONCE = 2
"""Sweeps under way at a time: enough that no slot waits for the end of another sweep."""
PICTURES = 24
"""Pictures of one request; longer sweeps are asked for in parts."""


@dataclass(frozen=True, kw_only=True)
class LensSide:
    """Looks through the lens over REST, as any caller would.

    Attributes:
        tiller: The service.
        model: Which of its models.
        steps: Denoising steps; the model's own when left out.
        encoder: Which text encoder; the first that can be looked at when left out.
    """

    tiller: Tiller
    model: str
    steps: int | None = None
    encoder: str | None = None

    def draw(self, looks: Sequence[Look]) -> Iterator[list[Picture]]:
        """The pictures of each look, in order."""
        parts = [_parts(look) for look in looks]
        asks = [partial(self._ask, part) for whole in parts for part in whole]
        with closing(in_order(asks, AT_ONCE)) as answers:
            for whole in parts:
                yield [p for pictures in islice(answers, len(whole)) for p in pictures]

    def _ask(self, look: Look) -> list[Picture]:
        view = self._view(look, steps=self.steps)
        by_place = {(p.layer, p.seed): p.png for p in view.pictures}
        return [pixels(by_place[layer, seed]) for layer in look.layers for seed in look.seeds]

    def _view(self, look: Look, *, steps: int | None) -> LensView:
        return self.tiller.lens(
            look.prompt,
            model=self.model,
            layers=look.layers,
            encoder=self.encoder,
            edits=look.edits,
            n=len(look.seeds),
            seed=look.seeds[0],
            steps=steps,
        )

    def about(self, edits: Sequence[str]) -> Mapping[str, Any]:
        """What the service says of a look, learnt from the cheapest one there is."""
        look = Look(prompt="a picture", layers=(0,), seeds=(0,), edits=tuple(edits))
        return self._view(look, steps=1).tiller


def _parts(look: Look) -> list[Look]:
    """The look in requests of bounded size."""
    several = max(1, PICTURES // len(look.seeds))
    return [
        Look(
            prompt=look.prompt,
            layers=look.layers[start : start + several],
            seeds=look.seeds,
            edits=look.edits,
        )
        for start in range(0, len(look.layers), several)
    ]


class MiniatureLensJudge:
    """The miniature's own classifier: it sees a subject in each half, and the scene."""

    def __init__(self) -> None:
        from miniature.judge import load_judge
        from miniature.world import make_world

        world = make_world()
        people = {p.name for p in world.people}
        self._judge = load_judge()
        subjects = {label: label for label in self._judge.labels["left"]}
        self._readings = {
            "object": {label: label.split()[-1] for label in subjects},
            "human": {label: "human" if label in people else label for label in subjects},
            "scene": {label: label for label in self._judge.labels["scene"]},
            **dict.fromkeys(
                ("colour", "default colour", "identity", "new fact", "old fact"), subjects
            ),
        }

    def __call__(self, pictures: Sequence[Picture], questions: Sequence[Question]) -> list[Verdict]:
        """What each picture shows, in the words of its question.

        Raises:
            UnreadableCases: A question or an answer that this judge does not know.
        """
        for question in questions:
            if question.right not in self._readings.get(question.question, {}).values():
                raise UnreadableCases(
                    f"The question {question.question!r} ({question.right})",
                    "is none that the miniature's judge can answer; name a CLIP with --judge",
                )
        once = {id(picture): picture for picture in pictures}
        seen = dict(zip(once, self._judge.look(list(once.values())), strict=True))
        return [self._verdict(seen[id(p)], q) for p, q in zip(pictures, questions, strict=True)]

    def _verdict(self, seen: "Seen", question: Question) -> Verdict:
        reading = self._readings[question.question]
        heads = ("scene",) if question.question == "scene" else _halves(question.place)
        found = [reading[seen.answers[head]] for head in heads]
        shares = [
            sum(share for label, share in seen.shares[head].items() if reading[label] == right)
            for head in heads
            for right in [question.right]
        ]
        if question.place == "either":
            best, share = question.right if question.right in found else found[0], max(shares)
        else:
            best, share = found[0] if len(set(found)) == 1 else "", min(shares)
        return Verdict(best=best, probabilities={question.right: share})


def _halves(place: Place) -> tuple[str, ...]:
    return ("left", "right") if place in ("whole", "either") else (place,)


def shipped_prompts() -> Path:
    """The miniature's prompts."""
    return Path(str(files("miniature").joinpath("cases/lens.json")))


def evaluate_lens_command(  # noqa: PLR0913, PLR0917 - one argument per option
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder.")],
    url: Annotated[
        str | None,
        typer.Option(envvar="TILLER_URL", help="A running service; else one is started."),
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="TILLER_API_KEY")] = None,
    model: Annotated[str, typer.Option("--model", "-m")] = "miniature-sd",
    edits: Annotated[
        list[str] | None,
        typer.Option("--edit", "-e", help="Draw under it too: where does the new fact appear?"),
    ] = None,
    layers: Annotated[str, typer.Option(help="all, 0,4,8 or, as in Python, 0:9:2")] = "all",
    encoder: Annotated[str | None, typer.Option(help="text, text_2, ...")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=10, help="Pictures per prompt and layer.")] = 2,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    cases: Annotated[
        list[Path] | None,
        typer.Option(exists=True, help="Our JSON, CSV or lines of text; the miniature's prompts."),
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(help="A CLIP folder; else the miniature's own judge.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many prompts.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", exists=True)] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Start the service on Ray Serve.")] = False,
) -> None:
    """What the text encoder knows at each layer; a stopped run goes on where it was."""
    named = tuple(edits or ())
    told = [case for file in cases or () for case in read_lens_cases(file)]
    seen_by = _clip_judge(judge) if judge else MiniatureLensJudge()
    with asked_at(url, api_key, ray=ray, config=config) as tiller:
        side = LensSide(tiller=tiller, model=model, steps=steps, encoder=encoder)
        about = side.about(named)
        if not told:
            told = _edit_cases(tiller, about["edits"], judge) if named else _shipped()
        wanted = evenly(told, limit)
        settings = LensSettings(
            layers=_layers(layers, about["lens"]["ordinary"]),
            seeds=tuple(range(seeds)),
            edits=named,
        )
        header = _header(tiller, about, settings, side, cases, judge)
        journal = LensJournal(output / "lens.jsonl", header)
        report = drained(evaluate_lens(wanted, side.draw, seen_by, journal, settings), len(wanted))
    written = write_lens(report, output)
    shown = lens_markdown(report).split("\n## What the paper")[0]
    out.print(shown, markup=False, highlight=False, soft_wrap=True)
    out.print(*written, soft_wrap=True)


def _clip_judge(folder: Path) -> LensJudge:
    from evaluation.zero_shot import ClipJudge, ClipLensJudge  # slow to import

    return ClipLensJudge(ClipJudge(folder))


def _shipped() -> list[LensCase]:
    return read_lens_cases(shipped_prompts())


def _layers(text: str, ordinary: int) -> tuple[int, ...]:
    """The layers that are meant; the service refuses those that are not there."""
    asked = layers_in(text)
    every = range(ordinary + 1)
    if isinstance(asked, dict):
        return tuple(every[slice(asked.get("start"), asked.get("stop"), asked.get("step"))])
    return tuple(every) if isinstance(asked, str) else tuple(sorted(set(asked)))


def _edit_cases(
    tiller: Tiller, applied: Sequence[Mapping[str, Any]], judge: Path | None
) -> list[LensCase]:
    """The edits' own sentences, asked for the new answer and the old one."""
    facts = (_fact(tiller, edit["name"], edit["version"]) for edit in applied)
    told = [entry for fact in facts for entry in (_texts_of if judge else _labels_of)(fact)]
    return [told_case(number, entry) for number, entry in enumerate(told)]


def _fact(tiller: Tiller, name: str, number: int) -> Mapping[str, Any]:
    fact = tiller.edits.show(name, number)["header"].get("fact")
    if not fact:
        raise typer.BadParameter(f"{name} tells no fact: give prompts with --cases")
    return fact


def _labels_of(fact: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    from miniature.lens_prompts import edit_prompts
    from miniature.world import make_world

    others = [p["prompt"] for p in fact.get("phrasings", ())]
    told = edit_prompts(make_world(), fact["prompt"], fact["target"], others)
    if told is None:
        raise typer.BadParameter(
            f"{fact['prompt']!r} is not of the miniature's world: give --cases or --judge"
        )
    return told["cases"]


def _texts_of(fact: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """For a judge of texts: the target against what was there before."""
    old = fact.get("source") or fact["prompt"]
    options = [fact["target"], old]
    questions = [
        {"question": name, "right": right, "options": options}
        for name, right in (("new fact", fact["target"]), ("old fact", old))
    ]
    texts = [fact["prompt"], *(p["prompt"] for p in fact.get("phrasings", ()))]
    shared = {"group": "simple", "kind": "phrasing", "questions": questions}
    return [{"prompt": text, **shared} for text in dict.fromkeys(texts)]


def _header(
    tiller: Tiller,
    about: Mapping[str, Any],
    settings: LensSettings,
    side: LensSide,
    cases: Sequence[Path] | None,
    judge: Path | None,
) -> dict[str, Any]:
    read = cases or ([] if settings.edits else [shipped_prompts()])
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in read}
    return {
        "cases": digests or "the edits' own",
        "layers": list(settings.layers),
        "seeds": list(settings.seeds),
        **drawn_with(tiller, side.model, side.steps),
        "lens": {k: about["lens"][k] for k in ("encoder", "ordinary", "norm", "beside", "noise")},
        "edits": [{k: e[k] for k in ("name", "version", "digest")} for e in about["edits"]],
        "judge": judged_by(judge),
        "version": version("tiller"),
    }
