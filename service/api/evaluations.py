"""`/v1/datasets`, `/v1/evaluations`, `/v1/policies`: causal evidence, found by jobs."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from service.api.answers import Bench, Page, listed, no_query, reply
from service.api.artifacts import artifact
from service.api.edits import Reader, Writer
from service.api.jobs import accepted, waited
from service.api.keys import Admin
from service.api.once import Once
from service.auth import Principal
from service.datasets import Dataset, dataset_of, find, keep, newest
from service.evaluations import artifacts, identity, known, result_of, under_way
from service.evidence_checks import (
    Card,
    check_enough,
    check_features,
    check_kept,
    check_model,
    check_places,
    check_settings,
)
from service.evidence_errors import WrongRows
from service.evidence_exports import exported, left_out
from service.evidence_kinds import KINDS, asked_of
from service.evidence_params import check_read
from service.evidence_policies import check_gated, keep_policy, policies
from service.evidence_summaries import dataset_row, evaluation_row
from service.evidence_vectors import check_saving
from service.limits import check_dataset
from service.questions import CheckRows
from service.registry.kinds import DATASET, EVALUATION
from service.registry.records import Version
from service.resolving import Resolver
from service.schema import EditUse
from service.schema_evaluations import (
    DatasetBody,
    EvaluationBody,
    ExportBody,
    KindName,
    PolicyBody,
    told_settings,
)
from service.workbench import Workbench

router = APIRouter(prefix="/v1", tags=["evaluations"], route_class=Once)
EXACT = [Depends(no_query)]


class DatasetPage(Page):
    """`?limit=&after=&model=`."""

    model: str | None = None


class EvaluationPage(DatasetPage):
    """`?limit=&after=&model=&kind=`."""

    kind: KindName | None = None


@router.post("/datasets", status_code=201, dependencies=EXACT)
async def make_dataset(
    request: Request, body: DatasetBody, bench: Bench, caller: Writer
) -> JSONResponse:
    """Rows, or what a generator draws; rows that the model cannot use are told one by one."""
    host = bench.host(body.model)
    await asyncio.to_thread(check_dataset, body, bench.settings.limits)
    card = await host.card()
    dataset = await asyncio.to_thread(dataset_of, body, bench.settings.limits)
    # Only a language model's tokens say now which rows fall out; others say it in the evaluation.
    told: dict[str, Any] = {}
    if "context" in card:
        told = await host.answer(CheckRows(dataset=dataset.data))
    kept = await asyncio.to_thread(
        keep,
        bench.registry,
        caller.tenant,
        body.model,
        card["fingerprint"],
        dataset,
        told,
        caller.name,
    )
    location = {"Location": f"/v1/datasets/{kept.name}"}
    return reply(request, _dataset_body(kept), 201, location)


@router.get("/datasets")
async def list_datasets(
    request: Request, page: Annotated[DatasetPage, Query()], bench: Bench, caller: Reader
) -> JSONResponse:
    """This tenant's data sets, newest first: their task and model, how many rows it can use."""
    found = await asyncio.to_thread(
        bench.registry.presets.newest,
        caller.tenant,
        DATASET,
        page.limit,
        page.after,
        model=page.model,
    )
    return listed(request, found, dataset_row)


@router.get("/datasets/{name}", dependencies=EXACT)
async def show_dataset(request: Request, name: str, bench: Bench, caller: Reader) -> JSONResponse:
    """One data set: how it was made, and which rows fell out."""
    found = await asyncio.to_thread(find, bench.registry, caller.tenant, name)
    return reply(request, _dataset_body(found))


@router.get("/datasets/{name}/rows", dependencies=EXACT)
async def download_rows(name: str, bench: Bench, caller: Reader) -> Response:
    """All its rows, as they are kept."""
    found = await asyncio.to_thread(find, bench.registry, caller.tenant, name)
    data = await asyncio.to_thread(bench.registry.edits.blob, found.digest)
    return Response(data, media_type="application/json")


@router.post("/evaluations", status_code=202, dependencies=EXACT)
async def evaluate(
    request: Request, body: EvaluationBody, bench: Bench, caller: Writer
) -> JSONResponse:
    """Find evidence: a job; what was found for an equal request is given again at once."""
    card = await bench.host(body.model).card()
    settings = asked_of(body.kind, body.params, body.seed)
    check_model(body.kind, settings, card)
    check_read(body.kind, body.params, settings)
    check_settings(settings)
    await check_features(settings, card, bench.host(body.model))
    counted = await _counted(bench, caller, body, card)
    asked = _Asked(bench, caller, body, settings, card, counted)
    payload = await asyncio.to_thread(asked.payload)
    if (save := payload["params"].get("save")) is not None:
        await asyncio.to_thread(check_saving, bench.registry, caller, save)
    payload["id"] = identity({"kind": body.kind, **payload}, card["fingerprint"])
    before = await asyncio.to_thread(known, bench.registry, caller.tenant, payload["id"])
    if before is not None:
        return reply(request, {**_evaluation_body(before), "cache_hit": True})
    job = await asyncio.to_thread(under_way, bench.registry, caller.tenant, payload["id"])
    job = job or await asyncio.to_thread(
        bench.registry.jobs.create, caller.tenant, body.kind, body.model, payload, caller.name
    )
    return accepted(request, await waited(request, bench, job))


@router.get("/evaluations")
async def list_evaluations(
    request: Request, page: Annotated[EvaluationPage, Query()], bench: Bench, caller: Reader
) -> JSONResponse:
    """This tenant's finished evaluations, newest first; those under way are among the jobs."""
    found = await asyncio.to_thread(
        bench.registry.presets.newest,
        caller.tenant,
        EVALUATION,
        page.limit,
        page.after,
        model=page.model,
        told=page.kind,
    )
    return listed(request, found, evaluation_row)


