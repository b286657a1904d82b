"""`/v1/edits`: facts become versions, names point to them."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Query, Request, Response, UploadFile
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from service.api.answers import Bench, Generation, Page, listed, no_query, reply
from service.api.jobs import accepted, waited
from service.api.once import Once
from service.auth import Principal, needs
from service.conflicts import replaced
from service.errors import BadRequest, TooMuch
from service.evidence import check_audit, with_advice
from service.jobs import fit_payload
from service.lineage import newest, parent_of
from service.registry.blobs import digest_of
from service.schema import NAME, AliasBody, FactBody, Replaces
from service.workbench import Arrival

router = APIRouter(prefix="/v1/edits", tags=["edits"], route_class=Once)
Reader = Annotated[Principal, Depends(needs("edits:read"))]
Writer = Annotated[Principal, Depends(needs("edits:write"))]
Promoter = Annotated[Principal, Depends(needs("edits:promote"))]
EXACT = [Depends(no_query)]


class DeltaForm(BaseModel):
    """`?format=`: how a delta is downloaded."""

    model_config = ConfigDict(extra="forbid")
    format: Literal["safetensors", "peft", "diffusers"] = "safetensors"


class ImportForm(BaseModel):
    """The fields of `POST /v1/edits/import`."""

    model_config = ConfigDict(extra="forbid")
    file: UploadFile
    name: Annotated[str, Field(pattern=NAME)]
    model: Annotated[str, Field(max_length=200)]
    replaces: Replaces = []


@router.post("", status_code=202, dependencies=EXACT)
async def register_edit(
    request: Request, body: FactBody, bench: Bench, caller: Writer
) -> JSONResponse:
    """Fit a fact: a job, whose result is a new version. `Prefer: wait=30` waits for it."""
    if body.options.get("block") == "auto":
        card = await bench.host(body.model).card()
        body = await asyncio.to_thread(
            with_advice, bench.registry, caller.tenant, card["fingerprint"], body
        )
    payload = fit_payload(body, bench.settings.limits)
    payload["replaces"] = await asyncio.to_thread(
        replaced, bench.registry, caller.tenant, body.replaces
    )
    await bench.host(body.model).check_fact(payload)
    job = await asyncio.to_thread(
        bench.registry.jobs.create, caller.tenant, "fit_edit", body.model, payload, caller.name
    )
    return accepted(request, await waited(request, bench, job))


@router.post("/import", status_code=201, dependencies=EXACT)
async def import_edit(
    request: Request, form: Annotated[ImportForm, Form()], bench: Bench, caller: Writer
) -> JSONResponse:
    """A delta file, or a PEFT adapter as zip, becomes a version, checked and measured here."""
    data = await form.file.read()
    if len(data) > bench.settings.limits.import_bytes:
        raise TooMuch("file", len(data), bench.settings.limits.import_bytes)
    host = bench.host(form.model)
    card = await host.card()
    replaces = await asyncio.to_thread(replaced, bench.registry, caller.tenant, form.replaces)
    arrival = Arrival(tenant=caller.tenant, name=form.name, data=data, replaces=tuple(replaces))
    adopted = await host.adopt(arrival)
    before = await asyncio.to_thread(newest, bench.registry, caller.tenant, form.name)
    version = await asyncio.to_thread(
        bench.registry.edits.register,
        caller.tenant,
        form.name,
        form.model,
        card["fingerprint"],
        adopted.data,
        header=adopted.header,
        report=adopted.report,
        status=adopted.status,
        actor=caller.name,
        parent=parent_of(digest_of(adopted.data), before),
    )
    return reply(request, version_body(version), 201, {"Location": _address(version)})


@router.get("")
async def list_edits(
    request: Request, page: Annotated[Page, Query()], bench: Bench, caller: Reader
) -> JSONResponse:
    """This tenant's edits by name."""
    edits = await asyncio.to_thread(
        bench.registry.edits.list, caller.tenant, page.limit, page.after
    )
    return listed(request, edits, edit_body)


@router.get("/{name}", dependencies=EXACT)
async def show_edit(request: Request, name: str, bench: Bench, caller: Reader) -> JSONResponse:
    """One edit: its aliases and its versions' numbers."""
    registry = bench.registry
    edit = await asyncio.to_thread(registry.edits.get, caller.tenant, name)
    versions = await asyncio.to_thread(registry.edits.versions, caller.tenant, name)
    history = [{k: version_body(v)[k] for k in _SHORT} for v in versions.items]
    body = {**edit_body(edit), "history": history, "history_has_more": versions.has_more}
    return reply(request, body)


_SHORT = ("version", "status", "digest", "created_at", "created_by")


@router.get("/{name}/versions")
async def list_versions(
    request: Request, name: str, page: Annotated[Page, Query()], bench: Bench, caller: Reader
) -> JSONResponse:
    """All versions, newest first, with settings and reports."""
    versions = await asyncio.to_thread(
        bench.registry.edits.versions, caller.tenant, name, page.limit, page.after
    )
    return listed(request, versions, version_body)


@router.get("/{name}/versions/{number}", dependencies=EXACT)
async def show_version(
    request: Request, name: str, number: int, bench: Bench, caller: Reader
) -> JSONResponse:
    """One version: digest, what it was fitted to, its measured report."""
    version = await _version(bench, caller, name, number)
    return reply(request, version_body(version), headers={"ETag": f'"{version.digest}"'})


