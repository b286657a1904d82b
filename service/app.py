"""The REST application; it does not know Ray: the same in one process and in a replica."""

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from service import problems, spec
from service.api import (
    backpatch,
    chat,
    edits,
    evaluations,
    images,
    jobs,
    keys,
    lens,
    models,
    operations,
    presets,
    saes,
    variants,
    vectors,
)
from service.door import Door
from service.limits import Bounded
from service.telemetry import Observed
from service.workbench import Workbench

_ABOUT = """Hosts models and changes them per request: edits with names, versions and aliases,
applied to your rows only. Unknown keys are refused. Every answer says what was applied."""


def build(workbench: Workbench, *, tells_ids: bool = True) -> FastAPI:
    """The application over a workbench.

    Args:
        workbench: What its routes may touch.
        tells_ids: Whether X-Request-Id is added here, or by the server around the application.
    """
    # A redirect to a path without its last slash would be an answer before any check.
    app = FastAPI(title="Tiller", description=_ABOUT, version="1", redirect_slashes=False)
    app.state.workbench = workbench
    named = (edits, presets, vectors, variants, evaluations, backpatch)
    nouns = (models, images, lens, chat, saes, *named, jobs, keys, operations)
    for noun in nouns:
        app.include_router(noun.router)
    routes = [r for noun in nouns for r in noun.router.routes if isinstance(r, APIRoute)]
    problems.install(app, routes)
    spec.install(app, routes)
    server = workbench.settings.server
    app.add_middleware(Bounded, limit=workbench.settings.limits.body_bytes)
    if server.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=server.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(Door, settings=workbench.settings)
    app.add_middleware(Observed, telemetry=workbench.telemetry, tells_ids=tells_ids)
    return app
