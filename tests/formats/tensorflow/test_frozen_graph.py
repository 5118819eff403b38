"""Graphs in files of their own."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, DamagedError, UnsupportedError
from bnstat.formats.contents import Contents, Graph
from bnstat.formats.protobuf.protos import message_class
from bnstat.formats.tensorflow.frozen_graph import contents_of_graph, matches, open_contents
from bnstat.model import ROLES, Source
from bnstat.storage.local import LocalFile
from tests.builders.effort import bounded
from tests.builders.memory import MemoryFile
from tests.builders.oracle import same_bits
from tests.formats.tensorflow.test_graph_def import add_function, add_nodes, graph_def, proto


def tensor(array: Any, **fields: Any) -> Any:
    codes = {"float32": 1, "float64": 2, "int32": 3, "float16": 19}
    stored = fields or {"tensor_content": array.tobytes()}
    return proto(array.shape, codes[array.dtype.name], **stored)


def constants(**values: Any) -> Any:
    """A graph with a placeholder, and constants by name."""
    nodes = ((name, "Const", [], {"value": value}) for name, value in values.items())
    return graph_def(("x", "Placeholder", []), *nodes)


def write(path: Path, message: Any) -> Path:
    path.write_bytes(message if isinstance(message, bytes) else message.SerializeToString())
    return path


def opened(path: Path) -> Contents:
    return open_contents(LocalFile(path), Source(str(path), ""))


def graphs_of(contents: Contents) -> list[Graph]:
    assert contents.graphs is not None
    return [*contents.graphs()]


@pytest.fixture
def pb(tmp_path: Path) -> Path:
    return tmp_path / "graph.pb"


def test_float_constants_are_the_variables(pb: Path) -> None:
    values = {"a": np.float32([1, 2, 3]), "b": np.float64([[1, 2]]), "c": np.float16([1.5])}
    others = {
        "scalar": tensor(np.float32(1)),
        "indices": tensor(np.int32([1])),
        "empty": tensor(np.zeros(0, np.float32), float_val=[]),
    }
    message = constants(**{name: tensor(value) for name, value in values.items()}, **others)
    contents = opened(write(pb, message))
    assert contents.source.format == "frozen-graph"
    assert contents.variables.keys() == values.keys()
    for name, value in values.items():
        assert same_bits(contents.variables[name].read(), value)
    (graph,) = graphs_of(contents)
    assert graph.variables == {name: name for name in values}
    assert list(graph.ops) == ["x", *values, *others]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_long_constants_are_read_when_requested(wrapped: bool, listed: bool) -> None:
    large = np.random.default_rng(0).random((300, 1000)).astype(np.float32)
    small = np.arange(2000, dtype=np.float32)
    fields = {"float_val": large.ravel().tolist()} if listed else {}
    last = tensor(np.float32([7]))
    message = constants(large=tensor(large, **fields), small=tensor(small), last=last)
    if wrapped:
        outer = message_class("MetaGraphDef")()
        outer.meta_info_def.tensorflow_version = "1.15"
        outer.graph_def.MergeFrom(message)
        message = outer
    file = MemoryFile(message.SerializeToString())
    assert matches(file)
    contents = open_contents(file, Source("", ""))
    assert list(contents.variables) == ["large", "small", "last"]
    assert sum(length for _, length in file.reads) < 400_000 < file.size
    file.reads.clear()
    assert same_bits(contents.variables["small"].read(), small)
    assert sum(length for _, length in file.reads) < 20_000
    assert same_bits(contents.variables["large"].read(), large)
    (graph,) = graphs_of(contents)
    assert same_bits(graph.constant("small"), small)
    assert graph.constant("large") is None


def test_function_library_is_inlined(pb: Path) -> None:
    large = np.arange(5000, dtype=np.float32)
    message = graph_def(("call", "PartitionedCall", [], {"f": "f"}))
    add_function(
        message, "f", [], {},
        ("mean", "Const", [], {"value": tensor(np.float32([1, 2]))}),
        ("large", "Const", [], {"value": tensor(large)}),
    )  # fmt: skip
    in_memory = contents_of_graph(message, Source("here", "saved-model"), ["known"])
    assert (in_memory.source.format, in_memory.notes) == ("saved-model", ["known"])
    for contents in (in_memory, opened(write(pb, message))):
        assert contents.variables["call/mean"].read().tolist() == [1, 2]
        assert contents.variables["call/large"].read().tobytes() == large.tobytes()
        assert not contents.variables["call/large"].extents()


def test_notes(pb: Path) -> None:
    shifts = ("a/batchnorm/sub", "b/batchnorm/sub/_3__cf__3")
    message = constants(**dict.fromkeys(("conv_bn_offset", *shifts), tensor(np.float32([1]))))
    for name in ("a", "b"):
        message.node.add(name=name, op="VariableV2")
    assert opened(write(pb, message)).notes == [
        "batch norm was folded into 1 convolution: nothing of it is left to show",
        "2 batch-norm layers became a scale and a shift when constants were folded: gamma, beta "
        "and the statistics are not in this file",
        "the values of 2 variables are not in this file, but in the checkpoint that belongs to it "
        "(inspect --no-values shows names and settings)",
    ]


def test_inputs_that_are_not_in_the_file_are_noted(pb: Path) -> None:
    norm = ("norm", "FusedBatchNormV3", ["x", *"abcd"], {})
    complete = [(name, "Const", [], {"value": tensor(np.float32([1]))}) for name in "abcd"]
    placeholder = ("x", "Placeholder", [], {})
    assert not opened(write(pb, graph_def(placeholder, *complete, norm))).notes
    after = ("y", "Relu", ["norm:0", "^x"], {})
    (note,) = opened(write(pb, graph_def(placeholder, norm, after))).notes
    assert note.startswith("inputs of 1 operation are not in this file")


def test_text_form(pb: Path, written: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    from google.protobuf import text_format

    binary = written / "v1_tf2.15/frozen.pb"
    message = tf.compat.v1.GraphDef.FromString(binary.read_bytes())
    text = "# a comment\n\n" + text_format.MessageToString(message)
    meta_graph = tf.compat.v1.MetaGraphDef.FromString((written / "v1_tf2.15/c.meta").read_bytes())
    contents = opened(write(pb, text.encode()))
    expected = opened(binary)
    assert list(contents.variables) == list(expected.variables)
    for name, variable in expected.variables.items():
        assert same_bits(contents.variables[name].read(), variable.read())
    contents = opened(write(pb, text_format.MessageToString(meta_graph).encode()))
    expected = opened(written / "v1_tf2.15/c.meta")
    assert contents.variables.keys() == expected.variables.keys()
    assert contents.notes == expected.notes


@pytest.mark.parametrize("text", ["node {", "node { name: 1 }", "node {" + "attr { value {" * 9999])
def test_damaged_text(pb: Path, text: str) -> None:
    with pytest.raises(DamagedError, match="cannot be parsed as text"):
        opened(write(pb, text.encode()))
    with pytest.raises(UnsupportedError, match="convert it to the binary form"):
        opened(write(pb, text.encode() * (10_000_001 // len(text) + 1)))


# Recognition


def test_recognised(written: Path) -> None:
    for name in ("v1_tf2.15/frozen.pb", "v1_tf2.15/c.meta", "tf1ckpt/tf115/v2.ckpt-7.meta"):
        assert matches(LocalFile(written / name))
    for name in ("v1_tf2.15/k/saved_model.pb", "v1_tf2.15/c.index", "k215/m.h5", "k215/m.keras",
                 "k215/sm/keras_metadata.pb", "k215/sm/fingerprint.pb", "v1_tf2.15/checkpoint",
                 "v1_tf2.15/c.data-00000-of-00001"):  # fmt: skip
        assert not matches(LocalFile(written / name))


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"\x0a\x00", b"nodes { }", b" " * 5000,
     b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff",
     b"\x0a\x05\x0a\x01\xff\x12\x00", b"\x12\x03abc", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04" * 9,
     b"\x0a\x0e\x0a\x07a.proto\x12\x03pkg",  # a FileDescriptorSet
     b"\x08\x01\x12\x04\x0a\x00\x12\x00", b"\x0b" * 100],
)  # fmt: skip
def test_not_recognised(pb: Path, data: bytes) -> None:
    file = LocalFile(write(pb, data))
    assert not matches(file)
    with pytest.raises(DamagedError):
        open_contents(file, Source("", ""))


# Damage and malice


def harmless(path: Path, data: bytes) -> None:
    """Read everything; only `BnstatError` may be raised."""
    with suppress(BnstatError):
        contents = opened(write(path, data))
        for graph in graphs_of(contents):
            for name, op in graph.ops.items():
                assert op.name == name
                list(op.inputs)
                graph.constant(name)
        for variable in contents.variables.values():
            variable.read()


def test_every_byte_changed_or_the_last(pb: Path) -> None:
    message = constants(mean=tensor(np.float32([1, 2, 3])), long=tensor(np.zeros(2000, np.float32)))
    call = ("call", "PartitionedCall", ["mean:0"], {"f": "f"})
    add_nodes(message.node, [("read", "Identity", ["mean"]), call])
    add_function(message, "f", [], {}, ("y", "NoOp", ["^x"]))
    sample: bytes = message.SerializeToString()
    content = sample.index(bytes(1000))
    with pytest.raises(DamagedError):
        opened(write(pb, sample[: content + 100]))
    generator = random.Random(0)
    for position in [*range(content), *range(content + 8000, len(sample))]:
        harmless(pb, sample[:position])
        for byte in (sample[position] ^ 1 << generator.randrange(8), 0xFF):
            harmless(pb, sample[:position] + bytes([byte]) + sample[position + 1 :])


@pytest.mark.slow
def test_more_nodes_than_any_network(pb: Path) -> None:
    node = message_class("GraphDef")()
    node.node.add(name="x", op="No")
    with bounded(), pytest.raises(UnsupportedError):
        opened(write(pb, node.SerializeToString() * 300_000))


# TensorFlow's own files


def test_batch_norm_folded_by_tensorflow(pb: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    from tensorflow.python.tools.optimize_for_inference_lib import fold_batch_norms

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [1, 4, 4, 2])
        for _ in range(2):
            x = tf.nn.conv2d(x, tf.ones([1, 1, 2, 2]), 1, "SAME")
            roles = [tf.constant([1.0, 2.0]) for _ in ROLES]
            x, _, _ = tf.compat.v1.nn.fused_batch_norm(x, *roles, is_training=False)
    notes = opened(write(pb, fold_batch_norms(graph.as_graph_def()))).notes
    assert notes == ["batch norm was folded into 2 convolutions: nothing of it is left to show"]


def test_values_as_tensorflow_reads_them(written: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    path = written / "v1_tf2.15/frozen.pb"
    expected = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    contents = opened(path)
    nodes = [node for node in expected.node if node.op == "Const"]
    arrays = {node.name: tf.make_ndarray(node.attr["value"].tensor) for node in nodes}
    floats = {name for name in arrays if arrays[name].dtype == np.float32 and arrays[name].ndim}
    assert contents.variables.keys() == floats
    for name, variable in contents.variables.items():
        assert same_bits(variable.read(), arrays[name])


def test_a_number_instead_of_a_node(tmp_path: Path) -> None:
    array = np.arange(3, dtype="f4")
    message = constants(w=tensor(array)).SerializeToString()
    variable = opened(write(tmp_path / "g.pb", message + b"\x08\x05")).variables["w"]
    (place,) = variable.extents()
    assert place.read() == array.tobytes()
    np.testing.assert_array_equal(variable.read(), array)


def test_a_graph_alone_shows_names_and_settings_without_values(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        gamma, beta, mean, variance = (
            v1.get_variable(f"bn/{role}", [3], use_resource=resource)
            for role, resource in zip(ROLES, (True, False, True, False), strict=True)
        )
        x = v1.placeholder("float32", [None, 2, 2, 3])
        v1.nn.fused_batch_norm(x, gamma, beta, mean, variance, epsilon=0.003, is_training=False)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "run/model"))
    whole = bnstat.load(tmp_path / "run/model")
    alone = tmp_path / "graph.meta"
    (tmp_path / "run/model.meta").rename(alone)
    assert not bnstat.load(alone).layers
    (layer,), (expected,) = bnstat.load(alone, values=False), whole
    assert (layer.name, layer.epsilon, layer.axis) == (expected.name, 0.003, 3)
    assert layer.variables == expected.variables
