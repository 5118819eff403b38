"""The command line in a shell: signals, locales, narrow terminals."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.builders.signals import started
from tests.fuzz import handmade
from tests.hardening.support import command, layers, write
from tests.terminal import ROOT

DIGITS = ROOT / "tests" / "data" / "digits" / "run"
CODES = {signal.SIGINT: 130, signal.SIGTERM: -signal.SIGTERM, signal.SIGHUP: -signal.SIGHUP}
C_LOCALE = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ASCII = {**C_LOCALE, "PYTHONIOENCODING": "ascii:strict"}
COMMANDS = (
    "inspect {0}",
    "export --json {0}",
    "export --csv {0}",
    "check {0}",
    "history {0}",
    "diff {0}/model-0 {0}/model-400",
)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose export is much larger than a pipe's buffer."""
    tensors = layers(channels=100_000, count=4)
    return write(tmp_path_factory.mktemp("large"), handmade.bundle(tensors))


def test_closed_standard_error() -> None:
    expected = command("inspect", DIGITS)
    result = command("inspect", DIGITS, stderr=None, preexec_fn=lambda: os.close(2))
    assert (result.stdout, result.returncode) == (expected.stdout, 0)


@pytest.mark.parametrize("where", ["stdout", "file"])
@pytest.mark.parametrize("number", CODES)
def test_signals_while_writing_leave_nothing(where, number, large, tmp_path) -> None:
    """Ctrl-C, `kill` and a closed terminal end it quietly, without a file."""
    read, written = os.pipe()
    script = ["-m", "bnstat", "export", large, "-o", "-"]
    if where == "file":
        script = _interrupted_while_writing(large, tmp_path / "x.json")
    process = started(*script, stdout=written)
    os.close(written)
    assert os.read(read, 1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=300)
    os.close(read)
    assert (process.returncode, stderr) == (CODES[number], b"")
    assert os.listdir(tmp_path) == []


def _interrupted_while_writing(model: Path, target: Path, seconds: float = 600) -> list[object]:
    """Return the arguments of a Python that prints when it starts to write a file, then waits."""
    script = """
import sys, time
from bnstat.exchange import json
write = json._layer
def slowly(*given):
    yield from write(*given)
    print("begun", flush=True)
    time.sleep(seconds)
json._layer = slowly
seconds = float(sys.argv.pop())
sys.argv[1:] = ["export", sys.argv[1], "-o", sys.argv[2]]
from bnstat.__main__ import run
run()
"""
    return ["-c", script, model, target, seconds]


def test_signals_that_nohup_ignores(large: Path, tmp_path: Path) -> None:
    script = _interrupted_while_writing(large, tmp_path / "x.json", seconds=0.5)
    process = started(*script, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert process.stdout.read(1)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=300)
    assert (process.returncode, os.listdir(tmp_path)) == (0, ["x.json"])


def _assert_ends(main: str, number: signal.Signals) -> None:
    """Run bnstat with another `main`, given as code that sends signal `sys.argv[1]`."""
    script = f"""
import os, signal, sys, threading, time
import bnstat.cli
{main}
bnstat.cli.main = main
from bnstat.__main__ import run
run()
"""
    process = started("-c", script, int(number))
    assert process.communicate(timeout=300) == (b"", b"")
    assert process.returncode == CODES[number]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_while_an_object_is_deleted(number: signal.Signals) -> None:
    # The thread that sends the signal again is often ahead of the one that started it.
    main = """
start = threading.Thread.start
threading.Thread.start = lambda thread: (start(thread), time.sleep(0.2))
class Deleted:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0)
def main():
    Deleted()
    time.sleep(30)
    print("lost")
"""
    _assert_ends(main, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_just_before_a_system_call(number: signal.Signals) -> None:
    """A signal that another thread receives does not interrupt the main thread's call either."""
    main = """
def send():
    time.sleep(0.2)
    signal.pthread_kill(threading.get_ident(), int(sys.argv[1]))
def main():
    threading.Thread(target=send).start()
    os.read(os.pipe()[0], 1)
"""
    _assert_ends(main, number)


def test_ctrl_c_at_the_start() -> None:
    """Once bnstat's own code runs, there is no traceback."""
    for delay in (0.08, 0.12, 0.16, 0.2, 0.25):
        process = started("-m", "bnstat", "inspect", DIGITS)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
        # Python itself ends with 1 if it is interrupted before it runs any module.
        assert process.returncode in (0, 1, 130, -signal.SIGINT)
        assert b"bnstat/cli" not in stderr
        assert b"in run" not in stderr


@pytest.mark.parametrize("line", COMMANDS)
def test_the_plain_locale(line: str) -> None:
    """No output fails for a character outside the locale."""
    result = command(*line.format(DIGITS).split(), env=ASCII)
    assert result.returncode in (0, 1)
    assert result.stdout
    assert b"Traceback" not in result.stderr
    if not line.startswith("export"):
        result.stdout.decode("ascii")


def test_names_outside_the_locale(tmp_path: Path) -> None:
    folder = write(tmp_path, handmade.bundle(layers("блок")))
    assert "блок" in command("export", folder, env=C_LOCALE).stdout.decode()
