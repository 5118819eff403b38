"""Batch norm in modules and bare checkpoints of TensorFlow 2, against TensorFlow itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.model import ROLES
from tests.builders import named
from tests.builders.oracle import check


class Norm(tf.Module):
    """Batch norm as one writes it by hand."""

    def __init__(self, arrays: Mapping[str, Any], name: str | None = None) -> None:
        super().__init__(name)
        for role, array in arrays.items():
            setattr(self, role, tf.Variable(array, name=role, trainable=role in ROLES[:2]))


class Average(tf.Module):
    """Sonnet 2's moving average: the value, its biased sum and its count."""

    def __init__(self, array: Any) -> None:
        super().__init__()
        self.average = tf.Variable(array, name="average")
        self._hidden = tf.Variable(array * 0.5, name="hidden")
        self._counter = tf.Variable(3, name="counter")


class SonnetNorm(tf.Module):
    """Sonnet 2's batch norm."""

    def __init__(self, arrays: Mapping[str, Any], name: str) -> None:
        super().__init__(name)
        with self.name_scope:
            self.scale = tf.Variable(arrays["gamma"], name="scale")
            self.offset = tf.Variable(arrays["beta"], name="offset")
        self.moving_mean = Average(arrays["moving_mean"])
        self.moving_variance = Average(arrays["moving_variance"])


class Net(tf.Module):
    """Anything that has parts."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def saved(folder: Path, net: Any) -> list[tuple[Path, Path]]:
    """The module saved in several ways: what to load, and the bundle's prefix."""
    tf.train.Checkpoint(net).write(str(folder / "root"))
    tf.train.Checkpoint(net=net).write(str(folder / "child"))
    tf.saved_model.save(net, str(folder / "saved"))
    return [
        (folder / "root", folder / "root"),
        (folder / "child", folder / "child"),
        (folder / "saved", folder / "saved/variables/variables"),
    ]


def test_modules(tmp_path: Path) -> None:
    first, second = named.layer(1), named.layer(2, roles=ROLES[2:])
    net = Net(block=Net(norm=Norm(first)), parts=[Norm(second)])
    for path, prefix in saved(tmp_path, net):
        model = bnstat.load(path)
        start = "net/" if path.name == "child" else ""
        check(model, prefix, {f"{start}block/norm": first, f"{start}parts/0": second})
        assert {layer.evidence for layer in model} == {"object-graph"}


def test_paths_are_spelt_as_their_author_wrote_them(tmp_path: Path) -> None:
    arrays = named.layer(1)
    net = Net(norms={"conv/1.x": Norm(arrays)})
    tf.train.Checkpoint(net).write(str(tmp_path / "m"))
    check(bnstat.load(tmp_path / "m"), tmp_path / "m", {"norms/conv/1.x": arrays})


def test_sonnet(tmp_path: Path) -> None:
    first, second = named.layer(1), named.layer(2)
    for arrays in (first, second):
        for role in ROLES[2:]:
            arrays[role] = arrays[role].reshape(1, 1, 1, 4)
    net = Net(bn1=SonnetNorm(first, "batch_norm"), bn2=SonnetNorm(second, "batch_norm_1"))
    for path, prefix in saved(tmp_path, net):
        start = "net/" if path.name == "child" else ""
        check(bnstat.load(path), prefix, {f"{start}bn1": first, f"{start}bn2": second})


def test_a_cycle_and_a_layer_that_two_own(tmp_path: Path) -> None:
    arrays = named.layer(1)
    net = Net(left=Net(), right=Net())
    net.left.norm = net.right.norm = Norm(arrays)
    net.left.back = net
    tf.train.Checkpoint(net).write(str(tmp_path / "m"))
    check(bnstat.load(tmp_path / "m"), tmp_path / "m", {"left/norm": arrays})


@pytest.mark.parametrize(
    "labels",
    [
        ("gamma", "beta", "moving_mean", "moving_variance"),
        ("scale", "offset", "moving_mean", "moving_var"),
        ("scale", "shift", "pop_mean", "pop_variance"),
        ("weight", "bias", "running_mean", "running_var"),
    ],
)
def test_modules_in_memory_use_the_naming_schemes(labels: tuple[str, ...]) -> None:
    arrays = named.layer(1)
    module = Norm({label: arrays[role] for label, role in zip(labels, ROLES, strict=True)})
    (layer,) = bnstat.load(module)
    for role, array in arrays.items():
        np.testing.assert_array_equal(layer.array(role), array)
