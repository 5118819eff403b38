from __future__ import annotations

import io
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from bnstat.exchange import npz as output
from bnstat.exchange.naming import DEFAULTS, ExportOptions
from bnstat.model import ROLES
from tests.builders.oracle import same_bits
from tests.mending.exported import dumped
from tests.output.models import layer, model, usual


def written(a_model, options=DEFAULTS):
    return np.load(io.BytesIO(dumped(a_model, "npz", options)), allow_pickle=False)


def test_keys_and_every_bit():
    layers = [usual("stem/bn", 70_000), usual("head/bn", 3, seed=1)]
    archive = written(model(*layers))
    assert list(archive) == [f"{bn.name}/{role}" for bn in layers for role in ROLES]
    for bn in layers:
        assert all(same_bits(archive[f"{bn.name}/{role}"], bn.array(role)) for role in ROLES)
    assert dumped(model(*layers), "npz") == dumped(model(*layers), "npz")
    assert list(written(model(layer("bn", {"beta": np.float32([1])})))) == ["bn/beta"]
    assert list(written(model())) == []


def test_folded_is_scale_and_shift():
    two = model(*(usual(name, 5, epsilon=1e-3) for name in ("a", "b")))
    read = written(two, ExportOptions(folded=True))
    assert sorted(read) == ["a/scale", "a/shift", "b/scale", "b/shift"]
    for part, array in zip(("scale", "shift"), two[1].scale_and_shift(), strict=True):
        np.testing.assert_array_equal(read[f"b/{part}"], array)


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1.5, np.nan], [-0.0, np.inf]], np.float16),
        np.array([1, 2], ">f8"),
        np.array([True, False]),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(3.0),
        np.zeros((0, 3)),
    ],
)
def test_arrays_keep_dtype_and_shape(array):
    assert same_bits(written(model(layer("bn", {"gamma": array})))["bn/gamma"], array)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])
def test_types_that_numpy_lacks_become_float32(dtype):
    array = np.array([0.1, -3, np.inf]).astype(dtype)
    read = written(model(layer("bn", {"gamma": array})))["bn/gamma"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read.astype(dtype), array)


def test_writing_to_a_pipe():
    file = io.BytesIO()
    output.dump(model(usual("bn")), SimpleNamespace(write=file.write, flush=file.flush))
    archive = np.load(io.BytesIO(file.getvalue()), allow_pickle=False)
    np.testing.assert_array_equal(archive["bn/beta"], usual("bn").beta)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../up", "层/bn", "a b\n", "a\0b", "\udc80"])
def test_names_are_exact_unless_a_zip_cannot_hold_them(name):
    key = {"a\0b": "a\\x00b", "\udc80": "\\udc80"}.get(name, name)
    assert f"{key}/gamma" in list(written(model(usual(name))))
