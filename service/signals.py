"""What asks a process to stop: signals, and the end of the process that started it."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_LAST_RESORT_SECONDS = 120.0
"""For a service whose parent has ended; longer than a clean stop takes."""


def stop_on_signals(stop: threading.Event) -> None:
    """Set `stop` at SIGTERM or SIGINT; to be called again after a library took the signals."""
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, lambda *_: stop.set())


def stop_with_parent(stop: threading.Event) -> None:
    """Set `stop` once standard input is closed, as the kernel does when its writer has ended.

    A parent that is killed runs no clean-up of its own; a process that does not end by itself
    after that is ended.
    """

    def wait() -> None:
        while sys.stdin.buffer.read(1):
            pass
        stop.set()
        time.sleep(_LAST_RESORT_SECONDS)
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind what runs inside, as SIGINT does, instead of ending it at once.

    Signals that are ignored, as under nohup, or handled stay so; elsewhere than on the main thread
    nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is signal.SIG_DFL]
    for one in taken:
        signal.signal(one, _unwind)
    try:
        yield
    finally:
        for one in taken:
            signal.signal(one, signal.SIG_DFL)


def _unwind(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
