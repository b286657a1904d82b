"""`tiller`: the command line. Most commands talk to a service through the SDK.

`serve`, `keys` and `registry` act on this machine.
"""

import os
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from models.errors import Refusal
from service.cli_backpatch import app as backpatch
from service.cli_chat import chat
from service.cli_edit import app as edit
from service.cli_evidence import app as evidence
from service.cli_evidence import circuit
from service.cli_operating import keys, registry
from service.cli_saes import preset, sae, vector
from service.cli_see import see
from service.cli_shared import ApiKey, Config, Url, bar, complain, err, exit_code, out
from service.client import DEFAULT_URL, Picture, Tiller, TillerError
from service.demo import demo
from service.evaluating import app as evaluate
from service.looking import lens

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve models and change what they know, per request.",
)
jobs = typer.Typer(no_args_is_help=True, help="Long work: watch and cancel.")


def main() -> None:
    """The console command: errors as a problem and a remedy, never as a traceback."""
    try:
        app()
    except (TillerError, Refusal) as error:
        complain(error)
        sys.exit(exit_code(error))


@app.command()
def serve(
    config: Config = None,
    local: Annotated[bool, typer.Option("--local", help="One process, no Ray.")] = False,
    port: Annotated[int | None, typer.Option(help="Default 8311.")] = None,
    host: Annotated[str | None, typer.Option(help="Default 127.0.0.1.")] = None,
    until_stdin_closes: Annotated[
        bool, typer.Option("--until-stdin-closes", help="End with the process that started it.")
    ] = False,
) -> None:
    """Serve the configured models, or the embedded miniature."""
    from service.settings import Settings
    from service.signals import stop_on_signals, stop_with_parent

    environment = dict(os.environ)
    if port is not None:
        environment["TILLER_PORT"] = str(port)
    if host is not None:
        environment["TILLER_HOST"] = host
    settings = Settings.read(environment, config)
    stop = threading.Event()
    stop_on_signals(stop)
    if until_stdin_closes:
        stop_with_parent(stop)
    if local:
        from service.local import serve as run
    else:
        from service.deployment import serve as run
    run(settings, stop, tell=lambda line: err.print(line, highlight=False))


@app.command()
def image(  # noqa: PLR0913, PLR0917 - one argument per option
    prompt: Annotated[str | None, typer.Argument(help="What to draw.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="A PNG file.")] = Path(
        "tiller.png"
    ),
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Default: miniature-sd; with --from, the picture's."),
    ] = None,
    edits: Annotated[list[str] | None, typer.Option("--edit", "-e", help="potus@live")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    guidance: Annotated[float | None, typer.Option()] = None,
    negative: Annotated[str | None, typer.Option(help="A negative prompt.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT")] = None,
    sampler: Annotated[str | None, typer.Option()] = None,
    n: Annotated[int, typer.Option("-n", min=1, max=10, help="How many, with seeds in a row.")] = 1,
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", help="An edit: a sheet without it and with it."),
    ] = None,
    again: Annotated[
        Path | None,
        typer.Option("--from", help="A picture, to be drawn again."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With --from: even if the weights are others.")
    ] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Draw a picture, with edits if you name some; compare them; draw a picture again."""
    asked = {
        "seed": seed,
        "size": size,
        "steps": steps,
        "guidance_scale": guidance,
        "negative_prompt": negative,
        "sampler": sampler,
    }
    if again is not None:
        if prompt or edits or compare or n > 1 or any(v is not None for v in asked.values()):
            raise typer.BadParameter("With --from the picture says everything but -o and -m.")
        draw_again(again, output, model, force=force, tiller=Tiller(url, api_key))
        return
    if prompt is None:
        raise typer.BadParameter("Say what to draw, or name a picture with --from.")
    if not output.parent.is_dir():
        raise typer.BadParameter(f"There is no folder {output.parent} for -o.")
    asked |= {"model": model or "miniature-sd", "edits": edits or (), "n": n}
    with Tiller(url, api_key) as tiller, err.status("drawing"):
        if compare:
            compared = tiller.images.compare(prompt, compare, **asked)
            output.write_bytes(compared.sheet)
            out.print(f"{output}  {', '.join(compared.pictures)}", highlight=False)
            return
        pictures = tiller.images.generate(prompt, **asked)
    for i, picture in enumerate(pictures):
        path = output if n == 1 else output.with_stem(f"{output.stem}-{i}")
        path.write_bytes(picture.png)
        show_picture(path, picture)


def draw_again(
    picture: Path, output: Path, model: str | None, *, force: bool, tiller: Tiller
) -> None:
    """Redraw a picture and say whether it is the same, and what may have changed it."""
    if not picture.is_file():
        raise typer.BadParameter(f"There is no file {picture}.")
    if output.resolve() == picture.resolve():
        raise typer.BadParameter("-o names the picture that is read; name another file.")
    with tiller, err.status("drawing"):
        redrawn = tiller.images.redraw(picture.read_bytes(), model=model, force=force)
    output.write_bytes(redrawn.picture.png)
    for difference in redrawn.differences:
        err.print(f"[yellow]![/] {escape(difference)}", highlight=False)
    told = {0: "equal to the bit", None: "of another size"}
    show_picture(
        output, redrawn.picture, told.get(redrawn.off, f"off by up to {redrawn.off} of 255 levels")
    )


def show_picture(path: Path, picture: Picture, note: str = "") -> None:
    """Where it is, its seed, and what was applied."""
    applied = [f"{e['name']}@{e['version']}" for e in picture.tiller["edits"]]
    told = [str(path), f"seed {picture.seed}", f"edits {', '.join(applied) or 'none'}", note]
    out.print("  ".join(filter(None, told)))


@app.command()
def models(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """What is hosted."""
    with Tiller(url, api_key) as tiller:
        rows = tiller.models.list()
    table = Table("model", "kind", "family", "state", "edits")
    for m in rows:
        edits = ", ".join(map(str, m.get("edits", ())))
        table.add_row(m["id"], m["kind"], m.get("family", ""), m.get("state", ""), edits)
    out.print(table)


@jobs.command("list")
def jobs_list(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """The newest jobs."""
    with Tiller(url, api_key) as tiller:
        rows = tiller.jobs.list()
    table = Table(Column("job", no_wrap=True), "kind", "model", "state", "progress", "stage")
    for j in rows:
        done = f"{100 * j['progress']:.0f} %"
        table.add_row(j["id"], j["kind"], j["model"], j["state"], done, j["stage"])
    out.print(table)


@jobs.command("show")
def jobs_show(job: str, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """One job as JSON."""
    with Tiller(url, api_key) as tiller:
        out.print_json(data=tiller.jobs.show(job))


@jobs.command("watch")
def jobs_watch(job: str, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Follow a job to its end."""
    with Tiller(url, api_key) as tiller, bar(job) as progress:
        done = tiller.jobs.wait(job, progress)
    out.print_json(data=done["result"])


@jobs.command("cancel")
def jobs_cancel(job: str, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Stop a job at its next step."""
    with Tiller(url, api_key) as tiller:
        out.print(tiller.jobs.cancel(job)["state"])


evaluate.command("circuit")(circuit)
for name, command in (("demo", demo), ("chat", chat), ("see", see), ("lens", lens)):
    app.command(name)(command)
for name, group in (
    ("edit", edit),
    ("jobs", jobs),
    ("keys", keys),
    ("registry", registry),
    ("evaluate", evaluate),
    ("evidence", evidence),
    ("backpatch", backpatch),
    ("sae", sae),
    ("vector", vector),
    ("preset", preset),
):
    app.add_typer(group, name=name)
