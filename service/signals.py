"""SIGTERM and SIGINT ask the service to stop; they do not interrupt what it does."""

import signal
import threading


def stop_on_signals(stop: threading.Event) -> None:
    """Set `stop` at SIGTERM or SIGINT; to be called again after a library took the signals."""
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, lambda *_: stop.set())
