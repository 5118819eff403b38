"""The object graph of a TensorFlow 2 checkpoint, parsed and searched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import bnstat
from bnstat.discovery import discover
from bnstat.errors import DamagedError
from bnstat.formats.contents import Node, Objects, Reading
from bnstat.formats.locate import locate
from bnstat.formats.protobuf.wire import field
from bnstat.formats.tensorflow.object_graph import (
    KEY,
    VALUE,
    BestNames,
    best_names,
    path_name,
    read_nodes,
)
from bnstat.model import ROLES, Source
from tests.builders.effort import bounded
from tests.builders.tables import varint


def _message(folder: Path, root: tf.Module) -> bytes:
    tf.train.Checkpoint(root).write(str(folder / "m"))
    return bytes(tf.train.load_checkpoint(str(folder / "m")).get_tensor(KEY))


def test_nodes(tmp_path: Path) -> None:
    root, part = tf.Module(), tf.Module()
    root.part = root.again = part
    part.weight = tf.Variable([1.0], name="scope/weight")
    part.back = root
    nodes = read_nodes(_message(tmp_path, root), "m")
    assert nodes[0].children["part"] == nodes[0].children["again"]
    node = nodes[nodes[0].children["part"]]
    assert node.children["back"] == 0
    variable = nodes[node.children["weight"]]
    reader = tf.train.load_checkpoint(str(tmp_path / "m"))
    assert variable.key in reader.get_variable_to_shape_map()
    assert variable.full_name == "scope/weight"
    assert node.key is None


@pytest.mark.parametrize("path", ["a/b", "conv/1.x", ".", "..", "a.Sb", ".S", "/", "a//b."])
def test_path_names_undo_tensorflows_escapes(path: str) -> None:
    from tensorflow.python.trackable.trackable_utils import escape_local_name

    assert path_name(f"{escape_local_name(path)}/x{VALUE}") == f"{path}/x"


def test_best_names() -> None:
    variables = {"a/gamma": "net/bn/gamma", "b/x": "Variable", "c/x": "Variable", "d/x": ""}
    exported = {"variables/0": "bn/gamma", "_all_variables/3": "bn/gamma"}
    names = {**variables, **exported, "_all_variables/4": "seed"}
    nodes = [Node({}, f"{key}{VALUE}", name) for key, name in names.items()]
    expected = {**names, "b/x": "b/x", "c/x": "c/x", "d/x": "d/x"}
    del expected["_all_variables/3"]
    assert best_names(nodes) == {f"{key}{VALUE}": name for key, name in expected.items()}


LABELS = ["bn", "moving_variance", "moving_mean", "average", "a" * 130, "b" * 255, "ä", ""]
NAMES = ["", "x", "bn/gamma", "net/bn/moving_variance", "w" * 200, "a.b", "net/bn/var", "é/gamma"]
ENDINGS = ("/moving_variance", "/var", "/gamma")


def child(label: str, index: int, swapped: bool = False) -> bytes:
    number = b"\x08" + varint(index) if index else b""
    name = field(2, label.encode())
    return field(1, name + number if swapped else number + name)


def attribute(full_name: str, key: str, slot: bytes = b"") -> bytes:
    name = field(1, b"VARIABLE_VALUE")
    full = field(2, full_name.encode()) if full_name else b""
    return field(2, name + full + field(3, (key + VALUE).encode()) + slot)


@st.composite
def graphs(draw: st.DrawFn) -> bytes:
    """A graph like TensorFlow's, with some parts that it never writes."""
    count = draw(st.integers(1, 12))
    nodes = []
    for number in range(count):
        node = b""
        for label in draw(st.lists(st.sampled_from(LABELS), max_size=4, unique=True)):
            node += child(label, draw(st.integers(0, count - 1)), draw(st.booleans()))
        if draw(st.booleans()):
            stem = draw(st.sampled_from(["k/gamma", "v.S1", "_all_variables/7", "q" * 150]))
            name = draw(st.sampled_from(NAMES))
            stored = attribute(name, f"{number}/{stem}", draw(st.sampled_from([b"", b"\x20\x01"])))
            node = stored + node if draw(st.booleans()) else node + stored
        rest = [b"", b"\x2a\x02\x08\x01", b"\x2a\x00", field(3, b"\x08\x01")]
        node += draw(st.sampled_from(rest))
        nodes.append(field(1, node))
    return b"".join(nodes)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(graphs())
