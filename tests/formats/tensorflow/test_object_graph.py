"""The object graph of a TensorFlow 2 checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf

from bnstat.errors import DamagedError
from bnstat.formats.contents import Node
from bnstat.formats.tensorflow.object_graph import KEY, VALUE, best_names, path_name, read_nodes


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
    found = nodes[nodes[0].children["part"]]
    assert found.children["back"] == 0
    variable = nodes[found.children["weight"]]
    reader = tf.train.load_checkpoint(str(tmp_path / "m"))
    assert variable.key in reader.get_variable_to_shape_map()
    assert variable.full_name == "scope/weight"
    assert found.key is None


@pytest.mark.parametrize(
    "message",
    [
        b"\x0a\x04\x0a\x02\x08\x05",
        b"\x0a\x0d\x0a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0a\x05",
        b"\xff\xff",
    ],
)
def test_damage(message: bytes) -> None:
    with pytest.raises(DamagedError):
        read_nodes(message, "m")


def test_an_empty_graph() -> None:
    assert list(read_nodes(b"", "m")) == []


@pytest.mark.parametrize("path", ["a/b", "conv/1.x", ".", "..", "a.Sb", ".S", "/", "a//b."])
def test_path_names_undo_tensorflows_escapes(path: str) -> None:
    from tensorflow.python.trackable.trackable_utils import escape_local_name

    assert path_name(f"{escape_local_name(path)}/x{VALUE}") == f"{path}/x"


def _nodes(*variables: tuple[str, str]) -> list[Node]:
    return [Node({}, f"{key}{VALUE}", name) for key, name in variables]


def test_best_names_are_full_names_where_those_are_unique() -> None:
    nodes = _nodes(
        ("a/gamma", "net/bn/gamma"), ("b/x", "Variable"), ("c/x", "Variable"), ("d/x", "")
    )
    assert best_names(nodes) == {
        f"a/gamma{VALUE}": "net/bn/gamma",
        f"b/x{VALUE}": "b/x",
        f"c/x{VALUE}": "c/x",
        f"d/x{VALUE}": "d/x",
    }


def test_what_export_stores_twice_is_named_once() -> None:
    nodes = _nodes(
        ("variables/0", "bn/gamma"), ("_all_variables/3", "bn/gamma"), ("_all_variables/4", "seed")
    )
    assert best_names(nodes) == {
        f"variables/0{VALUE}": "bn/gamma",
        f"_all_variables/4{VALUE}": "seed",
    }
