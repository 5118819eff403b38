"""What TensorFlow reads, to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from bnstat.model import Model

Array = NDArray[np.generic]
Roles = Mapping[str, Array]


def same_bits(found: Array | None, expected: Array) -> bool:
    """Whether two arrays have the same type, shape and bytes."""
    return (
        found is not None
        and found.dtype == expected.dtype
        and found.shape == expected.shape
        and found.tobytes() == expected.tobytes()
    )


def assert_layers(model: Model, expected: Mapping[str, Roles]) -> None:
    """The model has exactly these layers, with these roles and bits, and nothing half found."""
    assert {layer.name: set(layer.variables) for layer in model} == {
        name: set(roles) for name, roles in expected.items()
    }
    for name, roles in expected.items():
        for role, array in roles.items():
            assert same_bits(model[name].array(role), array), (name, role)
    assert [layer.name for layer in model.incomplete] == []
    assert [layer.name for layer in model if layer.undecided] == []


def assert_as_tensorflow_reads(model: Model, prefix: Path | str) -> None:
    """Every variable of every layer has the bits that TensorFlow reads under its key."""
    reader = tf.train.load_checkpoint(str(prefix))
    variables = [
        variable
        for layer in model
        for variable in (*layer.variables.values(), *layer.extra.values())
    ]
    for variable in variables:
        assert same_bits(variable.read(), reader.get_tensor(variable.key)), variable.key
    assert len({variable.key for variable in variables}) == len(variables)
