"""What /openapi.json says beyond the routes: errors in their true shapes, keys, common headers."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from service.api.once import Once
from service.api.strict import READING
from service.auth import scope_of
from service.problems import OPENAI_PATHS

Json = dict[str, Any]
_TEXT: Json = {"type": "string"}
_MAYBE: Json = {"type": ["string", "null"]}

OPENAI_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": _TEXT, "type": _TEXT, "param": _MAYBE, "code": _TEXT},
        }
    },
}
_PROBLEM_KEYS: Mapping[str, Json] = {
    "type": _TEXT,
    "title": _TEXT,
    "status": {"type": "integer"},
    "detail": _TEXT,
    "instance": _TEXT,
    "request_id": _TEXT,
    "code": _TEXT,
    "param": _MAYBE,
    "remedy": _TEXT,
}
PROBLEM: Json = {
    "type": "object",
    "required": list(_PROBLEM_KEYS),
    "properties": dict(_PROBLEM_KEYS),
}
_REFUSED: Mapping[str, str] = {
    "401": "A key is needed and none that is valid was sent.",
    "403": "The key may not do this, or a web page of another site asks.",
    "404": "Something that the path or the body names is not there.",
    "409": "It contradicts what is there, or what is there is in use.",
    "412": "If-Match or If-None-Match does not hold.",
    "413": "The body is too large.",
    "421": "A service without keys was called by a name that is not its own.",
    "422": "The request cannot be honoured as it is: an unknown key, a wrong value, ...",
    "429": "Too much at once or in this minute; Retry-After says when.",
    "4XX": "Refused; `code` says why.",
    "5XX": "Not the caller's fault; with 503, Retry-After says when to try again.",
}
_CONDITIONAL = ("412",)
_ID: Json = {"X-Request-Id": {"schema": _TEXT, "description": "Of this request, in the log too."}}
_ONCE: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "The same key with the same request gets the first answer again, for a day.",
}


def install(app: FastAPI, routes: Sequence[APIRoute]) -> None:
    """Make the application tell these things of its routes."""

    def told() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _told(app, routes)
        return app.openapi_schema

    app.openapi = told


def _told(app: FastAPI, routes: Sequence[APIRoute]) -> Json:
    schema = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    parts = schema.setdefault("components", {})
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for name in ("HTTPValidationError", "ValidationError"):
        parts.get("schemas", {}).pop(name, None)
    parts.setdefault("schemas", {}).update(OpenAIError=OPENAI_ERROR, Problem=PROBLEM)
    by_path = {
        (verb.lower(), route.path_format): route for route in routes for verb in route.methods or ()
    }
    for path, verbs in schema["paths"].items():
        for verb, operation in verbs.items():
            if path.startswith("/v1/"):
                _complete(operation, verb, path, by_path[verb, path])
    return schema


def _complete(operation: Json, verb: str, path: str, route: APIRoute) -> None:
    if scope := scope_of(route):  # the name of a picture's file is its secret
        operation["security"] = [{"key": [scope]}, {}]
    if isinstance(route, Once) and verb.upper() not in READING:
        operation.setdefault("parameters", []).append(_ONCE)
    body = _body(path)
    headers = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "header"}
    for status, about in _REFUSED.items():
        if status in _CONDITIONAL and "If-Match" not in headers:
            continue
        operation["responses"][status] = {"description": about, "content": body}
    for answer in operation["responses"].values():
        answer["headers"] = {**answer.get("headers", {}), **_ID}


def _body(path: str) -> Json:
    if path.startswith(OPENAI_PATHS):
        return _json("application/json", "OpenAIError")
    return _json("application/problem+json", "Problem")


def _json(kind: str, name: str) -> Json:
    return {kind: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
