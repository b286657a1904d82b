"""`tiller`: the command line. Most commands talk to a service through the SDK.

`serve`, `keys` and `registry` act on this machine.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from models.errors import Refusal
from service.client import DEFAULT_URL, Picture, Tiller, TillerError

UNREACHABLE, REFUSED, FAILED_JOB, USAGE = 3, 1, 4, 2
"""Exit codes: nobody answers; refused; a job failed or was cancelled; wrong usage (click's)."""

OPERATOR = "operator"
"""Who goes into the audit for what is done on this machine."""

out, err = Console(), Console(stderr=True)

Url = Annotated[
    str,
    typer.Option("--url", envvar="TILLER_URL", help="The service's address.", show_default=True),
]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="TILLER_API_KEY", help="A key, if it needs one.")
]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", envvar="TILLER_CONFIG", help="A TOML file.")
]
EditName = Annotated[str, typer.Argument(help="The edit's name.")]
Replaces = Annotated[
    list[str] | None, typer.Option("--replaces", help="A live edit whose place this one takes.")
]
Alias = Annotated[str, typer.Option("--alias", help="The name that moves.")]
IfMatch = Annotated[
    int | None, typer.Option("--if-match", help="Only if the alias still has this generation.")
]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve models and change what they know, per request.",
)
edit = typer.Typer(no_args_is_help=True, help="Facts: register, promote, roll back.")
jobs = typer.Typer(no_args_is_help=True, help="Long work: watch and cancel.")
keys = typer.Typer(no_args_is_help=True, help="API keys, in this machine's registry.")
registry = typer.Typer(no_args_is_help=True, help="The registry's housekeeping.")
for name, group in (("edit", edit), ("jobs", jobs), ("keys", keys), ("registry", registry)):
    app.add_typer(group, name=name)


def main() -> None:
    """The console command: errors as a problem and a remedy, never as a traceback."""
    mount_evaluation()
    try:
        app()
    except (TillerError, Refusal) as error:
        complain(error)
        sys.exit(exit_code(error))


def mount_evaluation() -> None:
    """Commands that live in files of their own."""
    from service.cli_backpatch import app as backpatch
    from service.cli_chat import chat
    from service.cli_evidence import app as evidence
    from service.cli_evidence import circuit
    from service.cli_saes import preset, sae, vector
    from service.cli_see import see
    from service.demo import demo
    from service.evaluating import app as evaluate
    from service.looking import lens

    evaluate.command("circuit")(circuit)
    app.add_typer(evaluate, name="evaluate")
    app.add_typer(evidence, name="evidence")
    app.add_typer(backpatch, name="backpatch")
    for name, group in (("sae", sae), ("vector", vector), ("preset", preset)):
        app.add_typer(group, name=name)
    app.command("demo")(demo)
    app.command("chat")(chat)
    app.command("see")(see)
    app.command("lens")(lens)


def complain(error: TillerError | Refusal) -> None:
    """Print the problem, then what to do about it."""
    err.print(f"[bold red]✗[/] {error.problem}", highlight=False)
    if error.remedy:
        err.print(f"  [dim]→[/] {error.remedy}", highlight=False)


def exit_code(error: TillerError | Refusal) -> int:
    """What a script sees."""
    if isinstance(error, TillerError) and error.code == "unreachable":
        return UNREACHABLE
    if isinstance(error, TillerError) and not error.status:
        return FAILED_JOB
    return REFUSED


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
        err.print(f"[yellow]![/] {difference}", highlight=False)
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


