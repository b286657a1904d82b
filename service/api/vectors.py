"""`/v1/vectors`: directions, learned from two lists of texts or imported."""

import asyncio
from typing import Annotated

from fastapi import Form, Request, Response
from fastapi.responses import JSONResponse

from service.api.answers import Bench, reply
from service.api.edits import Reader, Writer
from service.api.jobs import accepted, waited
from service.api.named import EXACT, Noun, PathName, routes
from service.errors import TooMuch
from service.lineage import check_kind, newest, parent_of
from service.questions import AdoptVector, CheckVector
from service.registry.blobs import digest_of
from service.registry.kinds import VECTOR
from service.schema_features import VectorBody, VectorForm
from service.vectors import LEARN

NOUN = Noun(
    word="vector",
    kind=VECTOR,
    content=lambda version: {
        "method": version.header.get("method"),
        "tool": version.header.get("tool"),
        "header": version.header,
    },
)
router = routes(NOUN)


@router.post("", status_code=202, dependencies=EXACT)
async def learn_vector(
    request: Request, body: VectorBody, bench: Bench, caller: Writer
) -> JSONResponse:
    """Learn a direction from two lists of texts: a job, whose result is a new version."""
    await asyncio.to_thread(check_kind, bench.registry, caller.tenant, body.name, VECTOR)
    payload = body.model_dump()
    payload["sites"] = await bench.host(body.model).answer(CheckVector(payload=payload))
    job = await asyncio.to_thread(
        bench.registry.jobs.create, caller.tenant, LEARN, body.model, payload, caller.name
    )
    return accepted(request, await waited(request, bench, job))


@router.post("/import", status_code=201, dependencies=EXACT)
async def import_vector(
    request: Request, form: Annotated[VectorForm, Form()], bench: Bench, caller: Writer
) -> JSONResponse:
    """A control-vector file (GGUF, safetensors, npz, npy) becomes a version, checked here."""
    data = await form.file.read()
    if len(data) > bench.settings.limits.import_bytes:
        raise TooMuch("file", len(data), bench.settings.limits.import_bytes)
    await asyncio.to_thread(check_kind, bench.registry, caller.tenant, form.name, VECTOR)
    host = bench.host(form.model)
    card = await host.card()
    arrival = AdoptVector(file=form.file.filename or "", data=data, site=form.site)
    adopted = await host.answer(arrival)
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
        actor=caller.name,
        kind=VECTOR,
        parent=parent_of(digest_of(adopted.data), before),
    )
    location = {"Location": NOUN.address(version)}
    return reply(request, NOUN.version_body(version), 201, location)


@router.get("/{name}/versions/{number}/file", dependencies=EXACT)
async def download_vector(name: PathName, number: int, bench: Bench, caller: Reader) -> Response:
    """The safetensors file itself."""
    version = await NOUN.version(bench, caller, name, number)
    data = await asyncio.to_thread(bench.registry.edits.blob, version.digest)
    headers = {
        "Content-Disposition": f'attachment; filename="{name}-{number}.safetensors"',
        "X-Tiller-Digest": version.digest,
    }
    return Response(data, media_type="application/octet-stream", headers=headers)
