"""Compare with the values that TensorFlow reads, and with the bytes at the extents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from bnstat.model import Model, Variable

Array = NDArray[np.generic]
Roles = Mapping[str, Array]


def same_bits(found: Array | None, expected: Array) -> bool:
    return (
        found is not None
        and found.dtype == expected.dtype
        and found.shape == expected.shape
        and found.tobytes() == expected.tobytes()
    )


def from_extents(variable: Variable) -> Array:
    """Return the array of a variable from its extents, as a program that patches them finds it.

    Each element lies in exactly one extent.
    """
    kind = variable.read().dtype
    array = np.zeros(variable.shape, kind)
    covered = np.zeros(variable.shape, int)
    for extent in variable.extents():
        shape = array[extent.part].shape
        array[extent.part] = np.frombuffer(extent.read(), kind).reshape(shape)
        covered[extent.part] += 1
    assert (covered == 1).all()
    return array


def assert_computed(found: Any, expected: Any) -> None:
    """Assert that outputs agree to single precision; the last bits depend on the processor."""
    expected = np.asarray(expected)
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=tolerance)


def assert_layers(model: Model, expected: Mapping[str, Roles]) -> None:
    """Assert that a model has exactly these layers, roles and bits, and no incomplete layers."""
    assert {layer.name: set(layer.variables) for layer in model} == {
        name: set(roles) for name, roles in expected.items()
    }
    for name, roles in expected.items():
        for role, array in roles.items():
            assert same_bits(model[name].array(role), array), (name, role)
    assert [layer.name for layer in model.incomplete] == []
    assert [layer.name for layer in model if layer.undecided] == []


def assert_as_tensorflow_reads(model: Model, prefix: Path | str) -> None:
    """Assert that each variable of a model has the bits that TensorFlow reads for its key."""
    reader = tf.train.load_checkpoint(str(prefix))
    groups = [group for layer in model for group in (layer.variables, layer.extra)]
    variables = [variable for group in groups for variable in group.values()]
    for variable in variables:
        assert same_bits(variable.read(), reader.get_tensor(variable.key)), variable.key
    assert len({variable.key for variable in variables}) == len(variables)


def check(model: Model, prefix: Path | str, expected: Mapping[str, Roles]) -> None:
    """Assert that a model has exactly these layers, as does TensorFlow's reader."""
    assert_layers(model, expected)
    assert_as_tensorflow_reads(model, prefix)
