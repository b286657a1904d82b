"""How fast the registry takes a version, moves an alias and answers what a name means."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benches.figures import Figure, quantile
from service.registry import Registry, open_registry

ROOT = Path(__file__).parent.parent
WRITERS = 4
VERSIONS = 60
"""Per writer."""
NBYTES = 40_000
MOVES = 100


def run(*, smoke: bool = False) -> list[Figure]:
    """The figures; `smoke` registers few versions."""
    with tempfile.TemporaryDirectory() as folder:
        address = (f"sqlite:///{folder}/index.sqlite", f"{folder}/blobs")
        registry, replica = open_registry(*address), open_registry(*address)
        try:
            found = _registrations(registry, folder, address, 5 if smoke else VERSIONS)
            return [*found, *_moves(registry, replica, 5 if smoke else MOVES)]
        finally:
            registry.close()
            replica.close()


def _registrations(
    registry: Registry, folder: str, address: tuple[str, str], versions: int
) -> list[Figure]:
    """A 40 kB delta, registered by four processes at once on one name."""
    go = Path(folder) / "go"
    command = [sys.executable, "-m", "benches.bench_registry", *address, str(go)]
    writers = [
        subprocess.Popen(  # noqa: S603 - our own program
            [*command, str(i), str(versions)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for i in range(WRITERS)
    ]
    while len(list(Path(folder).glob("ready-*"))) < WRITERS:
        assert all(writer.poll() is None for writer in writers), "a writer ended early"
        time.sleep(0.02)
    go.touch()
    started = time.perf_counter()
    told = [json.loads(writer.communicate()[0]) for writer in writers]
    total = time.perf_counter() - started
    bare = [seconds for one in told for seconds in one["bare"]]
    taken = [seconds for one in told for seconds in one["taken"]]
    health = registry.verify()
    dense = health.sound and health.versions == WRITERS * versions
    return registered(taken, bare, total, dense=dense)


def registered(
    taken: Sequence[float], bare: Sequence[float], total: float, *, dense: bool
) -> list[Figure]:
    """Of the seconds of each registration, of each bare write, and of all together."""
    many = f"{WRITERS} writers"
    only = f"the same bytes, only written and synced, {many}, p99"
    p50, p99, disk = (
        1000 * quantile(of, share) for of, share in ((taken, 0.5), (taken, 0.99), (bare, 0.99))
    )
    return [
        Figure(name=f"registration of 40 kB, {many}, p50", value=p50, unit="ms"),
        Figure(name=f"registration of 40 kB, {many}, p99", value=p99, unit="ms", most=150.0),
        Figure(name=only, value=disk, unit="ms"),
        Figure(name=f"registrations, {many}", value=len(taken) / total, unit="per second"),
        Figure(name="numbers dense, files sound", value=float(dense), least=1.0),
    ]


def _moves(registry: Registry, replica: Registry, moves: int) -> list[Figure]:
    """An alias is moved here and resolved, at once, through other connections."""
    stale, moving, resolving = 0, [], []
    for i in range(moves):
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
    return flips(stale, moving, resolving, back)


def flips(
    stale: int, moving: Sequence[float], resolving: Sequence[float], back: float
) -> list[Figure]:
    """Of the requests that saw the old version, and of the seconds of each move and look-up."""
    old = "requests after a move that saw the old version"
    move, look, slow = (
        1000 * quantile(of, share)
        for of, share in ((moving, 0.5), (resolving, 0.5), (resolving, 0.99))
    )
    return [
        Figure(name=old, value=float(stale), most=0.0),
        Figure(name="alias move, p50", value=move, unit="ms"),
        Figure(name="alias rollback", value=back, unit="s", most=1.0),
        Figure(name="resolving name@alias, p50", value=look, unit="ms"),
        Figure(name="resolving name@alias, p99", value=slow, unit="ms"),
    ]


def write(index_url: str, blobs_url: str, go: Path, writer: int, versions: int) -> None:
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
    for i in range(versions):
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
    write(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
