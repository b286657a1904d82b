"""`tiller keys` and `tiller registry`: what the operator does on the service's own machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from service.cli_shared import REFUSED, Config, err, out

OPERATOR = "operator"
"""Who goes into the audit for what is done on this machine."""

keys = typer.Typer(no_args_is_help=True, help="API keys, in this machine's registry.")
registry = typer.Typer(no_args_is_help=True, help="The registry's housekeeping.")


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
