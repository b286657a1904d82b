"""`tiller evaluate steering`: do SAE features steer, and what do the scores tell beforehand?

It runs in this process, on the model's own folder: it needs streams and likelihoods, which no
service gives away.
"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from service.settings import Model

if TYPE_CHECKING:
    from evaluation.steering_result import Result
    from evaluation.steering_ways import Topic
    from evaluation.topics import Labelled

out = Console()

TEXTS, JUDGED = 60, 200
"""Of each topic: what ways are learned from, and what the judge is."""


def evaluate_steering_command(  # noqa: PLR0913, PLR0917 - one argument per option
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A folder, a hub id, or miniature:language.")
    ] = "miniature:language",
    saes: Annotated[
        list[Path] | None, typer.Option("--sae", help="A dictionary's folder; the miniature's own.")
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            exists=True, help='JSON lines {"text", "topics": [..]}; the miniature\'s own texts.'
        ),
    ] = None,
    topics: Annotated[int | None, typer.Option(min=1, help="Only so many topics.")] = None,
    each: Annotated[int, typer.Option(min=2, help="Features per topic and dictionary.")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="Texts per opener and strength.")] = 1,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Steer towards every topic, filtered and not; table, JSON and a plot."""
    import torch

    from evaluation.steering import evaluate_steering
    from evaluation.steering_report import steering_markdown, write_steering
    from evaluation.steering_result import SteeringReport, SteeringSettings
    from evaluation.steering_ways import (
        depth_of,
        direction_ways,
        feature_ways,
        prompt_ways,
        read_dictionary,
    )
    from evaluation.topics import TopicJudge
    from evaluation.writing import Writer
    from models.loading import load
    from service.weights import dictionaries_of, weights_of

    torch.set_num_threads(threads)
    told = Model.model_validate(
        {"name": "evaluated", "path": model, "saes": [_sae(path) for path in saes or ()]}
    )
    hosted = load("evaluated", weights_of(told))
    learned, judged, held_out, wanted = _texts(texts, topics)
    judge = TopicJudge.trained(judged)
    settings = SteeringSettings(repeats=repeats)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()) as bars:
        bar = bars.add_task("reading", total=None)
        known = dictionaries_of(told)
        reads = [
            read_dictionary(
                hosted, d, wanted, learned, lambda stage: bars.update(bar, description=stage)
            )
            for d in known
        ]
        sites = list(dict.fromkeys(d.site for d in known))
        with Writer(hosted) as writer:
            ways = [
                *feature_ways(hosted, wanted, reads, settings, each=each),
                *direction_ways(hosted, wanted, learned, sites, settings),
                *prompt_ways(wanted, writer, "Tell me something about {about}."),
            ]
            bars.update(bar, description="writing", total=1)
            plain, results = evaluate_steering(
                ways,
                writer,
                judge,
                settings,
                tell=lambda done, total: bars.update(bar, completed=done, total=total),
            )
    names = [topic.name for topic in wanted]
    report = SteeringReport(
        header={
            "model": model,
            "fingerprint": hosted.fingerprint,
            "dictionaries": {d.id: d.digest for d in known},
            "judge": judge.measured(held_out),
            "texts": "the miniature's" if texts is None else texts.name,
            "version": version("tiller"),
        },
        settings=settings,
        topics=tuple(names),
        plain={topic: share for topic, share in plain.items() if topic in names},
        results=results,
        depths=tuple(depth_of(hosted, one) for one in reads),
    )
    written = [*write_steering(report, output), *_write_labels(report.results, wanted, output)]
    shown = steering_markdown(report).split("\n## What the papers")[0]
    out.print(shown, markup=False, highlight=False, soft_wrap=True)
    out.print(*written, soft_wrap=True)


def _write_labels(
    results: "Sequence[Result]", topics: "Sequence[Topic]", folder: Path
) -> list[Path]:
    """Per dictionary the features that steer, as `PUT /v1/saes/{id}/labels` takes them."""
    from evaluation.steering_result import labels_found

    about, written = {topic.name: topic.about for topic in topics}, []
    for dictionary, labels in labels_found(results).items():
        lines = [
            json.dumps({"feature": feature, "label": about[topic], "source": "steering report"})
            for feature, topic in sorted(labels.items())
        ]
        written.append(folder / f"{dictionary}.labels.jsonl")
        written[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return written


def _sae(path: Path) -> dict[str, Any]:
    return {"id": path.name, "path": str(path)}


Split = tuple[list["Labelled"], list["Labelled"], list["Labelled"], list["Topic"]]
"""Texts to learn ways from, texts to train the judge on, texts to measure the judge on, topics."""


def _texts(file: Path | None, topics: int | None) -> Split:
    from evaluation.steering_ways import Topic

    if file is None:
        learned, judged, held_out, wanted = _miniature()
    else:
        every = _read(file)
        learned, judged, held_out = every[::3], every[1::3], every[2::3]
        names = sorted({name for text in every for name in text.topics})
        wanted = [Topic(name=name, about=name) for name in names]
    return learned, judged, held_out, wanted[:topics]


def _read(file: Path) -> "list[Labelled]":
    from evaluation.errors import UnreadableCases
    from evaluation.topics import Labelled

    try:
        told = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
        return [Labelled(text=t["text"], topics=tuple(t.get("topics", ()))) for t in told]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableCases(str(file), f"{type(error).__name__}: {error}") from None


def _miniature() -> Split:
    """Three sets of texts from different seeds, and texts about nothing for the judge."""
    from itertools import islice

    from evaluation.steering_ways import Topic
    from evaluation.topics import Labelled
    from miniature.prose.concepts import read_concepts
    from miniature.prose.corpus import concept_texts, documents

    def labelled(seed: int, n: int) -> list[Labelled]:
        return [Labelled(text=d.text, topics=d.concepts) for d in concept_texts(seed, n)]

    def neutral(seed: int, n: int) -> list[Labelled]:
        plain: Sequence[Any] = list(islice(documents(seed), n))
        return [Labelled(text=d.text) for d in plain if not d.concepts]

    judged = [*labelled(12, JUDGED), *neutral(13, 4000)]
    held_out = [*labelled(14, 20), *neutral(15, 400)]
    wanted = [Topic(name=c.name, about=c.about) for c in read_concepts().values()]
    return labelled(11, TEXTS), judged, held_out, wanted
