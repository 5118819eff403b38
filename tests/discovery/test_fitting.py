"""Architectures from users that do not fit the weights."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import pytest

import bnstat
from bnstat.errors import BnstatError
from tests.builders.keras_models import randomised
from tests.formats.keras.saved import LIBRARIES, saved_architecture, saved_weights, sequential


@pytest.mark.parametrize("form", [".weights.h5", ".h5"])
@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (lambda of: [of.Dense(3, name="d"), of.BatchNormalization(name="b")], "c"),
        (
            lambda of: [
                of.Dense(3, name="d"),
                of.BatchNormalization(name="b"),
                of.BatchNormalization(name="c"),
                of.BatchNormalization(name="e"),
            ],
            "no variables for e ",
        ),
        (
            lambda of: [
                of.Dense(3, name="d"),
                of.BatchNormalization(name="b", scale=False),
                of.BatchNormalization(name="c"),
            ],
            "b has 3 variables, 4 in the weights",
        ),
        (
            lambda of: [
                of.Dense(5, name="d"),
                of.BatchNormalization(name="b"),
                of.BatchNormalization(name="c"),
            ],
            "d has units=5, its kernel has shape [4, 3]",
        ),
    ],
    ids=["fewer layers", "more layers", "other roles", "other shapes"],
)
def test_an_architecture_that_does_not_fit(
    tmp_path: Path, library: ModuleType, form: str, told: Any, reason: str
) -> None:
    of = library.layers
    net = sequential(
        library,
        of.Dense(3, name="d"),
        of.BatchNormalization(name="b"),
        of.BatchNormalization(name="c"),
    )
    path = saved_weights(library, net, tmp_path, form)
    config = saved_architecture(sequential(library, *told(of)), tmp_path, "to_json")
    with pytest.raises(BnstatError) as caught:
        bnstat.load(path, config=config)
    assert f"does not fit {path}" in caught.value.what
    assert reason in caught.value.what


def test_channels_of_another_number(tmp_path: Path) -> None:
    def net(channels: int) -> Any:
        norm = keras.layers.BatchNormalization(name="b")
        return randomised(keras.Sequential([keras.Input((channels,)), norm]))

    net(4).save_weights(tmp_path / "m.weights.h5")
    (tmp_path / "m.json").write_text(net(5).to_json())
    with pytest.raises(BnstatError, match=r"b has 5 channels, its variables have shape \[4\]"):
        bnstat.load(tmp_path / "m.weights.h5", config=tmp_path / "m.json")
