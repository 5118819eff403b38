"""`python -m bnstat`, and the command `bnstat`."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from contextlib import suppress
from typing import NoReturn

from bnstat.signals import INTERRUPTED, Ended, is_call_running, raise_on_signals

_RARELY = 100_000
"""The number of new objects per garbage collection; a high value speeds up large checkpoints."""


def run() -> None:
    """Run the command line; Ctrl-C, even during imports, ends the process without a traceback.

    On `kill` or a closing terminal, partial files are removed; then the process dies from the
    signal, as the sender expects.
    """
    try:
        gc.set_threshold(_RARELY)
        raise_on_signals()
        from bnstat.cli import main

        main()
    except KeyboardInterrupt:
        _exit(INTERRUPTED)
    except SystemExit as end:
        _exit(end.code)
    except Ended as end:
        os.kill(os.getpid(), end.number)


def _exit(code: str | int | None) -> NoReturn:
    """Run the exit handlers and end the process, without freeing objects one by one.

    Freeing takes a sixth of the time of a short command, and aborts the process if a call into
    TensorFlow still runs.
    """
    if isinstance(code, str):
        sys.exit(code)
    if not is_call_running():
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    run()
