"""`/v1/backpatch`: calibrations find a plan and say whether it helps."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from service.api.answers import Bench, Page, listed, reply
from service.api.artifacts import artifact
from service.api.edits import EXACT, Reader, Writer
from service.api.jobs import accepted, waited
from service.api.once import Once
from service.auth import Principal
from service.calibrating import (
    CALIBRATE,
    artifacts,
    check_payload,
    identity,
    known,
    payload_of,
    result_of,
    save,
)
from service.calibration_examples import Kept, of_archive, of_rows
from service.datasets import newest
from service.errors import BadRequest, ScopeMissing, TooMuch, WrongModality
from service.lineage import check_kind
from service.registry.blobs import digest_of
from service.registry.kinds import CALIBRATION, EXAMPLES, STEERING
from service.registry.records import Edit, Version
from service.resolving import Resolver
from service.schema_backpatch import CalibrationBody
from service.settings import Limits
from service.workbench import Workbench

router = APIRouter(prefix="/v1/backpatch", tags=["backpatch"], route_class=Once)
_PROMOTE = "edits:promote"
"""What moves an alias."""
_FORM = {
    "type": "object",
    "properties": {
        "request": {"type": "string", "description": "The JSON body, without `examples`."},
        "file": {"type": "string", "format": "binary", "description": "A zip."},
    },
    "required": ["request", "file"],
}


@router.post(
    "/calibrations",
    status_code=202,
    dependencies=EXACT,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": CalibrationBody.model_json_schema()},
                "multipart/form-data": {"schema": _FORM},
            },
        }
    },
)
async def calibrate(request: Request, bench: Bench, caller: Writer) -> JSONResponse:
    """Find a plan for labelled questions, as JSON or with an archive of pictures: a job."""
    limits = bench.settings.limits
    body, archive = await _asked(request, limits)
    _check(body, limits, caller)
    card = await _seeing(bench, body, caller)
    if body.save is not None:
        save_as = body.save.name
        await asyncio.to_thread(check_kind, bench.registry, caller.tenant, save_as, STEERING)
    kept = await asyncio.to_thread(_examples, body, archive, limits)
    payload = payload_of(body, digest_of(kept.data))
    await asyncio.to_thread(check_payload, payload, kept.data)
    payload["id"] = identity(payload, card["fingerprint"])
    before = await asyncio.to_thread(known, bench.registry, caller.tenant, payload["id"])
    if before is not None:
        saved = await asyncio.to_thread(
            save, bench.registry, caller.tenant, caller.name, before, payload
        )
        return reply(request, {**calibration_body(before), "preset": saved, "cache_hit": True})
    await asyncio.to_thread(_keep, bench, caller, body.model, card["fingerprint"], kept)
    job = await asyncio.to_thread(
        bench.registry.jobs.create, caller.tenant, CALIBRATE, body.model, payload, caller.name
    )
    return accepted(request, await waited(request, bench, job))


@router.get("/calibrations")
async def list_calibrations(
    request: Request, page: Annotated[Page, Query()], bench: Bench, caller: Reader
) -> JSONResponse:
    """This tenant's finished calibrations; those under way are among the jobs."""
    found = await asyncio.to_thread(
        bench.registry.presets.list, caller.tenant, CALIBRATION, page.limit, page.after
    )
    return listed(request, found, _named)


@router.get("/calibrations/{name}", dependencies=EXACT)
async def show_calibration(
    request: Request, name: str, bench: Bench, caller: Reader
) -> JSONResponse:
    """The verdict, the whole report, and the names of its files."""
    return reply(request, calibration_body(await _calibration(bench, caller, name)))


@router.get("/calibrations/{name}/{file}", dependencies=EXACT)
async def download_calibration(name: str, file: str, bench: Bench, caller: Reader) -> Response:
    """One of its files: `report.json`, `report.md`, `grid-image.png`, `grid-text.png`."""
    found = await _calibration(bench, caller, name)
    made = await asyncio.to_thread(artifacts, bench.registry, found)
    return artifact(name, made, file)


