"""Reading while a job saves: every result is one complete checkpoint, or a clear error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import bnstat
from tests.hardening.saver import LAYERS, ROLES
from tests.hardening.support import assert_one_error, command

pytestmark = pytest.mark.slow


@contextmanager
def job(how: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A job that saves, from its first checkpoints until the block ends."""
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


@pytest.mark.parametrize("how", ["manager", "same-name"])
def test_results(how: str, tmp_path: Path) -> None:
    outcomes = Counter[str]()
    with job(how, tmp_path):
        for number in range(50):
            for read in (_load, _load_lazily, _load_all):
                try:
                    for model in read(tmp_path):
                        arrays = [{r: layer.array(r).tolist() for r in ROLES} for layer in model]
                        _demand_whole(arrays, model.source.step)
                        outcomes[f"{read.__name__}: answers"] += 1
                except bnstat.BnstatError:
                    outcomes[f"{read.__name__}: errors"] += 1
            if number % 10 == 0:
                _export(tmp_path)
    print(how, outcomes)
    assert sum(outcomes[outcome] for outcome in outcomes if outcome.endswith("answers")) > 10
    assert outcomes["_load: errors"] <= outcomes["_load: answers"] / 4


def _demand_whole(layers: list[dict[str, list[float]]], step: int | None = None) -> None:
    """Check that all layers exist, and that all numbers are the checkpoint's step."""
    assert len(layers) == LAYERS
    values = {value for layer in layers for role in ROLES for value in layer[role]}
    assert len(values) == 1, f"a mixture of checkpoints: {values}"
    assert step is None or values == {step}


def _load(folder: Path) -> Iterator[bnstat.Model]:
    yield bnstat.load(folder, eager=True)


def _load_lazily(folder: Path) -> Iterator[bnstat.Model]:
    model = bnstat.load(folder)
    time.sleep(0.02)
    bnstat.check(model)
    yield model


def _load_all(folder: Path) -> Iterator[bnstat.Model]:
    return (model for _, model in bnstat.load_all(folder) if isinstance(model, bnstat.Model))


def _export(folder: Path) -> None:
    result = command("export", folder, "--json")
    if result.returncode == 2:
        assert_one_error(result)
        return
    layers = json.loads(result.stdout)["layers"]
    _demand_whole([{role: layer[role]["values"] for role in ROLES} for layer in layers])
