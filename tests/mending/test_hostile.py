"""Models and values that somebody has made to do harm, or that went bad: one line, nothing left."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError
from tests.builders.mended import new_values
from tests.fuzz import mutate
from tests.fuzz.mutate import flip, set_number
from tests.fuzz.recipes import make
from tests.fuzz.seeds import seeds
from tests.mending.exported import exported, fitted, layer, model

CASES = 250


def test_models(tmp_path: Path) -> None:
    """A copy of a fuzzed model is right or not written. The original is unchanged."""
    models = [seed for seed in seeds() if seed.format != "archive"]
    outcomes = {"written": 0, "refused": 0}
    said: list[str] = []
    left: list[str] = []
    for number in range(CASES):
        rng = Random(f"apply {number}")
        case, _ = make(rng, rng.choice(models))
        folder = tmp_path / str(number)
        (folder / "out").mkdir(parents=True)
        path = case.write(folder / "in")
        try:
            opened = bnstat.load(path, reader="native")
            values = new_values(opened)
        except BnstatError:
            continue
        before = {one: one.read_bytes() for one in (folder / "in").rglob("*") if one.is_file()}
        try:
            bnstat.apply(path, values, folder / "out/c")
            outcomes["written"] += 1
        except BnstatError as error:
            said.append(error.what)
            outcomes["refused"] += 1
            left += os.listdir(folder / "out")
        assert {one: one.read_bytes() for one in before} == before
    assert left == []
    assert not any("\n" in what for what in said)
    assert min(outcomes.values()) > CASES / 20


def shuffled(rng: Random, data: bytes) -> bytes:
    """Change, cut out, double or replace some bytes."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        change = rng.choice((flip, set_number, mutate.splice, mutate.splice, mutate.text))
        data = change(rng, data) or b"{"
    return data


@pytest.mark.parametrize("form", ["json", "csv", "npz"])
def test_values(tmp_path: Path, form: str) -> None:
    of = model(
        layer("a/bn", gamma=np.arange(3, dtype="f4"), moving_mean=np.full(3, np.nan, "f4")),
        layer("b/bn", gamma=np.arange(4, dtype="f2").reshape(2, 2)),
    )
    original = exported(of, form, tmp_path).read_bytes()
    path = tmp_path / "values"
    said = []
    for number in range(4 * CASES):
        path.write_bytes(shuffled(Random(f"{form} {number}"), original))
        try:
            arrays = fitted(of, path)
        except BnstatError as error:
            said.append(error.what)
            continue
        for variable in (variable for one in of for variable in one.variables.values()):
            array = arrays.get(variable.key)
            shape_and_type = variable.shape, variable.dtype
            assert array is None or (array.shape, array.dtype.name) == shape_and_type
    assert not any("\n" in what for what in said)
    assert CASES < len(said) < 4 * CASES
