"""The REST application; it does not know Ray: the same in one process and in a replica."""

from fastapi import FastAPI

from service import problems
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
    app = FastAPI(title="Tiller", description=_ABOUT, version="1")
    app.state.workbench = workbench
    named = (edits, presets, vectors, variants, evaluations, backpatch)
    nouns = (models, images, lens, chat, saes, *named, jobs, keys)
    for noun in (*nouns, operations):
        app.include_router(noun.router)
    problems.install(app, [r.path for noun in nouns for r in noun.router.routes])
    app.add_middleware(Bounded, limit=workbench.settings.limits.body_bytes)
    app.add_middleware(Observed, telemetry=workbench.telemetry, tells_ids=tells_ids)
    return app
