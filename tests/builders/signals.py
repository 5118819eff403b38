"""Child processes that receive signals."""

from __future__ import annotations

import signal


def heeded() -> None:
    """Reset the signals that end a process. Pass this as `preexec_fn`.

    Under `nohup`, or as a background job of a script, pytest ignores some signals, and its
    children would inherit that.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
