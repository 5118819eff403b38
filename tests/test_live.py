"""Models in memory that only resemble Keras models, and arguments that apply to files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bnstat


class Variable:
    """The parts of a Keras or TensorFlow variable that bnstat uses."""

    def __init__(self, array: Any) -> None:
        self._array = np.asarray(array, np.float32)
        self.shape, self.dtype = self._array.shape, self._array.dtype

    def numpy(self) -> Any:
        return self._array.copy()

    def assign(self, array: Any) -> None:
        self._array = np.asarray(array, np.float32)


class Norm:
    def __init__(self, **settings: Any) -> None:
        self.moving_mean, self.moving_variance = Variable([0, 1]), Variable([1, 2])
        self.variables = [self.moving_mean, self.moving_variance]
        self.__dict__.update(settings)


class Network:
    variables = ()

    def __init__(self, **children: Any) -> None:
        self.__dict__.update(children)


class Slotted:
    """An object with variables that has no `__dict__`."""

    __slots__ = ("variables",)

    def __init__(self) -> None:
        self.variables = ()


class Unbuilt(Network):
    """Like a Keras 2 model that was not called yet."""

    @property
    def variables(self) -> Any:
        raise ValueError("weights have not been created yet")


def test_objects_with_layers_are_loaded() -> None:
    assert bnstat.load(Network(bn=Norm(), other=Slotted())).keys() == ["bn"]
    assert bnstat.load(Unbuilt(bn=Norm())).keys() == ["bn"]
    for thing in (Slotted(), object(), 3):
        with pytest.raises(bnstat.UnsupportedError, match="neither a path nor a model"):
            bnstat.load(thing)


@pytest.mark.parametrize(
    ("given", "axis"),
    [
        (np.int64(1), 1),
        ([np.int32(1), 2], (1, 2)),
        ((np.int64(3),), 3),
        ([], ()),
        ("x", None),
        (None, None),
    ],
)
def test_settings_may_have_any_number_type(given: Any, axis: Any) -> None:
    settings = {"epsilon": np.float32(0.5), "momentum": np.float64(0.25), "axis": given}
    (layer,) = bnstat.load(Network(bn=Norm(**settings)))
    assert (layer.epsilon, layer.momentum, layer.axis) == (0.5, 0.25, axis)
    assert type(layer.epsilon) is float


@pytest.mark.parametrize(
    "argument",
    [
        {"step": 3},
        {"checkpoint": "m-3"},
        {"reader": "native"},
        {"patterns": [("gamma", "x")]},
        {"include_shadows": True},
        {"config": "m.json"},
        {"max_download": 3},
        {"storage_options": {}},
    ],
    ids=lambda argument: next(iter(argument)),
)
def test_options_for_files_are_refused(argument: dict[str, Any]) -> None:
    with pytest.raises(
        bnstat.BnstatError, match=f"{next(iter(argument))}: not available for a model"
    ):
        bnstat.load(Network(bn=Norm()), **argument)


def test_options_for_any_model() -> None:
    network = Network(bn=Norm(), other=Norm())
    model = bnstat.load(network, layers=["bn"], eager=True)
    network.bn.moving_mean.assign([5, 6])
    np.testing.assert_array_equal(model["bn"].moving_mean, [0, 1])
    np.testing.assert_array_equal(bnstat.load(network)["bn"].moving_mean, [5, 6])
    assert bnstat.load(network, values=False).keys() == ["bn", "other"]
