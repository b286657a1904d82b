"""For those who run it: alive, ready, numbers."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from models.errors import Refusal
from service.api.answers import Bench
from service.workbench import SILENT_SECONDS

router = APIRouter(tags=["operations"])


@router.get("/livez")
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz")
async def ready(bench: Bench) -> JSONResponse:
    """200 when every model can draw; 503 while one loads or is stuck, or while draining."""
    states = {}
    for name, host in bench.hosts.items():
        try:
            await host.card()
            silent = float((await host.load()).get("heartbeat_seconds", 0.0))
            states[name] = "ready" if silent < SILENT_SECONDS else "silent"
        except Refusal as refusal:
            states[name] = refusal.code
    if bench.draining.is_set():
        return JSONResponse({"status": "draining", "models": states}, 503, {"Retry-After": "5"})
    if all(state == "ready" for state in states.values()):
        return JSONResponse({"status": "ready", "models": states})
    return JSONResponse({"status": "loading", "models": states}, 503, {"Retry-After": "2"})


@router.get("/metrics")
async def metrics(bench: Bench) -> Response:
    """Prometheus' text: this gateway's requests, every engine's rows."""
    for name, host in bench.hosts.items():
        try:
            told = await host.load()
        except Refusal:
            told = {"up": 0.0}
        for what, value in told.items():
            if isinstance(value, int | float):
                bench.telemetry.rows.labels(name, what).set(value)
    return Response(bench.telemetry.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
