"""`tiller evidence`: circuits, causal variables, feature gates, layer advice and edit audits."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from service.asking import asked_at
from service.calls import given
from service.cli_shared import bar
from service.client import Tiller
from service.params import METHODS, not_finite

app = typer.Typer(no_args_is_help=True, help="Causal evidence: where it sits, and is it real?")
out = Console()

Model = Annotated[str, typer.Option("--model", "-m", help="A hosted model.")]
Task = Annotated[
    str | None, typer.Option(help="ioi, mcqa, arithmetic-addition, arithmetic-subtraction, ravel")
]
Rows = Annotated[str | None, typer.Option("--dataset", help="A data set's id, instead of a task.")]
Words = Annotated[str, typer.Option("--vocabulary", help="miniature or english")]
Count = Annotated[int, typer.Option("-n", min=1, help="Rows that are drawn.")]
Seed = Annotated[int, typer.Option(min=0)]
Answers = Annotated[str, typer.Option(help="whole, or first: the first token of longer answers.")]
Params = Annotated[
    list[str] | None, typer.Option("--param", "-p", help="key=value; values are JSON or text.")
]
Edits = Annotated[list[str] | None, typer.Option("--edit", "-e", help="name or name@version")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="A folder for the files.")]
Url = Annotated[
    str | None, typer.Option(envvar="TILLER_URL", help="A running service; else one is started.")
]
Key = Annotated[str | None, typer.Option(envvar="TILLER_API_KEY")]


@app.command()
def circuit(  # noqa: PLR0913, PLR0917 - one argument per option
    task: Task = None,
    dataset: Rows = None,
    model: Model = "miniature-lm",
    method: Annotated[str, typer.Option(help="eap, eap-ig, exact, ifr, ugs, random, ...")] = (
        "eap-ig"
    ),
    level: Annotated[str, typer.Option(help="edge, node or neuron")] = "edge",
    vocabulary: Words = "miniature",
    n: Count = 60,
    seed: Seed = 0,
    answers: Answers = "whole",
    param: Params = None,
    edit: Edits = None,
    output: Output = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Which heads and MLPs carry a behaviour: CMD, CPR and faithfulness by size."""
    asked = {"method": METHODS.get(method, method), "level": level, "seed": seed, **_params(param)}
    with asked_at(url, api_key) as tiller:
        rows = _dataset(tiller, model, dataset, task, vocabulary, n, seed, answers)
        told = {"dataset": rows, "edits": edit or []}
        _show(tiller, _found(tiller, "circuit", model, asked, **told), output)


