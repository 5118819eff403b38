"""Models built by TensorFlow 1, and graphs made by hand, for the tests of graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.training import moving_averages

from bnstat.discovery.graphs.norms import from_graphs
from bnstat.discovery.merge import Sighting
from bnstat.formats.contents import Contents, Reading
from bnstat.formats.locate import locate
from bnstat.formats.protobuf.protos import message_class
from bnstat.formats.tensorflow.graph_def import graph_of
from bnstat.model import ROLES, Source

v1 = tf.compat.v1
CHANNELS = 5

Save = Callable[..., Path]
"""The fixture `saved`."""

Op = tuple[str, str, Sequence[str], dict[str, Any]]
"""Name, op, inputs, attributes."""


def open_model(path: Path) -> Contents:
    return locate(str(path)).default.open(Source(str(path), ""), Reading())


def sightings(path: Path) -> list[Sighting]:
    return from_graphs(open_model(path))


def names(path: Path) -> list[dict[str, str]]:
    """Role -> the variable's name, for every layer that the graphs of a model show."""
    contents = open_model(path)
    return [
        {role: contents.name_of(key) for role, key in sighting.roles.items()}
        for sighting in from_graphs(contents)
    ]


def variable(
    name: str, dtype: Any = "float32", shape: Sequence[int] = (CHANNELS,), use_resource: bool = True
) -> Any:
    return v1.get_variable(name, shape, dtype, v1.ones_initializer(), use_resource=use_resource)


def four(scope: str, *args: Any, **options: Any) -> list[Any]:
    """The variables of a layer, with the options of `variable`."""
    with v1.variable_scope(scope):
        return [variable(role, *args, **options) for role in ROLES]


def layer(scope: str, *without: str) -> dict[str, str]:
    """Return the variables that `four` creates, in the form of `names`."""
    return {role: f"{scope}/{role}" for role in ROLES if role not in without}


def assert_layer(path: Path, without: Sequence[str] = (), **settings: Any) -> None:
    """Check the variables and the settings of the only layer, `bn`, in the graphs of a model."""
    assert names(path) == [layer("bn", *without)]
    (sighting,) = sightings(path)
    assert {setting: getattr(sighting, setting) for setting in settings} == settings


def normalize(values: Sequence[Any], x: Any = None, epsilon: float = 1e-3) -> Any:
    """Apply a layer of these variables, in the order of `four`, to `x` or to new images."""
    gamma, beta, mean, variance = values
    x = images(dtype=mean.dtype) if x is None else x
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon)


def images(*, channels_first: bool = False, dtype: Any = "float32") -> Any:
    shape = [None, CHANNELS, 4, 4] if channels_first else [None, 4, 4, CHANNELS]
    return v1.placeholder(dtype, shape, "x")


def by_hand(*nodes: Op) -> list[Sighting]:
    """Return the layers in a graph of ops that TensorFlow itself does not write."""
    return sightings_of(make_graph(nodes))


def make_graph(nodes: Sequence[Op]) -> Any:
    graph_def = message_class("GraphDef")()
    for name, op, inputs, attributes in nodes:
        node = graph_def.node.add(name=name, op=op, input=inputs)
        for attribute, value in attributes.items():
            kind = {float: "f", bool: "b", int: "i", str: "s"}[type(value)]
            setattr(node.attr[attribute], kind, value.encode() if kind == "s" else value)
    return graph_def


def sightings_of(graph_def: Any) -> list[Sighting]:
    graph = graph_of(graph_def, {node.name for node in graph_def.node})
    return from_graphs(Contents(Source("", ""), {}, graphs=lambda: [graph]))


def stored(scope: str) -> list[Op]:
    return [(f"{scope}/{role}", "VariableV2", [], {}) for role in ROLES]


def moving_average(target: Any, value: Any, momentum: float) -> Any:
    return moving_averages.assign_moving_average(target, value, momentum, zero_debias=False)


def keras_average(target: Any, value: Any, momentum: float) -> Any:
    """Update as Keras 2 does: the rate is computed in Python."""
    return target.assign_sub((target - value) * tf.cast(1.0 - momentum, target.dtype))


def keras_3_average(target: Any, value: Any, momentum: float) -> Any:
    return target.assign(target * momentum + value * (1.0 - momentum))
