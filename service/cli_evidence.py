"""`tiller evidence`: circuits, causal variables, feature gates, layer advice and edit audits."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Column, Table

from evaluation.behaviours.errors import UnreadableRows
from evaluation.behaviours.public import PUBLIC_TASKS, read_rows
from service.asking import asked_at
from service.calls import given
from service.cli_shared import bar
from service.client import Tiller
from service.params import METHODS, not_finite
from service.schema_evaluations import Generator

_OWN = {"pairs": "clean", "swaps": "base"}
"""By kind of rows a key that each of them has."""
_GENERATORS: tuple[str, ...] = get_args(Generator)
_FILES = (".json", ".jsonl", ".parquet")
app = typer.Typer(no_args_is_help=True, help="Causal evidence: where it sits, and is it real?")
out = Console()

Model = Annotated[str, typer.Option("--model", "-m", help="A hosted model.")]
Task = Annotated[
    str | None,
    typer.Option(
        help="ioi, mcqa, arithmetic-addition, arithmetic-subtraction, ravel; with --data ioi, "
        "copycolors_mcqa, arc_easy, arc_challenge, arithmetic_addition, arithmetic_subtraction, "
        "ravel"
    ),
]
Rows = Annotated[str | None, typer.Option("--dataset", help="A data set's id, instead of a task.")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="A file of rows (JSON, JSON lines, parquet): pairs, swaps, or with --task those of "
        "one of MIB's public data sets.",
    ),
]
Words = Annotated[str, typer.Option("--vocabulary", help="miniature or english")]
Count = Annotated[
    int | None, typer.Option("-n", min=1, help="Rows that are drawn, or the first ones of a file.")
]
Seed = Annotated[int, typer.Option(min=0)]
Answers = Annotated[str, typer.Option(help="whole, or first: the first token of longer answers.")]
Params = Annotated[
    list[str] | None, typer.Option("--param", "-p", help="key=value; values are JSON or text.")
]
Edits = Annotated[list[str] | None, typer.Option("--edit", "-e", help="name or name@version")]


def _folder(path: Path | None) -> Path | None:
    """A folder for the files, made before the work."""
    try:
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be a folder: {error.strerror}") from None
    return path


def _file(path: Path) -> Path:
    """A file that can be written, looked at before the work."""
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}")
    return path


Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="A folder for the files.", callback=_folder),
]
Url = Annotated[
    str | None, typer.Option(envvar="TILLER_URL", help="A running service; else one is started.")
]
Key = Annotated[str | None, typer.Option(envvar="TILLER_API_KEY")]


@app.command()
def circuit(  # noqa: PLR0913, PLR0917 - one argument per option
    task: Task = None,
    dataset: Rows = None,
    data: Data = None,
    model: Model = "miniature-lm",
    method: Annotated[str, typer.Option(help="eap, eap-ig, exact, ifr, ugs, random, ...")] = (
        "eap-ig"
    ),
    level: Annotated[str, typer.Option(help="edge, node or neuron")] = "edge",
    vocabulary: Words = "miniature",
    n: Count = None,
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
    source = _Source(dataset, data, task, vocabulary, n, 60, seed, answers)
    with asked_at(url, api_key) as tiller:
        told = {"dataset": source.kept(tiller, model), "edits": edit or []}
        _show(tiller, _found(tiller, "circuit", model, asked, **told), output)


@app.command()
def variable(  # noqa: PLR0913, PLR0917 - one argument per option
    name: Annotated[str, typer.Argument(help="answer, ones_carry, capital, ...")],
    task: Task = None,
    dataset: Rows = None,
    data: Data = None,
    model: Model = "miniature-lm",
    featurizer: Annotated[str, typer.Option(help="full, das, dbm, pca, sae, ...")] = "das",
    benchmark: Annotated[
        str | None,
        typer.Option(help="A task of MIB whose own recipe counts: ioi_task, 4_answer_MCQA, ..."),
    ] = None,
    save: Annotated[
        str | None, typer.Option(help="name or name@alias: keep the best unit's direction")
    ] = None,
    toward: Annotated[
        str | None, typer.Option(help="The value that it sets; else a learned direction.")
    ] = None,
    vocabulary: Words = "miniature",
    n: Count = None,
    seed: Seed = 0,
    param: Params = None,
    edit: Edits = None,
    output: Output = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """At which layer and token a causal variable sits: interchange interventions."""
    asked: dict[str, Any] = {"variable": name, "featurizer": {"kind": featurizer}, "seed": seed}
    asked |= given({"benchmark": benchmark})
    if save is not None:
        kept, _, alias = save.partition("@")
        asked["save"] = given({"name": kept, "alias": alias or None, "toward": toward})
    only = name if task == "ravel" else None
    source = _Source(dataset, data, task, vocabulary, n, 120, seed, variable=only)
    with asked_at(url, api_key) as tiller:
        told = {"dataset": source.kept(tiller, model), "edits": edit or []}
        found = _found(tiller, "causal_variable", model, {**asked, **_params(param)}, **told)
        _show(tiller, found, output)


@app.command()
def gate(  # noqa: PLR0913, PLR0917 - one argument per option
    sae: Annotated[str, typer.Argument(help="The dictionary's id.")],
    features: Annotated[list[int], typer.Argument(help="Numbers of features.")],
    variable: Annotated[str, typer.Option(help="answer, capital, ...")],
    task: Task = None,
    dataset: Rows = None,
    data: Data = None,
    model: Model = "miniature-lm",
    vocabulary: Words = "miniature",
    n: Count = None,
    seed: Seed = 0,
    param: Params = None,
    output: Output = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Is a feature a handle on a variable, better than random ones and harmless elsewhere?"""
    asked = {"sae": sae, "features": features, "variable": variable, "seed": seed}
    only = variable if task == "ravel" else None
    source = _Source(dataset, data, task, vocabulary, n, 120, seed, variable=only)
    with asked_at(url, api_key) as tiller:
        rows = source.kept(tiller, model)
        found = _found(tiller, "feature_gate", model, {**asked, **_params(param)}, dataset=rows)
        _show(tiller, found, output)


