"""A process that judges files within limits, and is replaced when it dies."""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import resource
import signal
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final
from unittest.mock import patch

import bnstat
from tests.builders import effort

LOOPS: Final = effort.LOOPS
"""CPU time for a file, in calibration loops."""

MEMORY: Final = 1 << 30
"""Bytes for a file, beyond the memory of Python and the libraries."""

_WALL: Final = 600
"""Seconds after which a waiting process is ended."""

_PACKAGE: Final = Path(bnstat.__file__).parent


@dataclass(frozen=True)
class Verdict:
    """The result for one file: `answer: DIGEST`, `error: KIND`, or a problem and its place."""

    text: str
    is_finding: bool
    details: str = ""


class Worker:
    """Judges one path after the other in a separate process."""

    def __init__(self) -> None:
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def judge(self, path: Path) -> Verdict:
        if self._process is None or self._pipe is None:
            self._process, self._pipe = _start()
        try:
            self._pipe.send(path)
            if self._pipe.poll(_WALL):
                verdict: Verdict = self._pipe.recv()
                return verdict
            text = f"takes more than {_WALL} s"
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            text = f"the process dies with {code}"
            if code == -signal.SIGXCPU:
                text = f"takes more CPU time than {LOOPS} calibration loops"
        self.close()
        return Verdict(text, True)

    def close(self) -> None:
        if self._process is not None and self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._process = self._pipe = None


def _start() -> tuple[SpawnProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=_serve, args=(other,), daemon=True)
    environment = {"OPENBLAS_NUM_THREADS": "1", "PYTHONFAULTHANDLER": ""}
    with patch.dict(os.environ, environment):
        process.start()
    other.close()
    return process, pipe


def _serve(pipe: Connection) -> None:
    from tests.fuzz.judge import judge

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    _load_everything()
    seconds = math.ceil(LOOPS * effort.loop())
    with open("/proc/self/statm") as file:
        own = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY, own + MEMORY))
    while True:
        path = pipe.recv()
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            verdict = Verdict(judge(str(path)), False)
        except Exception as error:
            verdict = _finding(error)
        pipe.send(verdict)


def _finding(error: Exception) -> Verdict:
    """Return the verdict on an error that is not bnstat's own, with the place in bnstat."""
    frames = [
        f"{Path(frame.filename).stem}.{frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if _PACKAGE in Path(frame.filename).parents
    ]
    place = frames[-1] if frames else "judge"
    what = f": {error}" if isinstance(error, AssertionError) else ""
    text = f"{type(error).__name__} in {place}{what}".replace("\n", " ")
    details = "".join(traceback.format_exception(error, limit=-25))
    return Verdict(text, True, details.encode("utf-8", "backslashreplace").decode())


def _load_everything() -> None:
    """Import the modules of all formats, so that they count neither as time nor as memory."""
    formats = ("tensorflow.frozen_graph", "tensorflow.graph_def", "keras.v3")
    names = ("checks", "compare.diff", *(f"formats.{name}" for name in formats))
    for name in ("ml_dtypes", *(f"bnstat.{name}" for name in names)):
        importlib.import_module(name)
    importlib.import_module("bnstat.formats.protobuf.protos").message_class("SavedModel")
