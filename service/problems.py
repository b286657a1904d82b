"""Refusal -> HTTP: one table of status codes, two shapes. Nothing else knows both worlds."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

import editors.errors as of_editors
import engines.errors as of_engines
import models.errors as of_models
import service.errors as of_service
import service.evidence_errors as of_evidence
import service.registry.errors as of_registry
import steerers.errors as of_steerers
from models.errors import Refusal
from service.phrases import said

STATUS: dict[type[Refusal], int] = {
    Refusal: 422,
    # models
    of_models.NotSafetensors: 422,
    of_models.PatchNotApplied: 500,
    of_models.WrongBase: 409,
    # editors
    of_editors.AlreadyTrue: 409,
    of_editors.BadMoment: 409,
    of_editors.EditsConflict: 409,
    # steerers
    of_steerers.UnknownDictionary: 404,
    of_steerers.UnknownFeature: 404,
    # engines
    of_engines.Full: 429,
    of_engines.Draining: 503,
    of_engines.DeadlineExceeded: 504,
    of_engines.EngineFailed: 500,
    # registry
    of_registry.UnknownEdit: 404,
    of_registry.UnknownVersion: 404,
    of_registry.UnknownAlias: 404,
    of_registry.UnknownDigest: 404,
    of_registry.UnknownVariant: 404,
    of_registry.UnknownJob: 404,
    of_registry.UnknownApiKey: 404,
    of_registry.NoReadyVersion: 409,
    of_registry.VersionRetired: 409,
    of_registry.VersionBlocked: 403,
    of_registry.InUse: 409,
    of_registry.ChecksFailed: 409,
    of_registry.NotMeasured: 409,
    of_registry.AliasMoved: 412,
    of_registry.NothingToRollBack: 409,
    of_registry.KindDiffers: 409,
    of_registry.LeaseLost: 409,
    of_registry.StillInProgress: 409,
    of_registry.RegistryFull: 409,
    of_registry.TooManyJobs: 429,
    of_registry.BlobMissing: 500,
    of_registry.BlobCorrupt: 500,
    of_registry.BadStore: 500,
    of_registry.IndexUnavailable: 503,
    # service
    of_service.BadRequest: 422,
    of_service.UnreadableBody: 400,
    of_service.BodyTooLarge: 413,
    of_service.ClientLeft: 499,
    of_service.Crashed: 500,
    of_service.FactConflict: 409,
    of_service.HostLost: 503,
    of_service.LensUnderWay: 503,
    of_service.KeyNeeded: 401,
    of_service.MethodNotAllowed: 405,
    of_service.NotFound: 404,
    of_service.NotReady: 503,
    of_service.PictureGone: 404,
    of_service.QuotaUsed: 429,
    of_service.ScopeMissing: 403,
    of_service.ShuttingDown: 503,
    of_service.StrangeHost: 421,
    of_service.StrangeOrigin: 403,
    of_service.UnknownModel: 404,
    of_service.WrongModel: 409,
    of_service.WrongModality: 409,
    of_service.NameTaken: 409,
    of_evidence.NoSuchArtifact: 404,
}
"""A class that is not named here has its parent's status; a plain `Refusal` is a 422."""

OPENAI_PATHS = ("/v1/models", "/v1/images", "/v1/chat", "/v1/completions")
"""Those of OpenAI's paths that are there; `TO_CALL` are what its clients call first."""

TO_CALL = ("/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/images/generations")


def status_of(refusal: Refusal) -> int:
    """The HTTP status of a refusal: its own or its nearest ancestor's."""
    return next(STATUS[kind] for kind in type(refusal).__mro__ if kind in STATUS)


def problem_of(refusal: Refusal) -> dict[str, Any]:
    """A refusal as plain data: what a failed job stores."""
    return {
        "code": refusal.code,
        "problem": refusal.problem,
        "remedy": refusal.remedy,
        "param": refusal.param,
    }


