"""`python -m bnstat`, and the command `bnstat`."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_SIGINT = 128 + 2
_ENDING = ("SIGTERM", "SIGHUP")
_AGAIN_SECONDS = 0.01
_RARELY = 100_000
"""Objects between two collections: a large checkpoint makes millions, and hardly any garbage."""


class _Ended(BaseException):
    """A signal wants the process to end, as `KeyboardInterrupt` is for Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run() -> None:
    """Run the command line. Ctrl-C ends it quietly, also while its modules are imported.

    So do `kill` and a terminal that closes: what is half written is removed, then the process
    dies of the signal, as whoever sent it expects.
    """
    try:
        gc.set_threshold(_RARELY)
        _heed_signals()
        sys.unraisablehook = _unraisable
        from bnstat.cli import main

        main()
    except KeyboardInterrupt:
        _exit(_SIGINT)
    except SystemExit as end:
        _exit(end.code)
    except _Ended as end:
        os.kill(os.getpid(), end.number)


def _exit(code: str | int | None) -> NoReturn:
    """Exit; if TensorFlow still runs in a thread, at once, because a usual exit would abort."""
    threading = sys.modules.get("threading")
    if threading and any(each.name == "bnstat-tensorflow" for each in threading.enumerate()):
        os._exit(code if isinstance(code, int) else 1)
    sys.exit(code)


def _heed_signals() -> None:
    for name in _ENDING:
        number = getattr(signal, name, None)
        # Under `nohup`, SIGHUP is ignored, and stays so.
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    raise _Ended(number)


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    """Send a signal again that came where nothing can be raised, as while an object is deleted."""
    if isinstance(what.exc_value, KeyboardInterrupt):
        number: int = signal.SIGINT
    elif isinstance(what.exc_value, _Ended):
        number = what.exc_value.number
        signal.signal(number, _end)
    else:
        sys.__unraisablehook__(what)
        return
    import threading

    again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


if __name__ == "__main__":
    run()
