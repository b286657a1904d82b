"""A service of one's own, for the length of a block: what the demo and an evaluation start."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2

from service.client import TillerError
from service.signals import ending_cleanly

START_SECONDS, STOP_SECONDS = 480.0, 90.0


@contextmanager
def serving(home: Path, *, local: bool, config: Path | None = None) -> Iterator[str]:
    """Run `tiller serve` with its state in `home`, ready; yield its address; stop it cleanly.

    However this process ends, the service ends with it: it reads a pipe that only this process
    writes to.

    Args:
        home: The service's state folder; its log is `serve.log` there.
        local: One process instead of Ray Serve.
        config: The configuration; None serves the embedded miniature.

    Raises:
        TillerError: It ended early or was not ready in time; the end of its log is told.
    """
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = home / "serve.log"
    command = [sys.executable, "-c", "from service.cli import main; main()", "serve"]
    command += ["--until-stdin-closes", "--port", str(port), *(["--local"] if local else [])]
    command += ["--config", str(config)] if config else []
    with log.open("wb") as output, ending_cleanly():
        child = subprocess.Popen(  # noqa: S603 - our own program
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=_environment(home),
            start_new_session=True,
        )
        try:
            _await_ready(url, child, log)
            yield url
        finally:
            stop(child)
            assert child.stdin is not None  # noqa: S101 - a pipe was asked for
            child.stdin.close()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop(child: subprocess.Popen[bytes]) -> None:
    """Ask the service to finish what it has; end it by force only if it does not."""
    if child.poll() is not None:
        return
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _environment(home: Path) -> Mapping[str, str]:
    """The caller's, without what would make it another service."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TILLER_")}
    return {"OMP_NUM_THREADS": "1", **kept, "TILLER_HOME": str(home)}


def _await_ready(url: str, child: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if child.poll() is not None:
            raise TillerError("The service ended while starting.", remedy=_tail(log))
        try:
            if httpx2.get(f"{url}/readyz", timeout=10).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.3)
    raise TillerError(f"The service was not ready in {START_SECONDS:.0f} s.", remedy=_tail(log))


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
    return f"{log} ends with:\n" + "\n".join(lines)