@app.command()
def advice(  # noqa: PLR0913, PLR0917 - one argument per option
    operation: Annotated[str, typer.Argument(help="sae, refact or backpatch")],
    task: Task = None,
    dataset: Rows = None,
    data: Data = None,
    model: Model = "miniature-lm",
    vocabulary: Words = "miniature",
    n: Count = None,
    seed: Seed = 0,
    answers: Answers = "whole",
    param: Params = None,
    output: Output = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """At which layers to steer a model, to edit a text encoder, or to patch pictures back."""
    asked = {"operation": operation, "seed": seed, **_params(param)}
    source = _Source(dataset, data, task, vocabulary, n, 24, seed, answers)
    with asked_at(url, api_key) as tiller:
        rows = source.kept(tiller, model)
        _show(tiller, _found(tiller, "layer_advice", model, asked, dataset=rows), output)


@app.command()
def audit(  # noqa: PLR0913, PLR0917 - one argument per option
    edit: Annotated[list[str], typer.Argument(help="name or name@version")],
    suite: Annotated[
        list[str], typer.Option("--suite", help="name=dataset id, name=task, or name=file")
    ],
    model: Model = "miniature-lm",
    vocabulary: Words = "miniature",
    n: Count = None,
    seed: Seed = 0,
    answers: Answers = "whole",
    param: Params = None,
    output: Output = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """What else an edit changed: probe sets before and after, and the old circuit's drift."""
    asked = {"seed": seed, **_params(param)}
    sources = {}
    for told in suite:
        name, _, where = told.partition("=")
        if not name or not where:
            raise typer.BadParameter(
                f"--suite {told!r} is not name=task, name=dataset-... or name=file"
            )
        sources[name] = _suite(where, vocabulary, n, seed, answers)
    with asked_at(url, api_key) as tiller:
        suites = {name: source.kept(tiller, model) for name, source in sources.items()}
        found = _found(tiller, "edit_audit", model, asked, suites=suites, edits=edit)
        _show(tiller, found, output)


OfModel = Annotated[str | None, typer.Option("--model", "-m", help="Only of that model.")]


@app.command("list")
def list_found(
    model: OfModel = None,
    kind: Annotated[str | None, typer.Option(help="circuit, causal_variable, ...")] = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """What was found, the newest first: of what, on which rows, and the number that says most."""
    table = Table(Column("evaluation", no_wrap=True), "found", show_lines=True)
    with asked_at(url, api_key) as tiller:
        for one in tiller.evaluations.list(model=model, kind=kind):
            asked = ", ".join(_told(v) for v in one["asked"].values())
            main = one["main"] or {"name": "", "value": ""}
            about = f"{one['kind']} of {one['model']}, {_told(one['rows'])}"
            found = f"{main['name']} {_told(main['value'])}"
            table.add_row(one["id"], "\n".join(filter(None, (about, asked, found))))
    out.print(table)


@app.command()
def datasets(model: OfModel = None, url: Url = None, api_key: Key = None) -> None:
    """Rows that are kept, the newest first: of which task, how many the model can use."""
    table = Table(Column("dataset", no_wrap=True), "model", "rows", "n", "kept")
    with asked_at(url, api_key) as tiller:
        for one in tiller.datasets.list(model=model):
            kept = ", ".join(f"{n} {rows}" for rows, n in one["kept"].items())
            table.add_row(one["id"], one["model"], one["rows"], str(one["n"]), kept)
    out.print(table)


@app.command()
def export(
    evaluation: Annotated[str, typer.Argument(help="Its id.")],
    task: Annotated[str, typer.Option(help="As MIB calls it: ioi, ..., ioi_task, ...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The zip.", callback=_file)],
    model: Annotated[str | None, typer.Option(help="Of a circuit: gpt2, qwen2.5, ...")] = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """A zip in the layout of MIB's submissions."""
    with asked_at(url, api_key) as tiller:
        kind = tiller.evaluations.show(evaluation)["kind"]
        format = "mib-circuit" if kind == "circuit" else "mib-causal-variable"
        data = tiller.evaluations.export(evaluation, format, task, model)
    output.write_bytes(data)
    out.print(f"{output}  {len(data)} bytes", highlight=False, soft_wrap=True)


def _told(value: Any) -> str:
    """A value in a list's column."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_told(one)} {name}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_told, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


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


@dataclass(frozen=True)
class _Source:
    """Where rows come from: a data set that is kept, a file, or a generator.

    Attributes:
        n: Rows that are drawn, or that are taken of a file; None draws `drawn`, and takes all.
    """

    dataset: str | None
    data: Path | None
    task: str | None
    vocabulary: str
    n: int | None
    drawn: int
    seed: int
    answers: str = "whole"
    variable: str | None = None

    def __post_init__(self) -> None:
        if self.dataset is not None:
            beside = {"--task": self.task, "--data": self.data}
            if idle := [option for option, value in beside.items() if value is not None]:
                told = f"--dataset names rows that are kept; leave {' and '.join(idle)} out"
                raise typer.BadParameter(told)
            return
        if self.data is None and self.task is None:
            raise typer.BadParameter("name a --task, a --dataset, or a file of rows with --data")
        known = _GENERATORS if self.data is None else PUBLIC_TASKS
        if self.task is not None and self.task not in known:
            raise typer.BadParameter(f"there is no task {self.task!r} here: {', '.join(known)}")

    def kept(self, tiller: Tiller, model: str) -> str:
        """The id of the data set."""
        if self.dataset is not None:
            return self.dataset
        asked: dict[str, Any] = {"answers": self.answers, "variable": self.variable}
        if self.data is not None:
            return tiller.datasets.make(model=model, **asked, **self._rows(self.data))["id"]
        asked |= {"vocabulary": self.vocabulary, "n": self.n or self.drawn, "seed": self.seed}
        return tiller.datasets.make(model=model, generator=self.task, **asked)["id"]

    def _rows(self, file: Path) -> dict[str, Any]:
        """The request's keys for a file's rows: a public task's, or pairs or swaps of one's own.

        Raises:
            BadParameter: It cannot be read, or nobody can tell what its rows are.
        """
        try:
            rows = read_rows(file)[: self.n]
        except UnreadableRows as error:
            raise typer.BadParameter(f"{error.problem} {error.remedy}") from None
        if self.task is not None:
            return {"task": self.task, "rows": rows}
        for key, first in _OWN.items():
            if rows and all(first in row for row in rows):
                return {key: rows}
        told = " nor ".join(f"{key} (each row has {first!r})" for key, first in _OWN.items())
        raise typer.BadParameter(f"{file} holds neither {told}; name the --task of public rows")


def _suite(where: str, vocabulary: str, n: int | None, seed: int, answers: str) -> _Source:
    """A suite's rows by an id, by a file, or by a task."""
    kept = where if where.startswith("dataset-") else None
    file = Path(where) if kept is None and Path(where).suffix in _FILES else None
    drawn = where if kept is None and file is None else None
    return _Source(kept, file, drawn, vocabulary, n, 40, seed, answers)


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
        if (warning := kept.get("warning")) is not None:
            told = f"{warning} It can be used by its number; no alias was moved to it."
            out.print(f"[yellow]{told}[/]", highlight=False, soft_wrap=True)
    if output is None:
        return
    output.mkdir(parents=True, exist_ok=True)
    for file in found["artifacts"]:
        (output / file).write_bytes(tiller.evaluations.artifact(name, file))
    out.print(output, highlight=False, soft_wrap=True)