def openai_error(refusal: Refusal) -> dict[str, Any]:
    """OpenAI's shape; the remedy follows the problem, since their clients show only the message."""
    return {
        "error": {
            "message": f"{refusal.problem} {refusal.remedy}",
            "type": _openai_type(status_of(refusal)),
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def _openai_type(status: int) -> str:
    named = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    if status in named:
        return named[status]
    return "server_error" if status >= 500 else "invalid_request_error"


def rfc9457(refusal: Refusal, path: str, request_id: str) -> dict[str, Any]:
    """`application/problem+json`."""
    return {
        "type": f"urn:tiller:problem:{refusal.code}",
        "title": refusal.code.replace("_", " ").capitalize(),
        "status": status_of(refusal),
        "detail": refusal.problem,
        "instance": path,
        "request_id": request_id,
        "code": refusal.code,
        "param": refusal.param,
        "remedy": refusal.remedy,
    }


def answer(request: Request, refusal: Refusal) -> JSONResponse:
    """The refusal as a response, in the shape of the path that was called."""
    status, path = status_of(refusal), request.url.path
    headers = _headers(refusal, status)
    if path.startswith(OPENAI_PATHS) or _is_foreign(path, request.app):
        return JSONResponse(openai_error(refusal), status, headers=headers)
    body = rfc9457(refusal, path, request.state.request_id)
    return JSONResponse(body, status, headers=headers, media_type="application/problem+json")


def _is_foreign(path: str, app: FastAPI) -> bool:
    """Whether it is beside our own paths: only a client of OpenAI's calls /v1/embeddings."""
    return path.startswith("/v1/") and _noun(path) not in app.state.nouns


def _noun(path: str) -> str:
    return "/".join(path.split("/")[:3])


def _headers(refusal: Refusal, status: int) -> Mapping[str, str]:
    headers = {}
    if (wait := getattr(refusal, "retry_after", None)) is not None:
        headers["Retry-After"] = str(max(1, round(wait)))
    if isinstance(refusal, of_service.MethodNotAllowed):
        headers["Allow"] = refusal.allow
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def of_validation(error: RequestValidationError) -> Refusal:
    """What pydantic found, as a refusal that names the key's path. Inputs are not repeated."""
    # An unknown key explains other findings (a misspelt `prompt` is also a missing one): it first.
    found = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    place, *rest = found["loc"]
    path = _path(rest)
    if found["type"] == "extra_forbidden":
        return _unknown(path)
    if found["type"] == "json_invalid":
        where = f" (character {rest[0]})" if rest else ""
        return of_service.UnreadableBody(f"The body is not JSON{where}.")
    if not path and found["type"] == "value_error":  # keys that do not go together
        problem = said(found)
        return of_service.BadRequest(
            f"{problem[:1].upper()}{problem[1:]}.",
            remedy="GET /openapi.json tells which keys a request has.",
        )
    if not path:
        return of_service.BadRequest(
            f"The {place} is missing or not an object.",
            remedy="Send a JSON object with Content-Type: application/json.",
        )
    told, path = _of_shapes(error.errors(), path) or (said(found), path)
    return of_service.BadRequest(
        f"{path}: {told}.", remedy="GET /openapi.json tells each key's type.", param=path
    )


def _of_shapes(errors: Sequence[Mapping[str, Any]], path: str) -> tuple[str, str] | None:
    """For a key that may be several things: all of them, or what is wrong inside the one it is."""
    paths = [(one, _path(one["loc"][1:])) for one in errors]
    for one, at in paths:
        if at.startswith(f"{path}["):
            return said(one), at
    numbers = " of whole numbers"
    here = [said(e) + numbers * (e["loc"][-1] == "list[int]") for e, at in paths if at == path]
    if len(here) < 2 or not all(one.startswith(_MUST) for one in here):
        return None
    return _MUST + ", or ".join(one.removeprefix(_MUST) for one in dict.fromkeys(here)), path


_MUST = "must be "


def _unknown(path: str) -> Refusal:
    from service import schema, schema_language

    if path == "extra_body":
        return of_service.LiteralExtraBody()
    if path in (refused := {**schema.NOT_OFFERED, **schema_language.NOT_OFFERED}):
        return of_service.NotOffered(path, refused[path])
    return of_service.UnknownKey(path)


_BRANCHES = ("literal[", "list[", "constrained-", "function-")
"""How pydantic calls a branch of a key that may be several things: it is no part of the key."""


def _path(parts: list[int | str] | tuple[int | str, ...]) -> str:
    told = [p for p in parts if isinstance(p, int) or not p.startswith(_BRANCHES)]
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in told)
    return text.removeprefix(".")


def _of_http(error: HTTPException, request: Request) -> Refusal:
    if isinstance(error.__cause__, Refusal):  # raised while the framework read the body
        return error.__cause__
    if error.__cause__ is not None and (unread := _unread(error.__cause__)) is not None:
        return unread
    known: dict[int, Refusal] = {
        404: of_service.NotFound(request.url.path, TO_CALL),
        405: of_service.MethodNotAllowed(request.method, request.url.path, _verbs(request)),
    }
    if error.status_code in known:
        return known[error.status_code]
    return of_service.BadRequest(str(error.detail), remedy="GET /openapi.json tells what there is.")


def _verbs(request: Request) -> list[str]:
    """What the path takes, over all routes that it has."""
    fitting = [r for r in request.app.state.routes if r.path_regex.match(request.url.path)]
    return sorted({verb for route in fitting for verb in route.methods})


def _unread(cause: BaseException) -> Refusal | None:
    """Why a body was no JSON, where the framework only says that it is none."""
    match cause:
        case UnicodeDecodeError():
            byte = cause.object[cause.start]
            problem = f"The body is not UTF-8: byte 0x{byte:02x} at {cause.start}."
        case RecursionError():
            problem = "The body is nested too deeply."
        case ValueError():
            problem = "The body has a number with too many digits."
        case _:
            return None
    return of_service.UnreadableBody(problem)


def install(app: FastAPI, routes: Sequence[APIRoute]) -> None:
    """Make the application answer refusals, and what the framework refuses, in our shapes.

    Args:
        app: The application.
        routes: All that it has; what else is called under /v1 is meant for OpenAI.
    """
    app.state.routes = tuple(routes)
    app.state.nouns = frozenset(_noun(route.path) for route in routes)

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refusal)  # noqa: S101 - registered for it
        return answer(request, error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
        return answer(request, of_validation(error))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
        return answer(request, _of_http(error, request))

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
