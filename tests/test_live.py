"""Models in memory that only resemble Keras models, and arguments that apply to files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bnstat
from tests.builders.in_memory import Network, Norm


class Slotted:
    """An object with variables that has no `__dict__`."""

    __slots__ = ()
    variables = ()


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
    [(np.int64(1), 1), ([np.int32(1), 2], (1, 2)), ((np.int64(3),), 3), ([], ()), ("x", None)],
)
def test_settings_may_have_any_number_type(given: Any, axis: Any) -> None:
    settings = {"epsilon": np.float32(0.5), "momentum": np.float64(0.25), "axis": given}
    (layer,) = bnstat.load(Network(bn=Norm(**settings)))
    assert (layer.epsilon, layer.momentum, layer.axis) == (0.5, 0.25, axis)
    assert type(layer.epsilon) is float


OF_FILES = {"step": 3, "checkpoint": "m-3", "reader": "native", "patterns": [("gamma", "x")],
            "include_shadows": True, "config": "m.json", "max_download": 3,
            "storage_options": {}}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), OF_FILES.items())
def test_options_for_files_are_refused(name: str, value: Any) -> None:
    with pytest.raises(bnstat.BnstatError, match=f"{name}: not available for a model"):
        bnstat.load(Network(bn=Norm()), **{name: value})


def test_options_for_any_model() -> None:
    network = Network(bn=Norm(), other=Norm())
    model = bnstat.load(network, layers=["bn"], eager=True)
    network.bn.moving_mean.assign(range(8))
    np.testing.assert_array_equal(model["bn"].moving_mean, Norm().moving_mean.values)
    np.testing.assert_array_equal(bnstat.load(network)["bn"].moving_mean, range(8))
    assert bnstat.load(network, values=False).keys() == ["bn", "other"]