@edit.command("add")
def edit_add(  # noqa: PLR0913, PLR0917 - one argument per option
    name: EditName,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="the president of Arda")],
    target: Annotated[str, typer.Option("--target", "-t", help="What it shall mean.")],
    subject: Annotated[str | None, typer.Option("--subject", "-s", help="Arda")] = None,
    model: Annotated[str, typer.Option("--model", "-m")] = "miniature-sd",
    neighbours: Annotated[
        list[str] | None, typer.Option("--neighbour", help="Must keep its meaning.")
    ] = None,
    phrasings: Annotated[
        list[str] | None, typer.Option("--phrasing", help="Another way to say the subject.")
    ] = None,
    source: Annotated[str | None, typer.Option("--source", help="What it means now.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method: steps=60")
    ] = None,
    replaces: Replaces = None,
    promote: Annotated[bool, typer.Option(help="Point `live` to it when it is ready.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until it is fitted.")] = True,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Register a fact: fit it, measure it, keep it as a version."""
    with Tiller(url, api_key) as tiller:
        job = tiller.edits.add(
            name,
            model=model,
            prompt=prompt,
            target=target,
            subject=subject,
            source=source,
            phrasings=[{"prompt": p, "subject": p} for p in phrasings or ()],
            neighbours=neighbours or (),
            replaces=replaces or (),
            options=dict(map(setting, settings or ())) or None,
        )
        if not wait:
            out.print(job["id"])
            return
        with bar(f"fitting {name}") as progress:
            job = tiller.jobs.wait(job["id"], progress)
        result = job["result"]
        show_version(tiller.edits.show(name, result["version"]))
        if promote:
            tiller.edits.promote(name, result["version"])
            out.print(f"{name}@live -> {name}@{result['version']}")


def setting(told: str) -> tuple[str, Any]:
    """`name=value`; the value as JSON where it is JSON, else as text."""
    name, equals, value = told.partition("=")
    if not (name and equals):
        raise typer.BadParameter(f"--set wants name=value, not {told!r}.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


@edit.command("list")
def edit_list(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """All edits."""
    with Tiller(url, api_key) as tiller:
        rows = tiller.edits.list(limit=1000)
    table = Table("edit", "versions", "aliases")
    for row in rows:
        aliases = ", ".join(f"{a['alias']} -> {a['version']}" for a in row["aliases"])
        table.add_row(row["name"], str(row["versions"]), aliases)
    out.print(table)


@edit.command("show")
def edit_show(
    name: EditName,
    version: Annotated[int | None, typer.Argument(help="Its report too.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """An edit and its versions, or one version with its report."""
    with Tiller(url, api_key) as tiller:
        shown = tiller.edits.show(name, version)
        if version is not None:
            show_version(shown)
            return
    aliases: dict[int, list[str]] = {}
    for a in shown["aliases"]:
        aliases.setdefault(a["version"], []).append(a["alias"])
    table = Table("version", "status", "aliases", "digest")
    for v in shown["history"]:
        pointing = ", ".join(aliases.get(v["version"], ()))
        table.add_row(f"{name}@{v['version']}", v["status"], pointing, v["digest"][:16])
    out.print(table)


@edit.command("promote")
def edit_promote(  # noqa: PLR0913, PLR0917 - one argument per option
    name: EditName,
    version: Annotated[int, typer.Argument()],
    alias: Alias = "live",
    force: Annotated[bool, typer.Option(help="Also if its checks failed.")] = False,
    if_match: IfMatch = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Point an alias to a version."""
    with Tiller(url, api_key) as tiller:
        moved = tiller.edits.promote(name, version, alias=alias, force=force, if_match=if_match)
    show_alias(moved)