@router.get("/evaluations/{name}", dependencies=EXACT)
async def show_evaluation(
    request: Request, name: str, bench: Bench, caller: Reader
) -> JSONResponse:
    """What was found, and the names of its files."""
    return reply(request, _evaluation_body(await _evaluation(bench, caller, name)))


@router.get("/evaluations/{name}/artifacts/{file}", dependencies=EXACT)
async def download_artifact(name: str, file: str, bench: Bench, caller: Reader) -> Response:
    """One of its files: the report, a picture, importances, featurizers."""
    found = await _evaluation(bench, caller, name)
    made = await asyncio.to_thread(artifacts, bench.registry, found)
    return artifact(name, made, file, left_out(found, file))


@router.post("/evaluations/{name}/export", dependencies=EXACT)
async def export_evaluation(name: str, body: ExportBody, bench: Bench, caller: Reader) -> Response:
    """A zip in the layout of MIB's submissions: one cell's folder."""
    found = await _evaluation(bench, caller, name)
    made = await asyncio.to_thread(artifacts, bench.registry, found)
    folder, data = await asyncio.to_thread(exported, found, made, body)
    headers = {"Content-Disposition": f'attachment; filename="{folder}.zip"'}
    return Response(data, media_type="application/zip", headers=headers)


@router.get("/policies", dependencies=EXACT)
async def list_policies(request: Request, bench: Bench, caller: Reader) -> JSONResponse:
    """Which evidence each hosted model asks for before a feature steers or an edit goes live."""
    return await _policies(request, bench, caller)


@router.post("/policies", dependencies=EXACT)
async def set_policy(
    request: Request, body: PolicyBody, bench: Bench, caller: Admin
) -> JSONResponse:
    """Ask for more than the operator does: the tenant's policy for a model, or for all of them."""
    if body.model is not None:
        check_gated(body.feature_gate, await bench.host(body.model).card())
    await asyncio.to_thread(
        keep_policy,
        bench.registry,
        bench.settings,
        caller.tenant,
        body.model,
        body.told(),
        caller.name,
    )
    return await _policies(request, bench, caller)


async def _policies(request: Request, bench: Workbench, caller: Principal) -> JSONResponse:
    told = await asyncio.to_thread(policies, bench.registry, bench.settings, caller.tenant)
    return reply(request, {"object": "list", "data": told})


async def _counted(
    bench: Workbench, caller: Principal, body: EvaluationBody, card: Card
) -> Mapping[str, Card]:
    """By data set how many of its rows the model can use; nothing where tokens say nothing."""
    if "context" not in card:
        return {}
    names = {*body.suites.values(), *([] if body.dataset is None else [body.dataset])}
    found = {}
    for name in sorted(names):
        version = await asyncio.to_thread(find, bench.registry, caller.tenant, name)
        if (version.model, version.fingerprint) == (body.model, card["fingerprint"]):
            found[name] = version.report or {}
        else:
            data = await asyncio.to_thread(bench.registry.edits.blob, version.digest)
            found[name] = await bench.host(body.model).answer(CheckRows(dataset=data))
    return found


@dataclass(frozen=True)
class _Asked:
    """A request on its way to a job.

    Attributes:
        counted: By data set which rows the model can use.
    """

    bench: Workbench
    caller: Principal
    body: EvaluationBody
    settings: Any
    card: Card
    counted: Mapping[str, Card]

    def payload(self) -> dict[str, Any]:
        """What the job stores: names resolved, rows checked."""
        body = self.body
        resolver = Resolver(registry=self.bench.registry, hosted=list(self.bench.hosts))
        uses = [EditUse(name=name) for name in body.edits]
        wanted = resolver.resolve(self.caller.tenant, body.model, uses)
        return {
            "params": told_settings(self.settings),
            "edits": [
                {
                    "digest": edit.digest,
                    "strength": edit.strength,
                    "label": f"{edit.name}@{edit.version}",
                }
                for edit in wanted.edits
            ],
            "dataset": None if body.dataset is None else self._rows(body.dataset),
            "suites": {name: self._rows(dataset) for name, dataset in body.suites.items()},
            "budget": body.budget.model_dump(),
        }

    def _rows(self, name: str) -> str:
        """The digest of a data set that has rows which the model and the params can use."""
        rows, most = KINDS[self.body.kind].reads(self.settings), self.body.budget.max_examples
        version = find(self.bench.registry, self.caller.tenant, name)
        dataset = Dataset.read(self.bench.registry.edits.blob(version.digest))
        if not getattr(dataset, rows):
            raise WrongRows(self.body.kind, rows, name)
        if (counted := self.counted.get(name, {}).get(rows)) is not None:
            kept = check_kept(name, counted, rows, self.body.model, most)
            check_enough(self.settings, kept)
        check_places(self.settings, self.card, dataset.first(most))
        return version.digest


async def _evaluation(bench: Workbench, caller: Principal, name: str) -> Version:
    return await asyncio.to_thread(newest, bench.registry, caller.tenant, EVALUATION, name)


def _dataset_body(version: Version) -> dict[str, Any]:
    return {
        "object": "dataset",
        "id": version.name,
        "digest": version.digest,
        "model": version.model,
        **version.header,
        **(version.report or {}),
        "created_at": version.created_at,
        "location": f"/v1/datasets/{version.name}",
    }


def _evaluation_body(version: Version) -> dict[str, Any]:
    return {
        "object": "evaluation",
        "id": version.name,
        "model": version.model,
        "fingerprint": version.fingerprint,
        **result_of(version),
        "job": version.job,
        "created_at": version.created_at,
    }
