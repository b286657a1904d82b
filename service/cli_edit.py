"""`tiller edit`: facts are registered, promoted, rolled back, exported."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from service.cli_shared import Alias, ApiKey, EditName, IfMatch, Replaces, Url, bar, out
from service.client import DEFAULT_URL, Tiller

app = typer.Typer(no_args_is_help=True, help="Facts: register, promote, roll back.")


@app.command("add")
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


@app.command("list")
def edit_list(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """All edits."""
    with Tiller(url, api_key) as tiller:
        rows = tiller.edits.list(limit=1000)
    table = Table("edit", "versions", "aliases")
    for row in rows:
        aliases = ", ".join(f"{a['alias']} -> {a['version']}" for a in row["aliases"])
        table.add_row(row["name"], str(row["versions"]), aliases)
    out.print(table)


@app.command("show")
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


@app.command("promote")
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


@app.command("rollback")
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


@app.command("retire")
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


@app.command("export")
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
    if not output.parent.is_dir() or output.is_dir():
        raise typer.BadParameter(
            f"{output} cannot be written: no such folder, or it is a folder itself."
        )
    with Tiller(url, api_key) as tiller:
        data = tiller.edits.export(name, version, form=form)
    output.write_bytes(data)
    out.print(f"{output}  {len(data)} bytes")


@app.command("import")
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


def setting(told: str) -> tuple[str, Any]:
    """`name=value`; the value as JSON where it is JSON, else as text."""
    name, equals, value = told.partition("=")
    if not (name and equals):
        raise typer.BadParameter(f"--set wants name=value, not {told!r}.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


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
