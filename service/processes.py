"""Who a worker is: which process of which machine, so that others of the machine know it is gone.

A process is told by its number and the time it began, which no later one shares, within a boot of a
kernel and a namespace of processes. Elsewhere, or where the kernel does not say, nobody is ever
held to be gone: a lease then runs out by itself.
"""

import functools
import hashlib
import os
import re
import socket
import uuid
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")
_TOLD = re.compile(r"-(?P<machine>[0-9a-f]{16})-(?P<pid>\d+)-(?P<began>\d+)-[0-9a-f]{8}$")
_STATE, _THREADS, _BEGAN = 0, 17, 19
"""Places in `/proc/<pid>/stat`, behind the program's name."""


def worker_name() -> str:
    """A name for one worker of this process, unlike any other's."""
    host, own, fresh = socket.gethostname(), os.getpid(), uuid.uuid4().hex[:8]
    told = _stat(own)
    if machine() is None or told is None:
        return f"{host}-{fresh}"
    return f"{host}-{machine()}-{own}-{told[_BEGAN]}-{fresh}"


def is_gone(worker: str) -> bool:
    """Whether the process of a worker of that name is known to have ended."""
    told = _TOLD.search(worker)
    if told is None or told["machine"] != machine():
        return False
    pid = int(told["pid"])
    try:
        os.kill(pid, 0)  # asks only; what may not be asked is there
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    stat = _stat(pid)
    if stat is None:
        return False
    dead = stat[_STATE] in "ZX" and int(stat[_THREADS]) <= 1
    return dead or stat[_BEGAN] != told["began"]


@functools.cache
def machine() -> str | None:
    """This boot of this kernel, and which processes can be seen; None where nobody says."""
    try:
        boot, namespace = _BOOT.read_text(encoding="ascii"), _NAMESPACE.readlink()
    except OSError:
        return None
    told = f"{socket.gethostname()} {boot.strip()} {namespace}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _stat(pid: int) -> list[str] | None:
    """What the kernel says of a process, behind its program's name; None if it does not."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return told.rpartition(")")[2].split()
