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
def test_results(how: str, tmp_path: Path, rounds: Rounds) -> None:
    outcomes = Counter[str]()
    with job(how, tmp_path):
        for number in rounds(50):
            for read in (_load, _load_lazily, _load_all, _check):
                _attempt(read, tmp_path, outcomes)
            if number % 10 == 0:
                _attempt(_export, tmp_path, outcomes)
    _report(how, outcomes, tmp_path)
    assert outcomes["answers"] > 10
    assert outcomes["load: errors"] <= outcomes["load: answers"] / 4


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


def _export(folder: Path) -> int:
    """Run the command, whose errors are one clear line."""
    result = command("export", folder, "--json")
    if result.returncode == 2:
        (line,) = result.stderr.splitlines()
        assert line.startswith(b"error: ")
        raise bnstat.BnstatError(str(folder), line.decode())
    layers = json.loads(result.stdout)["layers"]
    assert len(layers) == LAYERS
    values = {value for layer in layers for role in ROLES for value in layer[role]["values"]}
    assert len(values) == 1, f"a mixture of checkpoints: {values}"
    return 1
