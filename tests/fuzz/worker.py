"""A process that judges files within limits, and is replaced when it dies."""

from __future__ import annotations

import importlib
import math
import os
import resource
import select
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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
    """The result for one file.

    Attributes:
        text: `answer: DIGEST` or `error: KIND`; for a finding, the problem and its place.
        is_finding: True for a finding.
        details: the traceback, if there is one.
    """

    text: str
    is_finding: bool
    details: str = ""


class Worker:
    """Judges one path after the other in a separate process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def judge(self, path: Path) -> Verdict:
        """Return the verdict on a path; never raise because of its content."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(os.fsencode(path) + b"\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], _WALL)
        line = process.stdout.readline() if ready else b""
        if line:
            kind, _, rest = line.decode().rstrip("\n").partition("\t")
            text, _, details = rest.partition("\t")
            return Verdict(text, kind == "finding", details.replace("\x1f", "\n"))
        if not ready:
            process.kill()
        code = process.wait()
        self.close()
        if not ready:
            return Verdict(f"takes more than {_WALL} s", True)
        if code == -signal.SIGXCPU:
            return Verdict(f"takes more CPU time than {LOOPS} calibration loops", True)
        return Verdict(f"the process dies with {code}", True)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                stream.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONFAULTHANDLER": ""},
        )
        return self._process


def _serve() -> None:
    """Read one path per line from standard input; write one line with the verdict for each."""
    from tests.fuzz.judge import judge

    _load_everything()
    seconds = math.ceil(LOOPS * effort.loop())
    with open("/proc/self/statm") as file:
        own = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY, own + MEMORY))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        path = os.fsdecode(line.rstrip(b"\n"))
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            reply = f"fine\t{judge(path)}"
        except (Exception, RecursionError) as error:
            details = traceback.format_exc(limit=-25).replace("\n", "\x1f").replace("\t", " ")
            frames = [
                f"{Path(frame.filename).stem}.{frame.name}"
                for frame in traceback.extract_tb(error.__traceback__)
                if _PACKAGE in Path(frame.filename).parents
            ]
            place = frames[-1] if frames else "judge"
            what = f": {error}" if type(error).__name__ == "WrongAnswerError" else ""
            reply = f"finding\t{type(error).__name__} in {place}{what}"
            reply = reply.replace("\n", " ") + f"\t{details}"
        out.write(reply.encode("utf-8", "backslashreplace").decode() + "\n")
        out.flush()


def _load_everything() -> None:
    """Import the modules for all formats, so that they count neither as time nor as memory."""
    for name in (
        "ml_dtypes",
        "bnstat.checks",
        "bnstat.compare",
        "bnstat.formats.tensorflow.frozen_graph",
        "bnstat.formats.tensorflow.graph_def",
        "bnstat.formats.keras.archive",
        "bnstat.exchange.csv",
        "bnstat.exchange.npz",
        "bnstat.output.terminal.overview",
    ):
        importlib.import_module(name)
    importlib.import_module("bnstat.formats.protobuf.protos").message_class("SavedModel")


if __name__ == "__main__":
    _serve()