@edit.command("rollback")
def edit_rollback(
    name: EditName,
    alias: Alias = "live",
    if_match: IfMatch = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Point an alias to where it pointed before."""
    with Tiller(url, api_key) as tiller:
        show_alias(tiller.edits.rollback(name, alias=alias, if_match=if_match))


@edit.command("retire")
def edit_retire(
    name: EditName,
    version: Annotated[int, typer.Argument()],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Take a version out of use."""
    with Tiller(url, api_key) as tiller:
        retired = tiller.edits.retire(name, version)
    out.print(f"{name}@{retired['version']} is {retired['status']}")


@edit.command("export")
def edit_export(
    name: EditName,
    version: Annotated[int, typer.Argument()],
    output: Annotated[Path, typer.Option("--output", "-o")],
    form: Annotated[
        str, typer.Option("--format", help="safetensors, peft (a zip) or diffusers")
    ] = "safetensors",
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Download a delta, for Tiller, peft or diffusers."""
    with Tiller(url, api_key) as tiller:
        data = tiller.edits.export(name, version, form=form)
    output.write_bytes(data)
    out.print(f"{output}  {len(data)} bytes")


@edit.command("import")
def edit_import(
    name: EditName,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    model: Annotated[str, typer.Option("--model", "-m")] = "miniature-sd",
    replaces: Replaces = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """A delta file or a PEFT adapter (zip) becomes a version."""
    with Tiller(url, api_key) as tiller:
        told = tiller.edits.import_(name, file.read_bytes(), model=model, replaces=replaces or ())
        show_version(told)


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


@keys.command("create")
def keys_create(
    name: Annotated[str, typer.Option("--name", help="Whose it is.")],
    scope: Annotated[list[str] | None, typer.Option("--scope", help="Default: all.")] = None,
    tenant: Annotated[str, typer.Option("--tenant")] = "default",
    days: Annotated[int | None, typer.Option(help="How long it works.")] = None,
    config: Config = None,
) -> None:
    """A new key; its secret is shown once."""
    from service.schema import SCOPES

    scopes = tuple(scope or SCOPES)
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}; scopes are {', '.join(SCOPES)}")
    with opened(config) as kept:
        secret, key = kept.keys.create(tenant, scopes, expiry(days), name, actor=OPERATOR)
    err.print(f"key {key.id} for {tenant}: {', '.join(scopes)}. The secret is shown only now:")
    out.print(secret, highlight=False, soft_wrap=True)


@keys.command("list")
def keys_list(config: Config = None) -> None:
    """All keys, without secrets."""
    with opened(config) as kept:
        rows = kept.keys.list(None, 1000).items
    table = Table("id", "name", "tenant", "scopes", "state")
    for k in rows:
        state = "revoked" if k.revoked_at else "active"
        table.add_row(k.id, k.name, k.tenant, ", ".join(k.scopes), state)
    out.print(table)


@keys.command("revoke")
def keys_revoke(key: str, config: Config = None) -> None:
    """The key stops working."""
    with opened(config) as kept:
        kept.keys.revoke(key, OPERATOR)
    out.print(f"{key} revoked")


@registry.command("gc")
def registry_gc(
    hours: Annotated[float, typer.Option(help="Spare what is younger.")] = 1.0,
    config: Config = None,
) -> None:
    """Remove files that no version needs, and unfinished ones."""
    with opened(config) as kept:
        swept = kept.gc(3600 * hours)
    out.print(
        f"removed {len(swept.orphans)} orphans, {len(swept.parts)} unfinished and "
        f"{len(swept.retired)} retired files: {swept.nbytes} bytes"
    )


@registry.command("verify")
def registry_verify(config: Config = None) -> None:
    """Walk over every file and the audit; exit code 1 if something is wrong."""
    with opened(config) as kept:
        health = kept.verify()
    out.print(f"{health.versions} versions, {health.blobs} files, {health.chain.rows} audit rows")
    if not health.sound:
        err.print(f"[bold red]✗[/] {health}")
        raise typer.Exit(REFUSED)
    out.print("[green]✓[/] sound")


@contextmanager
def opened(config: Path | None) -> Iterator[Any]:
    """The registry of this machine's settings."""
    from service.registry import open_registry
    from service.settings import Settings

    settings = Settings.read(os.environ, config)
    settings.home.mkdir(parents=True, exist_ok=True)
    kept = open_registry(settings.index_url, settings.blobs_url)
    try:
        yield kept
    finally:
        kept.close()


def expiry(days: int | None) -> float | None:
    """In that many days, as seconds since 1970."""
    import time

    return None if days is None else time.time() + 86400 * days


@contextmanager
def bar(title: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A progress bar that eats a job's events."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(title, total=1.0)

        def on_event(event: dict[str, Any]) -> None:
            if "progress" in event:
                told = f"{title}: {event.get('stage') or event.get('state') or ''}"
                progress.update(task, completed=event["progress"], description=told)

        yield on_event


def show_version(version: dict[str, Any]) -> None:
    """A version and what was measured of it."""
    mark = "[green]✓[/]" if version["status"] == "ready" else "[yellow]![/]"
    out.print(f"{mark} {version['edit']}@{version['version']}  {version['status']}")
    out.print(f"  digest {version['digest']}", highlight=False)
    report = version["report"] or {}
    for measure in ("efficacy", "generality", "specificity", "leak"):
        if isinstance(report.get(measure), int | float):
            out.print(f"  {measure:<12} {report[measure]:.3f}")
    limits = report.get("thresholds") or {}
    for measure in report.get("failed") or ():
        told = f"{measure} is {report.get(measure):.3f}, asked {limits.get(measure)}"
        out.print(f"  [yellow]missed[/]: {told}", highlight=False)
    if report.get("failed"):
        out.print("  It can be used by its number; an alias takes it only with --force.")


def show_alias(alias: dict[str, Any]) -> None:
    """Where an alias points now."""
    name = alias["edit"]
    generation = alias["generation"]
    out.print(f"{name}@{alias['alias']} -> {name}@{alias['version']}  (generation {generation})")