@router.delete("/{name}/versions/{number}", dependencies=EXACT)
async def retire_version(
    request: Request, name: str, number: int, bench: Bench, caller: Writer
) -> JSONResponse:
    """Retire: refused while an alias or a variant points to it."""
    await asyncio.to_thread(bench.registry.edits.retire, caller.tenant, name, number, caller.name)
    return reply(request, version_body(await _version(bench, caller, name, number)))


@router.get("/{name}/versions/{number}/delta")
async def download_delta(
    name: str, number: int, form: Annotated[DeltaForm, Query()], bench: Bench, caller: Reader
) -> Response:
    """The safetensors file itself, or an adapter for peft (zip) or diffusers."""
    version = await _version(bench, caller, name, number)
    ending = "zip" if form.format == "peft" else "safetensors"
    if form.format == "safetensors":
        data = await asyncio.to_thread(bench.registry.edits.blob, version.digest)
    else:
        data = await bench.host(version.model).export(version.digest, form.format)
    headers = {
        "Content-Disposition": f'attachment; filename="{name}-{number}.{ending}"',
        "X-Tiller-Digest": version.digest,
    }
    media = "application/zip" if ending == "zip" else "application/octet-stream"
    return Response(data, media_type=media, headers=headers)


@router.get("/{name}/aliases", dependencies=EXACT)
async def list_aliases(request: Request, name: str, bench: Bench, caller: Reader) -> JSONResponse:
    """Names that move, and where they point."""
    aliases = await asyncio.to_thread(bench.registry.names.aliases, caller.tenant, name)
    return reply(request, {"object": "list", "data": [alias_body(a) for a in aliases]})


@router.get("/{name}/aliases/{alias}", dependencies=EXACT)
async def show_alias(
    request: Request, name: str, alias: str, bench: Bench, caller: Reader
) -> JSONResponse:
    """One alias; its ETag is its generation."""
    found = await asyncio.to_thread(bench.registry.names.alias, caller.tenant, name, alias)
    return _alias_reply(request, found)


@router.put("/{name}/aliases/{alias}", dependencies=EXACT)
async def move_alias(  # noqa: PLR0913, PLR0917 - one argument per part of the request
    request: Request,
    name: str,
    alias: str,
    body: AliasBody,
    bench: Bench,
    caller: Promoter,
    if_match: Generation,
) -> JSONResponse:
    """Point the alias to a version; with `If-Match`, only if nobody moved it meanwhile."""
    await asyncio.to_thread(
        check_audit, bench.registry, bench.settings, caller.tenant, name, body.version
    )
    moved = await asyncio.to_thread(
        bench.registry.names.move,
        caller.tenant,
        name,
        alias,
        body.version,
        actor=caller.name,
        if_match=if_match,
        force=body.force,
    )
    return _alias_reply(request, moved)


@router.post("/{name}/aliases/{alias}/rollback", dependencies=EXACT)
async def roll_back(
    request: Request,
    name: str,
    alias: str,
    bench: Bench,
    caller: Promoter,
    if_match: Generation,
) -> JSONResponse:
    """Point the alias to where it pointed before."""
    if await request.body() not in (b"", b"{}"):
        raise BadRequest("A rollback has no body.", remedy="Send none; PUT chooses a version.")
    moved = await asyncio.to_thread(
        bench.registry.names.rollback,
        caller.tenant,
        name,
        alias,
        actor=caller.name,
        if_match=if_match,
    )
    return _alias_reply(request, moved)


@router.delete("/{name}/aliases/{alias}", dependencies=EXACT)
async def delete_alias(
    request: Request,
    name: str,
    alias: str,
    bench: Bench,
    caller: Promoter,
    if_match: Generation,
) -> JSONResponse:
    """Forget the alias; its versions stay."""
    await asyncio.to_thread(
        bench.registry.names.delete_alias, caller.tenant, name, alias, caller.name, if_match
    )
    return reply(request, {"object": "alias", "edit": name, "alias": alias, "deleted": True})


async def _version(bench: Bench, caller: Principal, name: str, number: int) -> Any:
    return await asyncio.to_thread(bench.registry.edits.version, caller.tenant, name, number)


def _alias_reply(request: Request, alias: Any) -> JSONResponse:
    return reply(request, alias_body(alias), headers={"ETag": f'"{alias.generation}"'})


def _address(version: Any) -> str:
    return f"/v1/edits/{version.name}/versions/{version.number}"


def edit_body(edit: Any) -> dict[str, Any]:
    """An edit as JSON."""
    return {
        "object": "edit",
        "name": edit.name,
        "versions": edit.versions,
        "aliases": [alias_body(a) for a in edit.aliases],
        "created_at": edit.created_at,
        "created_by": edit.created_by,
    }


def alias_body(alias: Any) -> dict[str, Any]:
    """An alias as JSON."""
    return {
        "object": "alias",
        "edit": alias.name,
        "alias": alias.alias,
        "version": alias.version,
        "generation": alias.generation,
        "moved_at": alias.moved_at,
        "moved_by": alias.moved_by,
    }


def version_body(version: Any) -> dict[str, Any]:
    """A version as JSON."""
    return {
        "object": "edit.version",
        "edit": version.name,
        "version": version.number,
        "digest": version.digest,
        "model": version.model,
        "fingerprint": version.fingerprint,
        "status": version.status,
        "parent": version.parent,
        "tool": version.header.get("tool"),
        "header": version.header,
        "report": version.report,
        "size": version.size,
        "created_at": version.created_at,
        "created_by": version.created_by,
        "delta": f"{_address(version)}/delta",
    }
