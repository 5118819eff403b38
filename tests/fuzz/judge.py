"""The conditions that bnstat's output must meet for any file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from itertools import islice
from math import prod
from typing import Any, Final

import numpy as np

import bnstat
from bnstat.exchange import csv, npz
from bnstat.exchange import json as as_json
from bnstat.loading import load_all
from bnstat.output.terminal.overview import overview
from bnstat.output.terminal.screen import Screen

_MAX_COMPARED: Final = 100_000
"""Channels of a model that is compared with its export, which takes memory as well."""

_MAX_OTHERS: Final = 40
"""Tensors without a layer that are read."""


def judge(path: str) -> str:
    """Load, read, check, explain and export the model at a path.

    Return `error: KIND` for a `BnstatError`, else `answer: DIGEST` with a digest of the export.
    Other errors are defects. TensorFlow's own reader is not used, because bnstat cannot bound what
    it does.
    """
    with contextlib.suppress(bnstat.BnstatError):
        bnstat.load(path, reader="native", values=False).explain()
    with contextlib.suppress(bnstat.BnstatError):
        bnstat.history(load_all(path, reader="native"))
    try:
        answer = _answer(bnstat.load(path, reader="native"))
    except bnstat.BnstatError as error:
        if "\n" in error.what:
            raise AssertionError("an error of several lines") from error
        return f"error: {type(error).__name__}"
    return f"answer: {answer}"


def _answer(model: Any) -> str:
    for layer in model:
        for variable in (*layer.variables.values(), *layer.extra.values(), *layer.undecided):
            array = variable.read()
            assert array.shape == variable.shape, "a variable and its array differ in shape"
            assert array.dtype.kind in "biufcV", "an array that is not numeric"
    _read_others(model)
    for finding in bnstat.check(model):
        assert finding.message, "an empty finding"
    model.explain()
    assert bnstat.diff(model, model).equal, "a model that differs from itself"
    for layer in model:
        with contextlib.suppress(bnstat.BnstatError), np.errstate(all="ignore"):
            scale, shift = layer.scale_and_shift(epsilon=1e-3)
            assert scale.shape == shift.shape == layer.shape, "a scale of another shape"
    for line in overview(model, Screen(width=60, boxes=True)):
        assert line.isprintable(), f"control characters in a table: {line!r}"
    for dump, form in ((as_json.dump, "w"), (csv.dump, "w"), (npz.dump, "wb")):
        with contextlib.suppress(bnstat.BnstatError), open(os.devnull, form) as file:
            dump(model, file)
    if model.channels > _MAX_COMPARED:
        return "large"
    return _compared(model)


def _read_others(model: Any) -> None:
    """Read tensors without a layer, as `diff` does to recognise folding."""
    for variable in islice(model.stored.values(), _MAX_OTHERS):
        if prod(variable.shape) > _MAX_COMPARED:
            continue
        with contextlib.suppress(bnstat.BnstatError):
            array, step = variable.read(), variable.step()
            assert array.shape == variable.shape, "a variable and its array differ in shape"
            assert step is None or np.broadcast_shapes(step.shape, array.shape) == array.shape, (
                "a step of another shape"
            )


def _compared(model: Any) -> str:
    exported = io.StringIO()
    as_json.dump(model, exported)
    parsed = json.loads(exported.getvalue(), parse_constant=_refuse)
    exported.getvalue().encode()
    names = [layer["name"] for layer in parsed["layers"]]
    assert names == [layer.name for layer in model], "the layers in JSON differ from the model's"
    assert len(set(names)) == len(names), "two layers have the same name"
    for layer, entry in zip(model, parsed["layers"], strict=True):
        for role in bnstat.model.ROLES:
            _compare(layer, role, entry[role])
    del parsed["source"]["path"]
    return hashlib.sha256(json.dumps(parsed).encode()).hexdigest()[:16]


def _compare(layer: Any, role: str, exported: Any) -> None:
    array = layer.array(role)
    assert (array is None) == (exported is None), "a role is missing from the model or from JSON"
    if array is None:
        return
    values = np.array(exported["values"], object)
    assert tuple(exported["shape"]) == array.shape, "a shape differs in JSON"
    assert values.shape == array.shape or values.size == array.size == 0, "nested otherwise in JSON"
    if array.dtype.kind == "f":
        back = values.reshape(array.shape).astype(array.dtype)
        assert np.array_equal(back, array, equal_nan=True), "numbers differ in JSON"


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is not valid JSON")
