"""`/v1/saes`: dictionaries, their features, scores, labels and snippets."""

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from models.errors import Refusal
from service.api.answers import Bench, no_query, reply
from service.api.edits import Writer
from service.api.jobs import accepted, waited
from service.api.once import Once
from service.auth import Principal, needs
from service.errors import BadRequest
from service.feature_jobs import SCORE, SNIPPETS
from service.questions import CheckFeatures, FindFeatures, ListSaes, ShowFeature, ShowSae
from service.registry.records import FeatureLabel
from service.schema_features import (
    FeatureQuery,
    LabelsBody,
    OfModel,
    OneFeature,
    ScoresBody,
    SnippetsBody,
    scoring_of,
)
from service.workbench import Host, Workbench
from steerers.errors import UnknownDictionary
from steerers.score import VARIANTS

router = APIRouter(prefix="/v1/saes", tags=["saes"], route_class=Once)
Caller = Annotated[Principal, Depends(needs("infer"))]
Of = Annotated[OfModel, Query()]
_LINES = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")


@router.get("", dependencies=[Depends(no_query)])
async def list_saes(request: Request, bench: Bench, caller: Caller) -> JSONResponse:
    """Every dictionary of every hosted model, and how much of it is scored."""
    data: list[Any] = []
    loading: dict[str, str] = {}
    for name, host in bench.hosts.items():
        try:
            if (await host.card()).get("saes"):
                data += await host.answer(ListSaes(tenant=caller.tenant))
        except Refusal as refusal:  # a model that is being loaded is told, not waited for
            loading[name] = refusal.code
    told = {"tiller": {"not_ready": loading}} if loading else {}
    return reply(request, {"object": "list", "data": data, **told})


@router.get("/{sae}")
async def show_sae(
    request: Request, sae: str, of: Of, bench: Bench, caller: Caller
) -> JSONResponse:
    """One dictionary: its site, size and digest; how many features are usable."""
    _, host = await host_of(bench, sae, of.model)
    return reply(request, await host.answer(ShowSae(tenant=caller.tenant, sae=sae)))


@router.get("/{sae}/features")
async def find_features(
    request: Request,
    sae: str,
    query: Annotated[FeatureQuery, Query()],
    bench: Bench,
    caller: Caller,
) -> JSONResponse:
    """Features by concept, by a token that they promote, by label, by output score, or all."""
    asked = {name: getattr(query, name) for name in ("concept", "token", "label")}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise BadRequest(
            f"{given[0]} and {given[1]} are two searches.",
            remedy="Search for one of concept, token and label at a time.",
            param=given[1],
        )
    _, host = await host_of(bench, sae, query.model)
    found = await host.answer(
        FindFeatures(
            tenant=caller.tenant,
            sae=sae,
            least=query.min_output_score,
            settings=VARIANTS[query.settings],
            limit=query.limit,
            after=query.after,
            **asked,
        )
    )
    body = {
        "object": "list",
        "data": found["items"],
        "has_more": found["has_more"],
        "next_cursor": found["next_cursor"],
        "search": found["search"],
    }
    return reply(request, body)


@router.get("/{sae}/features/{feature}")
async def show_feature(
    request: Request,
    sae: str,
    feature: int,
    query: Annotated[OneFeature, Query()],
    bench: Bench,
    caller: Caller,
) -> JSONResponse:
    """One feature: tokens promoted and suppressed, scores (taken now if need be), snippets."""
    _, host = await host_of(bench, sae, query.model)
    asked = ShowFeature(
        tenant=caller.tenant, sae=sae, feature=feature, settings=VARIANTS[query.settings]
    )
    return reply(request, await host.answer(asked))


@router.post("/{sae}/scores", status_code=202)
async def score_features(
    request: Request, sae: str, of: Of, body: ScoresBody, bench: Bench, caller: Writer
) -> JSONResponse:
    """Take output scores of many features: a job, which skips those that somebody has taken."""
    features = None if body.features is None else tuple(body.features)
    payload = {"features": body.features, "settings": dict(scoring_of(body))}
    name, host = await host_of(bench, sae, of.model)
    found = await host.answer(CheckFeatures(sae=sae, features=features or ()))
    return await _begun(request, bench, caller, (SCORE, name), {**payload, "sae": found["id"]})


@router.post("/{sae}/snippets", status_code=202)
async def collect_snippets(
    request: Request, sae: str, of: Of, body: SnippetsBody, bench: Bench, caller: Writer
) -> JSONResponse:
    """Look up where each feature is strongest in texts: a job; the last sample is replaced."""
    name, host = await host_of(bench, sae, of.model)
    found = await host.answer(CheckFeatures(sae=sae))
    payload = {**body.model_dump(), "sae": found["id"]}
    return await _begun(request, bench, caller, (SNIPPETS, name), payload)


@router.put(
    "/{sae}/labels",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": LabelsBody.model_json_schema()}},
        }
    },
)
async def put_labels(
    request: Request, sae: str, of: Of, bench: Bench, caller: Writer
) -> JSONResponse:
    """Say what features are about, as JSON or as a label a line; concepts are found in labels."""
    body = _labels(request, await request.body())
    _, host = await host_of(bench, sae, of.model)
    features = tuple({one.feature for one in body.labels})
    found = await host.answer(CheckFeatures(sae=sae, features=features))
    labels = [
        FeatureLabel(feature=one.feature, label=one.label, source=one.source or body.source)
        for one in body.labels
    ]
    now = await asyncio.to_thread(
        bench.registry.labels.put, caller.tenant, found["digest"], labels, actor=caller.name
    )
    told = {"object": "sae.labels", "sae": found["id"], "put": len(labels), "labels": now}
    return reply(request, told)


async def host_of(bench: Workbench, sae: str, model: str | None) -> tuple[str, Host]:
    """The model that has the dictionary, and its host.

    Raises:
        UnknownDictionary: None has it.
        BadRequest: Several have one of that id, and none is named.
    """
    if model is not None:
        return model, bench.host(model)
    having, known, loading = [], [], None
    for name, host in bench.hosts.items():
        try:
            saes = (await host.card()).get("saes", ())
        except Refusal as refusal:
            loading = refusal
            continue
        known += saes
        having += [name] if sae in saes else []
    if len(having) > 1:
        raise BadRequest(
            f"{' and '.join(having)} both have a dictionary {sae!r}.",
            remedy=f"Name one of them: ?model={having[0]}.",
            param="model",
        )
    if not having:
        unknown = UnknownDictionary("sparse autoencoder", sae, ", ".join(known))
        unknown.param = "sae"
        raise loading or unknown
    return having[0], bench.host(having[0])


async def _begun(
    request: Request, bench: Workbench, caller: Principal, what: tuple[str, str], payload: Any
) -> JSONResponse:
    kind, model = what
    job = await asyncio.to_thread(
        bench.registry.jobs.create, caller.tenant, kind, model, payload, caller.name
    )
    return accepted(request, await waited(request, bench, job))


def _labels(request: Request, data: bytes) -> LabelsBody:
    """The labels of a body in either form; a line that cannot be read is told by its place."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind not in _LINES:
            return LabelsBody.model_validate_json(data)
        lines = [json.loads(line) for line in data.splitlines() if line.strip()]
        return LabelsBody.model_validate({"labels": lines})
    except ValidationError as error:
        found = [{**e, "loc": ("body", *e["loc"])} for e in error.errors(include_url=False)]
        raise RequestValidationError(found) from None
    except ValueError:
        raise BadRequest(
            "A line of the body is not JSON.",
            remedy='Send one {"feature": 3, "label": "winter"} a line.',
        ) from None