@app.command()
def variable(  # noqa: PLR0913, PLR0917 - one argument per option
    name: Annotated[str, typer.Argument(help="answer, ones_carry, capital, ...")],
    task: Task = None,
    dataset: Rows = None,
    model: Model = "miniature-lm",
    featurizer: Annotated[str, typer.Option(help="full, das, dbm, pca, sae, ...")] = "das",
    save: Annotated[
        str | None, typer.Option(help="name or name@alias: keep the best unit's direction")
    ] = None,
    toward: Annotated[
        str | None, typer.Option(help="The value that it sets; else a learned direction.")
    ] = None,
    vocabulary: Words = "miniature",
    n: Count = 120,
    seed: Seed = 0,
    param: Params = None,
    edit: Edits = None,
    output: Output = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """At which layer and token a causal variable sits: interchange interventions."""
    asked: dict[str, Any] = {"variable": name, "featurizer": {"kind": featurizer}, "seed": seed}
    if save is not None:
        kept, _, alias = save.partition("@")
        asked["save"] = given({"name": kept, "alias": alias or None, "toward": toward})
    with asked_at(url, api_key) as tiller:
        only = name if task == "ravel" else None
        rows = _dataset(tiller, model, dataset, task, vocabulary, n, seed, variable=only)
        told = {"dataset": rows, "edits": edit or []}
        found = _found(tiller, "causal_variable", model, {**asked, **_params(param)}, **told)
        _show(tiller, found, output)


@app.command()
def gate(  # noqa: PLR0913, PLR0917 - one argument per option
    sae: Annotated[str, typer.Argument(help="The dictionary's id.")],
    features: Annotated[list[int], typer.Argument(help="Numbers of features.")],
    variable: Annotated[str, typer.Option(help="answer, capital, ...")],
    task: Task = None,
    dataset: Rows = None,
    model: Model = "miniature-lm",
    vocabulary: Words = "miniature",
    n: Count = 120,
    seed: Seed = 0,
    param: Params = None,
    output: Output = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Is a feature a handle on a variable, better than random ones and harmless elsewhere?"""
    asked = {"sae": sae, "features": features, "variable": variable, "seed": seed}
    with asked_at(url, api_key) as tiller:
        only = variable if task == "ravel" else None
        rows = _dataset(tiller, model, dataset, task, vocabulary, n, seed, variable=only)
        found = _found(tiller, "feature_gate", model, {**asked, **_params(param)}, dataset=rows)
        _show(tiller, found, output)


@app.command()
def advice(  # noqa: PLR0913, PLR0917 - one argument per option
    operation: Annotated[str, typer.Argument(help="sae, refact or backpatch")],
    task: Task = None,
    dataset: Rows = None,
    model: Model = "miniature-lm",
    vocabulary: Words = "miniature",
    n: Count = 24,
    seed: Seed = 0,
    answers: Answers = "whole",
    param: Params = None,
    output: Output = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """At which layers to steer a model, to edit a text encoder, or to patch pictures back."""
    asked = {"operation": operation, "seed": seed, **_params(param)}
    with asked_at(url, api_key) as tiller:
        rows = _dataset(tiller, model, dataset, task, vocabulary, n, seed, answers)
        _show(tiller, _found(tiller, "layer_advice", model, asked, dataset=rows), output)


@app.command()
def audit(  # noqa: PLR0913, PLR0917 - one argument per option
    edit: Annotated[list[str], typer.Argument(help="name or name@version")],
    suite: Annotated[list[str], typer.Option("--suite", help="name=dataset id, or name=task")],
    model: Model = "miniature-lm",
    vocabulary: Words = "miniature",
    n: Count = 40,
    seed: Seed = 0,
    answers: Answers = "whole",
    param: Params = None,
    output: Output = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """What else an edit changed: probe sets before and after, and the old circuit's drift."""
    asked = {"seed": seed, **_params(param)}
    with asked_at(url, api_key) as tiller:
        suites = {}
        for told in suite:
            name, _, source = told.partition("=")
            kept = source if source.startswith("dataset-") else None
            drawn = None if kept else source or name
            suites[name] = _dataset(tiller, model, kept, drawn, vocabulary, n, seed, answers)
        found = _found(tiller, "edit_audit", model, asked, suites=suites, edits=edit)
        _show(tiller, found, output)


def _params(given: list[str] | None) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for text in given or ():
        key, sign, value = text.partition("=")
        if not sign:
            raise typer.BadParameter(f"{text!r} is not key=value")
        try:
            told[key] = json.loads(value)
        except ValueError:
            told[key] = value
        for path in not_finite(told[key], key):
            raise typer.BadParameter(f"{path} is no finite number")
    return told


def _dataset(  # noqa: PLR0913, PLR0917 - what is drawn
    tiller: Tiller,
    model: str,
    dataset: str | None,
    task: str | None,
    vocabulary: str,
    n: int,
    seed: int,
    answers: str = "whole",
    variable: str | None = None,
) -> str:
    """The id of the data set that was named, or is drawn for the task."""
    if dataset is not None:
        return dataset
    if task is None:
        raise typer.BadParameter("name a --task, or a --dataset")
    made = tiller.datasets.make(
        model=model,
        generator=task,
        vocabulary=vocabulary,
        n=n,
        seed=seed,
        answers=answers,
        variable=variable,
    )
    return made["id"]


def _found(
    tiller: Tiller, kind: str, model: str, params: Mapping[str, Any], **asked: Any
) -> dict[str, Any]:
    """What the evaluation found, now or before."""
    begun = tiller.evaluations.start(kind, model=model, params=dict(params), **asked)
    if begun.get("cache_hit"):
        return begun
    with bar(kind) as on_event:
        return tiller.jobs.wait(begun["id"], on_event)["result"]


def _show(tiller: Tiller, found: dict[str, Any], output: Path | None) -> None:
    """Print the page; write all files if a folder is named."""
    name = found["evaluation"]
    text = tiller.evaluations.artifact(name, "report.md").decode()
    out.print(text.split("\n## Provenance")[0], markup=False, highlight=False, soft_wrap=True)
    out.print(name, highlight=False)
    if (kept := found.get("vector")) is not None:
        out.print(f"[green]✓[/] {kept['name']}@{kept['version']}", highlight=False)
    if output is None:
        return
    output.mkdir(parents=True, exist_ok=True)
    for file in found["artifacts"]:
        (output / file).write_bytes(tiller.evaluations.artifact(name, file))
    out.print(output, highlight=False, soft_wrap=True)
