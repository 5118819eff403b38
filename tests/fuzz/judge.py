"""What has to hold of bnstat's answer to a file, whatever the file is."""

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

_MOST_COMPARED: Final = 100_000
"""Channels of a model that is compared with its export: the comparison takes memory as well."""

_MOST_BESIDE: Final = 40
"""Tensors that are read beside those of layers."""


class WrongAnswerError(AssertionError):
    """bnstat answered, and the answer contradicts itself."""


def judge(path: str) -> str:
    """Load, read, check, explain and export what lies at a path.

    TensorFlow's own reader is left out of it: what that takes is not in bnstat's hands.

    Returns:
        `error: KIND` for a `BnstatError`, else `answer: DIGEST` of what was exported.

    Raises:
        WrongAnswerError: the answer contradicts itself.
        Exception: whatever else bnstat raises.
    """
    import bnstat
    from bnstat.loading import load_all

    with contextlib.suppress(bnstat.BnstatError):
        bnstat.load(path, reader="native", values=False).explain()
    with contextlib.suppress(bnstat.BnstatError):
        bnstat.history(load_all(path, reader="native"))
    try:
        answer = _answer(bnstat.load(path, reader="native"))
    except bnstat.BnstatError as error:
        _demand("\n" not in error.what, "an error of several lines")
        return f"error: {type(error).__name__}"
    return f"answer: {answer}"


def _answer(model: Any) -> str:
    import bnstat
    from bnstat.exchange import csv, npz
    from bnstat.exchange import json as as_json
    from bnstat.output.terminal.overview import overview
    from bnstat.output.terminal.screen import Screen

    for layer in model:
        for variable in (*layer.variables.values(), *layer.extra.values(), *layer.undecided):
            array = variable.read()
            _demand(array.shape == variable.shape, "a shape that is not the array's")
            _demand(array.dtype.kind in "biufcV", "an array that is not numeric")
    _read_beside(model)
    for finding in bnstat.check(model):
        _demand(bool(finding.message), "an empty finding")
    model.explain()
    _demand(bnstat.diff(model, model).equal, "a model that differs from itself")
    for layer in model:
        with contextlib.suppress(bnstat.BnstatError), np.errstate(all="ignore"):
            scale, shift = layer.scale_and_shift(epsilon=1e-3)
            _demand(scale.shape == shift.shape == layer.shape, "a scale of another shape")
    for line in overview(model, Screen(width=60, boxes=True)):
        _demand(line.isprintable(), f"control characters in a table: {line!r}")
    for dump, form in ((as_json.dump, "w"), (csv.dump, "w"), (npz.dump, "wb")):
        with contextlib.suppress(bnstat.BnstatError), open(os.devnull, form) as file:
            dump(model, file)
    if model.channels > _MOST_COMPARED:
        return "large"
    return _compared(model)


def _read_beside(model: Any) -> None:
    """The tensors that are no layer's, as `diff` reads them to see what was folded into them."""
    import bnstat

    for variable in islice(model.stored.values(), _MOST_BESIDE):
        if prod(variable.shape) > _MOST_COMPARED:
            continue
        with contextlib.suppress(bnstat.BnstatError):
            array, step = variable.read(), variable.step()
            _demand(array.shape == variable.shape, "a shape that is not the array's")
            _demand(step is None or np.broadcast_shapes(step.shape, array.shape) == array.shape,
                    "a step of another shape")  # fmt: skip


def _compared(model: Any) -> str:
    """A digest of the model's JSON, which says what the model holds."""
    import bnstat
    from bnstat.exchange import json as as_json

    exported = io.StringIO()
    as_json.dump(model, exported)
    parsed = json.loads(exported.getvalue(), parse_constant=_refuse)
    exported.getvalue().encode()
    names = [layer["name"] for layer in parsed["layers"]]
    _demand(names == [layer.name for layer in model], "other layers in JSON than in the model")
    _demand(len(set(names)) == len(names), "two layers of one name")
    for layer, told in zip(model, parsed["layers"], strict=True):
        for role in bnstat.model.ROLES:
            _compare(layer, role, told[role])
    del parsed["source"]["path"]
    return hashlib.sha256(json.dumps(parsed).encode()).hexdigest()[:16]


def _compare(layer: Any, role: str, told: Any) -> None:
    """The numbers of a role read back to what the model holds."""
    array = layer.array(role)
    _demand((array is None) == (told is None), "a role that only one of model and JSON has")
    if array is None:
        return
    _demand(tuple(told["shape"]) == array.shape, "another shape in JSON")
    values = told["values"]
    for _ in range(array.ndim - 1):
        if array.size:
            values = [value for row in values for value in row]
    flat = values if array.ndim else [values]
    _demand(len(flat) == array.size, "another number of values in JSON")
    if array.dtype.kind == "f":
        back = np.array([float(value) for value in flat], array.dtype)
        same = np.array_equal(back, array.reshape(-1), equal_nan=True)
        _demand(same, "other numbers in JSON")


def _refuse(word: str) -> None:
    raise WrongAnswerError(f"{word} is no JSON")


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise WrongAnswerError(otherwise)
