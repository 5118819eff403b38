"""Child processes that receive signals."""

from __future__ import annotations

import signal


def heeded() -> None:
    """Reset the signals that end a process, which pytest and its children ignore under `nohup`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
