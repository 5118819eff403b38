"""Processes that signals reach."""

from __future__ import annotations

import signal


def heeded() -> None:
    """As a `preexec_fn`: the signals that end a process do so, whatever its parent ignores.

    Under `nohup`, or as a background job of a script, pytest itself ignores some of them, and its
    children would inherit that.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
