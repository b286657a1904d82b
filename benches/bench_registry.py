"""How fast the registry takes a version, moves an alias and answers what a name means."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from service.registry import Registry, open_registry

ROOT = Path(__file__).parent.parent
WRITERS = 4
VERSIONS = 60
"""Per writer."""
NBYTES = 40_000
MOVES = 100


def run() -> list[dict[str, Any]]:
    """Rows of name, value, unit, target and passed; a target of None is a figure to read."""
    with tempfile.TemporaryDirectory() as folder:
        address = (f"sqlite:///{folder}/index.sqlite", f"{folder}/blobs")
        registry, replica = open_registry(*address), open_registry(*address)
        try:
            return [*_registrations(registry, folder, address), *_moves(registry, replica)]
        finally:
            registry.close()
            replica.close()


def _registrations(
    registry: Registry, folder: str, address: tuple[str, str]
) -> list[dict[str, Any]]:
    """A 40 kB delta, registered by four processes at once on one name."""
    go = Path(folder) / "go"
    command = [sys.executable, "-m", "benches.bench_registry", *address, str(go)]
    writers = [
        subprocess.Popen([*command, str(i)], cwd=ROOT, stdout=subprocess.PIPE, text=True)  # noqa: S603
        for i in range(WRITERS)
    ]
    while len(list(Path(folder).glob("ready-*"))) < WRITERS:
        time.sleep(0.02)
    go.touch()
    started = time.perf_counter()
    told = [json.loads(writer.communicate()[0]) for writer in writers]
    total = time.perf_counter() - started
    bare = [seconds for one in told for seconds in one["bare"]]
    taken = [seconds for one in told for seconds in one["taken"]]
    health = registry.verify()
    dense = health.sound and health.versions == WRITERS * VERSIONS
    return [
        _row("registration of 40 kB, 4 writers, p50", 1000 * _at(taken, 0.5), "ms"),
        _row(
            "registration of 40 kB, 4 writers, p99",
            1000 * _at(taken, 0.99),
            "ms",
            150.0,
            lambda v: v < 150,
        ),
        _row(
            "the same bytes, only written and synced, 4 writers, p99", 1000 * _at(bare, 0.99), "ms"
        ),
        _row("registrations, 4 writers", len(taken) / total, "per second"),
        _row("numbers dense, files sound", float(dense), "", 1.0, bool),
    ]


def _moves(registry: Registry, replica: Registry) -> list[dict[str, Any]]:
    """An alias is moved here and resolved, at once, through other connections."""
    stale, moving, resolving = 0, [], []
    for i in range(MOVES):
        started = time.perf_counter()
        moved = registry.names.move("bench", "potus", "live", 1 + i % 2, "bench")
        moving.append(time.perf_counter() - started)
        started = time.perf_counter()
        seen = replica.names.resolve("bench", "potus@live")
        resolving.append(time.perf_counter() - started)
        stale += seen.number != moved.version
    started = time.perf_counter()
    registry.names.rollback("bench", "potus", "live", "bench")
    back = time.perf_counter() - started
    return [
        _row("requests after a move that saw the old version", stale, "", 0.0, lambda v: v == 0),
        _row("alias move, p50", 1000 * _at(moving, 0.5), "ms"),
        _row("alias rollback", back, "s", 1.0, lambda v: v < 1),
        _row("resolving name@alias, p50", 1000 * _at(resolving, 0.5), "ms"),
        _row("resolving name@alias, p99", 1000 * _at(resolving, 0.99), "ms"),
    ]


def _row(
    name: str,
    value: float,
    unit: str,
    target: float | None = None,
    passes: Callable[[float], bool] | None = None,
) -> dict[str, Any]:
    passed = passes(value) if passes else None
    return {"name": name, "value": value, "unit": unit, "target": target, "passed": passed}


def _at(seconds: Sequence[float], share: float) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))]


def write(index_url: str, blobs_url: str, go: Path, writer: int) -> None:
    """One writer: waits for the others, registers, and prints how long each took.

    Between two registrations it only writes and syncs a file as large: what the disk and the other
    programs of the machine take of the time.
    """
    registry = open_registry(index_url, blobs_url)
    registry.edits.list("bench")
    (go.parent / f"ready-{writer}").touch()
    while not go.exists():
        time.sleep(0.001)
    taken, bare = [], []
    for i in range(VERSIONS):
        bare.append(_written(go.parent / f"bare-{writer}", NBYTES))
        data = f"{writer} {i} ".encode().ljust(NBYTES, b"x")
        started = time.perf_counter()
        registry.edits.register("bench", "potus", "sd", "f", data, {"i": i}, actor="bench")
        taken.append(time.perf_counter() - started)
    registry.close()
    print(json.dumps({"taken": taken, "bare": bare}))


def _written(path: Path, nbytes: int) -> float:
    started = time.perf_counter()
    with path.open("wb") as file:
        file.write(bytes(nbytes))
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - started


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        print(json.dumps(run(), indent=1))
