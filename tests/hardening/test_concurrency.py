"""Reading while a job saves: every result is one complete checkpoint, or a clear error.

pytest tests/hardening/test_concurrency.py --seconds 60
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from tests.hardening.saver import LAYERS, ROLES
from tests.hardening.support import command

pytestmark = pytest.mark.slow

HOWS = ("manager", "saver", "same-name")

Outcomes = Counter[str]


Rounds = Callable[[int], Iterable[int]]


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Rounds:
    """Return a function that counts to a number, or for as long as --seconds specifies."""
    seconds = request.config.getoption("--seconds", default=None)

    def counted(number: int) -> Iterable[int]:
        if seconds is None:
            return range(number)
        end = time.monotonic() + seconds
        return takewhile(lambda _: time.monotonic() < end, count())

    return counted


@contextmanager
def job(how: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A job that saves, from its first checkpoints until the block ends."""
    if how != "same-name" and importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("saver.py"), how, folder],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    try:
        end = time.monotonic() + 120
        while not any(folder.glob("*.index")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process
        assert process.poll() is None, "the job ended"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", HOWS)
def test_results_of_python(how: str, tmp_path: Path, rounds: Rounds) -> None:
    outcomes = Counter[str]()
    with job(how, tmp_path):
        for _ in rounds(50):
            for read in (_load, _load_lazily, _load_all, _check):
                _attempt(read, tmp_path, outcomes)
    _report(how, outcomes, tmp_path)
    assert outcomes["answers"] > 10
    assert outcomes["load: errors"] <= outcomes["load: answers"] / 4


@pytest.mark.parametrize("how", HOWS)
def test_results_of_the_command_line(how: str, tmp_path: Path, rounds: Rounds) -> None:
    outcomes = Counter[str]()
    with job(how, tmp_path):
        for _ in rounds(3):
            for run in (_export, _inspect, _history, _check_command):
                run(tmp_path, outcomes)
    _report(how, outcomes, tmp_path)
    assert outcomes["answers"] > outcomes["errors"]


def _report(how: str, outcomes: Outcomes, folder: Path) -> None:
    """Print the outcomes for `pytest -s`; the newest checkpoint contains the number of saves.

    The job was killed, perhaps between the two files of a save.
    """
    saves: int | str
    try:
        saves = int(np.max(bnstat.load(folder, eager=True)[0].array("moving_mean")))
    except bnstat.BnstatError:
        saves = "an unknown number of"
    print(f"{how}: {saves} saves, {json.dumps(dict(sorted(outcomes.items())))}")


def _attempt(read: Callable[[Path], int], folder: Path, outcomes: Outcomes) -> None:
    try:
        answers = read(folder)
    except bnstat.BnstatError:
        _count(read, outcomes, "errors", 1)
    else:
        _count(read, outcomes, "answers", answers)


def _count(read: Callable[..., object], outcomes: Outcomes, what: str, count: int) -> None:
    outcomes[what] += count
    outcomes[f"{read.__name__.strip('_')}: {what}"] += count


def _demand_whole(model: bnstat.Model) -> None:
    """Check that all layers exist, and that all numbers are the checkpoint's step."""
    assert len(model) == LAYERS
    values = set()
    for layer in model:
        assert set(layer.variables) == set(ROLES)
        for role in ROLES:
            array = layer.array(role)
            assert array is not None
            values |= set(np.unique(array).tolist())
    assert len(values) == 1, f"a mixture of checkpoints: {values}"
    if model.source.step is not None:
        assert values == {model.source.step}


def _load(folder: Path) -> int:
    _demand_whole(bnstat.load(folder, eager=True))
    return 1


def _load_lazily(folder: Path) -> int:
    model = bnstat.load(folder)
    time.sleep(0.02)
    _demand_whole(model)
    return 1


def _load_all(folder: Path) -> int:
    count = 0
    for _, model in bnstat.load_all(folder):
        if isinstance(model, bnstat.BnstatError):
            assert "\n" not in str(model)
        else:
            _demand_whole(model)
            count += 1
    return count


def _check(folder: Path) -> int:
    model = bnstat.load(folder)
    bnstat.check(model)
    _demand_whole(model)
    return 1


def _run(folder: Path, outcomes: Outcomes, *arguments: str) -> tuple[int, bytes]:
    """Run a command; errors are one clear line, and counted."""
    result = command(arguments[0], folder, *arguments[1:])
    assert b"Traceback" not in result.stderr, result.stderr.decode()
    if result.returncode == 2:
        (line,) = (line for line in result.stderr.splitlines() if not line.startswith(b"skipped"))
        assert line.startswith(b"error: ")
        outcomes["errors"] += 1
    else:
        outcomes["answers"] += 1
    outcomes[f"{arguments[0]}: {result.returncode}"] += 1
    return result.returncode, result.stdout


def _export(folder: Path, outcomes: Outcomes) -> None:
    code, output = _run(folder, outcomes, "export", "--json")
    if code != 2:
        model: dict[str, Any] = json.loads(output)
        assert len(model["layers"]) == LAYERS
        values = {
            value for layer in model["layers"] for role in ROLES for value in layer[role]["values"]
        }
        assert len(values) == 1, f"a mixture of checkpoints: {values}"
        assert model["source"]["step"] in (None, *values)


def _inspect(folder: Path, outcomes: Outcomes) -> None:
    code, output = _run(folder, outcomes, "inspect", "--values", "-q")
    if code != 2:
        assert output.count(b"moving_variance") + output.count(b"moving variance") >= LAYERS


def _history(folder: Path, outcomes: Outcomes) -> None:
    code, output = _run(folder, outcomes, "history", "--csv")
    if code == 0:
        header, *rows = (line.split(",") for line in output.decode().splitlines())
        places = {name: header.index(name) for name in ("step", "mean", "std", "min", "max")}
        found: dict[str, set[float]] = {}
        for row in rows:
            assert float(row[places["std"]]) == 0
            values = {float(row[places[name]]) for name in ("mean", "min", "max")}
            found.setdefault(row[places["step"]], set()).update(values)
        for step, values in found.items():
            assert len(values) == 1, f"a mixture of checkpoints: {values}"
            assert step in ("", *(f"{value:g}" for value in values))


def _check_command(folder: Path, outcomes: Outcomes) -> None:
    _run(folder, outcomes, "check", "--json")