def test_a_search_finds_the_same_as_parsing_everything(message: bytes) -> None:
    graph = read_nodes(message, "m")
    all_nodes = Objects(list(graph))
    for index, node in enumerate(all_nodes):
        below = dict(graph.branches(index))
        assert below.items() <= node.children.items()
        assert dict(all_nodes.branches(index)).items() <= below.items()
        for label in LABELS:
            assert graph.has_child(index, label) == (label in node.children)
    keys = {node.key for node in graph.ending_with(ENDINGS)}
    for node in all_nodes:
        path = (node.key or "").removesuffix(VALUE)
        if node.key and (node.full_name.endswith(ENDINGS) or path.endswith(ENDINGS)):
            assert node.key in keys
    names = BestNames(graph)
    expected = best_names(all_nodes)
    names_found = names.ending_with(ENDINGS)
    for key, name in expected.items():
        if name.endswith(ENDINGS):
            assert names_found[key] == name
    assert {key: names.get(key, "") for key in expected} == expected
    assert dict(BestNames(graph)) == expected


@pytest.mark.parametrize(
    "message",
    [
        field(1, child("x", 1)),
        field(1, child("moving_variance", 0, swapped=True) + child("x", 9)),
        field(1, b"\x0a\x7f\x08\x00"),
        # The index of a variable, and again as one that does not exist
        field(1, field(1, b"\x08\x01\x08\x09" + field(2, b"x"))) + field(1, attribute("n", "k")),
        field(1, b"\x0b\x00"),
        b"\x0a\x04\x0a\x02\x08\x05",
        b"\x0a\x0d\x0a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        *(b"\x0a", b"\x0a\x85", b"\x08\x01", b"\x0a\x05", b"\xff\xff"),
    ],
)
def test_damage_is_noticed_at_once(message: bytes) -> None:
    with pytest.raises(DamagedError):
        read_nodes(message, "m")


def test_names_that_are_not_text() -> None:
    bad = field(2, field(1, b"V") + field(2, b"\xff\xfe/gamma") + field(3, b"k" + VALUE.encode()))
    graph = read_nodes(field(1, bad), "m")
    with pytest.raises(DamagedError, match="UTF-8"):
        list(graph.ending_with(["/gamma"]))


def module(*names: str) -> tf.Module:
    """An object with variables of these full names; their labels say nothing."""
    made = tf.Module()
    for number, name in enumerate(names):
        setattr(made, f"v{number}", tf.Variable([1.0, 2.0], name=name))
    return made


def test_discovery_by_search_and_by_parsing_everything(tmp_path: Path) -> None:
    root = tf.Module()
    root.keras = module(*(f"net/bn_1/{role}" for role in ROLES))
    for role, variable in zip(ROLES, root.keras.variables, strict=True):
        setattr(root.keras, role, variable)
    root.torch = module("t/weight", "t/bias", "t/running_mean", "t/running_var")
    root.flax = module("f/bn/scale", "f/bn/bias", "f/bn/mean", "f/bn/var")
    root.counted = module("n/mean", "n/variance", "n/count")
    root.alone = module("net/bn_9/gamma", "net/bn_9/beta")
    shadow = "/ExponentialMovingAverage"
    root.shadows = module(*(f"net/bn_1/{role}{shadow}" for role in ROLES))
    averages = f"old/bn/moving_mean{shadow}", f"old/bn/moving_variance{shadow}_1"
    root.averages = module(*averages, "old/bn/gamma")
    root.paths = {"moving_mean": tf.Variable([1.0]), "moving_variance": tf.Variable([1.0])}
    root.others = [module("k/kernel", "k/bias") for _ in range(3)]
    tf.train.Checkpoint(root=root).write(str(tmp_path / "m"))

    def found(searched: bool, shadows: bool) -> list[object]:
        contents = locate(str(tmp_path / "m")).default.open(Source("m", ""), Reading())
        if not searched:
            names, objects = dict(contents.names), Objects(list(contents.objects))
            contents = replace(contents, names=names, objects=objects, search=None, configured=None)
        model = discover(contents, include_shadows=shadows)
        return [
            (layer.name, layer.evidence, layer.notes, dict(layer.variables))
            for layer in (*model.layers, *model.incomplete)
        ] + [model.notes]

    for shadows in (False, True):
        assert found(True, shadows) == found(False, shadows)
        assert len(found(True, shadows)) > 6
    names = [layer.name for layer in bnstat.load(tmp_path / "m")]
    assert {"net/bn_1", "t", "f/bn", "old/bn"} <= set(names)


def test_the_nodes_are_a_sequence() -> None:
    graph = read_nodes(field(1, child("x", 1)) + field(1, attribute("n/gamma", "k")), "m")
    assert len(graph) == 2
    assert graph[0] == Node({"x": 1}, None, "")
    assert graph[-1] == Node({}, f"k{VALUE}", "n/gamma")
    assert list(graph.ending_with(())) == []
    assert list(graph.ending_with(["/gamma"])) == [graph[1]]
    assert list(read_nodes(b"", "m")) == []


def test_a_search_for_many_names_takes_linear_time() -> None:
    names = [f"net/bn_{number}/gamma" for number in range(40_000)]
    nodes = [Node({}, f"{name}/.ATTRIBUTES/VARIABLE_VALUE", name) for name in names]
    with bounded(40):
        found = BestNames(Objects(nodes)).ending_with(set(names))
    assert len(found) == len(names)