async def _asked(request: Request, limits: Limits) -> tuple[CalibrationBody, bytes | None]:
    """The body, and the archive that came with it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        return await asyncio.to_thread(_body, await request.body()), None
    async with request.form(max_files=1, max_fields=1, max_part_size=limits.body_bytes) as form:
        file, told = _fields(form)
        archive = await file.read()
    body = await asyncio.to_thread(_body, told.encode())
    if body.examples:
        raise BadRequest(
            "The examples are there twice: in the request and in the archive.",
            remedy="Leave `examples` out where an archive is sent.",
            param="examples",
        )
    return body, archive


def _fields(form: FormData) -> tuple[UploadFile, str]:
    """The form's `file` and `request`."""
    for name in form:
        if name not in ("file", "request"):
            raise BadRequest(
                f"There is no field {name[:100]!r} here.",
                remedy="Send `file`, a zip, and `request`, JSON.",
                param=name[:100],
            )
    file, told = form.get("file"), form.get("request")
    if not isinstance(file, UploadFile) or not isinstance(told, str):
        missing = "request" if isinstance(file, UploadFile) else "file"
        raise BadRequest(
            f"The form has no {missing}.",
            remedy="Send `file`, a zip, and `request`, the JSON body without `examples`.",
            param=missing,
        )
    return file, told


def _body(data: bytes) -> CalibrationBody:
    try:
        return CalibrationBody.model_validate_json(data)
    except ValidationError as error:
        found = [{**e, "loc": ("body", *e["loc"])} for e in error.errors(include_url=False)]
        raise RequestValidationError(found) from None


def _check(body: CalibrationBody, limits: Limits, caller: Principal) -> None:
    """What can be refused before a picture is opened."""
    if body.save is not None and body.save.alias and _PROMOTE not in caller.scopes:
        raise ScopeMissing(_PROMOTE)
    if len(body.plans) > limits.calibration_plans:
        raise TooMuch("plans", len(body.plans), limits.calibration_plans)
    for number, plan in enumerate(body.plans):
        if plan.target >= plan.source:
            raise BadRequest(
                f"plans[{number}] leads from layer {plan.source} to {plan.target}.",
                remedy="A plan leads from a later layer back to an earlier one.",
                param=f"plans[{number}].source",
            )


async def _seeing(bench: Workbench, body: CalibrationBody, caller: Principal) -> Mapping[str, Any]:
    """The card of a model that reads pictures and has the layers that the plans name."""
    if body.model not in bench.hosts:
        resolver = Resolver(registry=bench.registry, hosted=list(bench.hosts))
        await asyncio.to_thread(resolver.refuse_changed, caller.tenant, body.model)
    card = await bench.host(body.model).card()
    if card["modality"] != "vision-language":
        raise WrongModality(body.model, card["modality"], "vision-language")
    layers, limits = card["streams"]["lm"], bench.settings.limits
    for number, plan in enumerate(body.plans):
        if plan.source >= layers:
            raise BadRequest(
                f"plans[{number}] begins behind layer {plan.source} of {layers} layers.",
                remedy="Layers count from 0; `GET /v1/models` tells how many a model has.",
                param=f"plans[{number}].source",
            )
    whole = len(set(body.windows)) * layers * (layers - 1) // 2
    if not body.plans and whole > limits.calibration_plans:
        raise TooMuch("windows", whole, limits.calibration_plans, " plans")
    return card


def _examples(body: CalibrationBody, archive: bytes | None, limits: Limits) -> Kept:
    if archive is None:
        return of_rows(body.examples, body.labels, limits)
    return of_archive(archive, body.labels, limits)


def _keep(bench: Workbench, caller: Principal, model: str, fingerprint: str, kept: Kept) -> Version:
    """Keep the examples under a name that is their content's."""
    return bench.registry.edits.register(
        caller.tenant,
        f"examples-{digest_of(kept.data)[:20]}",
        model,
        fingerprint,
        kept.data,
        header={"examples": kept.count},
        actor=caller.name,
        kind=EXAMPLES,
    )


async def _calibration(bench: Workbench, caller: Principal, name: str) -> Version:
    return await asyncio.to_thread(newest, bench.registry, caller.tenant, CALIBRATION, name)


def calibration_body(found: Version) -> dict[str, Any]:
    """A calibration as JSON."""
    told = {k: v for k, v in result_of(found, None).items() if k not in ("preset", "calibration")}
    return {
        "object": "backpatch.calibration",
        "id": found.name,
        "model": found.model,
        "fingerprint": found.fingerprint,
        **told,
        "report": found.report,
        "job": found.job,
        "created_at": found.created_at,
    }


def _named(found: Edit) -> dict[str, Any]:
    return {
        "object": "backpatch.calibration",
        "id": found.name,
        "created_at": found.created_at,
        "created_by": found.created_by,
        "location": f"/v1/backpatch/calibrations/{found.name}",
    }
