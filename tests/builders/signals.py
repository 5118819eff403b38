"""Child processes that receive signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

from tests.terminal import ROOT


def heeded() -> None:
    """Reset the signals that end a process, which pytest and its children ignore under `nohup`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def started(*arguments: object, **options: Any) -> subprocess.Popen[Any]:
    """Start Python with these arguments in a process that signals end, and pipe its output."""
    streams = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    defaults = {**streams, "preexec_fn": heeded, "cwd": ROOT}
    return subprocess.Popen([sys.executable, *map(str, arguments)], **(defaults | options))


def hit(module: str, name: str, number: int, sent: int) -> None:
    """Make this process send itself a signal after the n-th call of a function or a method."""
    thing: Any = sys.modules[module]
    *inside, name = name.split(".")
    for part in inside:
        thing = getattr(thing, part)
    real, calls = getattr(thing, name), []

    def wrapper(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        calls.append(None)
        if len(calls) == number:
            os.kill(os.getpid(), sent)
        return result

    setattr(thing, name, wrapper)
