"""What HTTP, checks and hand-overs add to a picture, in one process; `ray` is the same on Ray.

One client asks one request after another over one kept connection. The model is a random toy that
draws one step, so that the engine costs nearly nothing; what a request adds is its time at the
client minus the `seconds` of the engine that its answer reports. Wall clock: other programs on the
machine count. A moved alias: each move is followed at once by a request over another connection,
whose answer must name the new version.
"""

import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from benches.drawing import benched
from benches.figures import Figure, quantile
from editors.delta import Delta, Factors
from models.family import FAMILIES
from models.hosted import HostedModel
from service.client import Tiller
from service.running import serving

REQUESTS, WARMUP, MOVES = 400, 40, 20
MODEL, EDIT = "toy", "potus"
OVERHEAD_MS = 5.0
_CONFIG = """
[[models]]
name = "{name}"
path = "{path}"
slots = 1
mode = "fast"
steps = 1
guidance_scale = 1.0
"""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many requests of each kind."""

    requests: int = REQUESTS
    warmup: int = WARMUP
    moves: int = MOVES


FEW = Sizes(requests=10, warmup=2, moves=4)


@dataclass(frozen=True, kw_only=True)
class Times:
    """What was seen: seconds at the client, seconds of the engine, and stale answers."""

    whole: Sequence[float]
    engine: Sequence[float]
    routes: Mapping[str, Sequence[float]]
    stale: int


def run(*, smoke: bool = False) -> list[Figure]:
    """The figures; `smoke` asks few times."""
    return measured("one process", local=True, most=OVERHEAD_MS, sizes=FEW if smoke else Sizes())


def measured(where: str, *, local: bool, most: float | None, sizes: Sizes) -> list[Figure]:
    """The figures of a service that is started for them."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        toy = FAMILIES["stable_diffusion"].tiny(home / "toy")
        config = home / "serve.toml"
        config.write_text(_CONFIG.format(name=MODEL, path=toy))
        deltas = [delta(benched(toy, "cpu", "float32").hosted, seed).data for seed in (1, 2)]
        with serving(home / "home", local=local, config=config) as url:
            return figures(where, times(url, deltas, sizes), most)


def figures(where: str, told: Times, most: float | None) -> list[Figure]:
    """Medians and tails in milliseconds."""
    added = [1000 * (w - e) for w, e in zip(told.whole, told.engine, strict=True)]
    engine = 1000 * statistics.median(told.engine)
    p50, p95 = statistics.median(added), quantile(added, 0.95)
    named = "requests after a move that saw the old version"
    return [
        Figure(name=f"{where}: added to a picture, p50", value=p50, unit="ms", most=most),
        Figure(name=f"{where}: added to a picture, p95", value=p95, unit="ms"),
        Figure(name=f"{where}: the engine's own part, p50", value=engine, unit="ms"),
        *(
            Figure(
                name=f"{where}: GET {path}, p50", value=1000 * statistics.median(took), unit="ms"
            )
            for path, took in told.routes.items()
        ),
        Figure(name=f"{where}: {named}", value=float(told.stale), most=0.0),
    ]


def times(url: str, deltas: Sequence[bytes], sizes: Sizes) -> Times:
    """Ask the running service."""
    where = urlsplit(url)
    wire = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    body = {"model": MODEL, "prompt": "a red cat", "seed": 1}
    try:
        pictures = _taken(sizes, lambda: ask(wire, "POST", "/v1/images/generations", body))
        routes = {
            path: [took for took, _ in _taken(sizes, lambda path=path: ask(wire, "GET", path))]
            for path in ("/livez", "/v1/models")
        }
        stale = stale_answers(url, wire, body, deltas, sizes.moves)
    finally:
        wire.close()
    return Times(
        whole=[took for took, _ in pictures],
        engine=[told["tiller"]["images"][0]["seconds"] for _, told in pictures],
        routes=routes,
        stale=stale,
    )


def _taken(sizes: Sizes, once: Callable[[], Any]) -> list[tuple[float, Any]]:
    found = []
    for _ in range(sizes.warmup + sizes.requests):
        started = time.perf_counter()
        told = once()
        found.append((time.perf_counter() - started, told))
    return found[sizes.warmup :]


def ask(
    wire: http.client.HTTPConnection, method: str, path: str, body: dict[str, Any] | None = None
) -> Any:
    """One request over the kept connection; the answer's JSON."""
    data = None if body is None else json.dumps(body).encode()
    wire.request(method, path, data, {"Content-Type": "application/json"} if data else {})
    answer = wire.getresponse()
    told = answer.read()
    assert answer.status == 200, told
    return json.loads(told)


def stale_answers(
    url: str,
    wire: http.client.HTTPConnection,
    body: dict[str, Any],
    deltas: Sequence[bytes],
    moves: int,
) -> int:
    """Move an alias to and fro; how many pictures asked for right after it had the old version."""
    stale = 0
    asked = {**body, "edits": [f"{EDIT}@live"]}
    with Tiller(url) as tiller:
        versions = [tiller.edits.import_(EDIT, data, model=MODEL)["version"] for data in deltas]
        for i in range(moves):
            wanted = versions[i % len(versions)]
            tiller.edits.promote(EDIT, wanted, alias="live", force=True)
            told = ask(wire, "POST", "/v1/images/generations", asked)
            stale += told["tiller"]["edits"][0]["version"] != wanted
    return stale


def delta(hosted: HostedModel, seed: int) -> Delta:
    """A change of rank one that says it was made for these weights."""
    tower = next(iter(hosted.text_towers.values()))
    drawn = torch.Generator().manual_seed(seed)
    key = torch.randn(1, tower.inner_width, generator=drawn)
    value = torch.randn(1, tower.width, generator=drawn)
    solved = key / key.square().sum()
    factors = Factors(left=value.mT, right=solved, keys=key, solved=solved, values=value)
    header = {"base": {"fingerprint": hosted.fingerprint}, "method": "lora", "seed": seed}
    return Delta(header, {tower.fc2_site(0): factors})
