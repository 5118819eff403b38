"""TensorFlow reads the new values from copies of graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import bnstat
from tests.builders.mended import NewValues, differing
from tests.builders.oracle import assert_computed, same_bits
from tests.mending.networks import by_key, network
from tests.mending.originals import mended

v1 = tf.compat.v1


def frozen(values: NewValues | None = None) -> Any:
    """Return the graph of the network with its variables as constants, some with given values."""
    random = np.random.default_rng(7)
    given = by_key(values or {})
    with tf.Graph().as_default() as graph, v1.Session() as session:
        network()
        for variable in v1.global_variables():
            usual = random.random(variable.shape.as_list())
            variable.load(given.get(variable.op.name, usual), session)
        return v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["y"])


def repeated(message: Any) -> Any:
    """Store each moving variance of a graph as one repeated value."""
    for node in message.node:
        tensor = node.attr["value"].tensor
        if node.name.endswith("moving_variance"):
            tensor.ClearField("tensor_content")
            tensor.float_val.append(0.5)
    return message


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("form", [lambda message: message, repeated])
def test_frozen_graphs(tmp_path: Path, form: Any, wrapped: bool) -> None:
    message = form(frozen())
    stored = v1.MetaGraphDef(graph_def=message) if wrapped else message
    (tmp_path / "m.pb").write_bytes(stored.SerializeToString())
    arrays = by_key(mended(tmp_path / "m.pb", tmp_path / "c.pb"))
    copy = type(stored).FromString((tmp_path / "c.pb").read_bytes())
    changed = copy.graph_def if wrapped else copy
    for old, new in zip(message.node, changed.node, strict=True):
        if old.name in arrays:
            assert same_bits(tf.make_ndarray(new.attr["value"].tensor), arrays.pop(old.name))
        else:
            assert old == new
    assert arrays == {}
    if form is not repeated:
        (offsets,) = differing(tmp_path / "m.pb", tmp_path / "c.pb").values()
        assert len(offsets) <= 2 * 4 * 6 * 4


def in_a_function(message: Any, engine: bytes) -> Any:
    """Return a graph as TensorRT's converter returns it: the network is a function of one op."""
    converted = v1.GraphDef()
    function = converted.library.function.add()
    function.signature.name = "TRTEngineOp_0_native_segment"
    function.signature.input_arg.add(name="x", type=1)
    function.signature.output_arg.add(name="y", type=1)
    function.ret["y"] = "y:0"
    function.node_def.extend(node for node in message.node if node.name != "x")
    converted.node.extend(node for node in message.node if node.name == "x")
    node = converted.node.add(name="TRTEngineOp_0", op="TRTEngineOp", input=["x"])
    node.attr["segment_func"].func.name = function.signature.name
    node.attr["serialized_segment"].s = engine
    return converted


def test_layers_in_a_part_for_tensorrt(tmp_path: Path) -> None:
    (tmp_path / "m.pb").write_bytes(in_a_function(frozen(), b"").SerializeToString())
    assert [layer.name for layer in bnstat.load(tmp_path / "m.pb")] == ["block1/bn", "block2/bn"]
    values = by_key(mended(tmp_path / "m.pb", tmp_path / "c.pb"))
    changed = v1.GraphDef.FromString((tmp_path / "c.pb").read_bytes()).library.function[0]
    constants = {node.name: node.attr["value"].tensor for node in changed.node_def}
    for name, array in values.items():
        assert same_bits(tf.make_ndarray(constants[name]), array)


def test_a_compiled_engine_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "m.pb").write_bytes(in_a_function(frozen(), b"ptrt").SerializeToString())
    with pytest.raises(bnstat.UnsupportedError, match="TensorRT engine, which has a compiled copy"):
        mended(tmp_path / "m.pb", tmp_path / "c.pb")
    assert not (tmp_path / "c.pb").exists()


class Frozen(tf.Module):
    """A function with constant batch norm that another function calls."""

    def __init__(self, message: Any) -> None:
        super().__init__()

        @tf.function(input_signature=[tf.TensorSpec([None, 5, 5, 3], tf.float32)])
        def inner(x: Any) -> Any:
            return tf.graph_util.import_graph_def(
                message, input_map={"x:0": x}, return_elements=["y:0"], name=""
            )[0]

        self.inner = inner

    @tf.function(input_signature=[tf.TensorSpec([None, 5, 5, 3], tf.float32)])
    def __call__(self, x: Any) -> Any:
        return self.inner(x)


def test_a_saved_model_of_constants(tmp_path: Path) -> None:
    module = Frozen(frozen())
    tf.saved_model.save(module, str(tmp_path / "sm"), signatures=module.__call__)
    assert [layer.name for layer in bnstat.load(tmp_path / "sm")] == ["block1/bn", "block2/bn"]
    values = mended(tmp_path / "sm", tmp_path / "c")
    by_scope = {f"block{number}/bn": roles for number, roles in enumerate(values.values(), 1)}
    loaded = tf.saved_model.load(str(tmp_path / "c"))
    inputs = tf.random.uniform((4, 5, 5, 3))
    (result,) = loaded.signatures["serving_default"](inputs).values()
    for outputs in (loaded(inputs), result):
        assert_computed(outputs, Frozen(frozen(by_scope))(inputs))


def test_a_saved_model_of_constants_is_recalibrated(tmp_path: Path) -> None:
    module = Frozen(frozen())
    tf.saved_model.save(module, str(tmp_path / "sm"), signatures=module.__call__)
    data = np.random.default_rng(3).random((64, 5, 5, 3), np.float32)
    result = bnstat.recalibrate(tmp_path / "sm", data, tmp_path / "c")
    assert [layer.layer for layer in result.layers] == ["block1/bn", "block2/bn"]
    assert bnstat.drift(tmp_path / "c", data).state == "healthy"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float32"])
@pytest.mark.parametrize("is_listed", [False, True])
def test_constants_of_other_types(tmp_path: Path, dtype: str, is_listed: bool) -> None:
    kind = tf.as_dtype(dtype).as_numpy_dtype
    roles = ("gamma", "beta", "moving_mean", "moving_variance")
    with tf.Graph().as_default() as graph:
        for number, role in enumerate(roles):
            tf.constant(np.linspace(number, 5, 7).astype(kind), name=f"bn/{role}")
    message = graph.as_graph_def()
    field = {"float32": "float_val", "float64": "double_val"}.get(dtype, "half_val")
    for node in message.node if is_listed else ():
        tensor = node.attr["value"].tensor
        array = np.frombuffer(tensor.tensor_content, np.uint16 if field == "half_val" else kind)
        tensor.ClearField("tensor_content")
        getattr(tensor, field).extend(array.tolist())
    (tmp_path / "m.pb").write_bytes(message.SerializeToString())
    values = mended(tmp_path / "m.pb", tmp_path / "c.pb")
    for node in v1.GraphDef.FromString((tmp_path / "c.pb").read_bytes()).node:
        tensor = node.attr["value"].tensor
        assert bool(getattr(tensor, field)) == is_listed
        stored = tf.make_ndarray(tensor)
        assert stored.tobytes() == values["bn"][node.name.rpartition("/")[2]].tobytes()


def test_graphs_in_text_form_are_not_written(tmp_path: Path) -> None:
    from google.protobuf import text_format

    message = frozen()
    (tmp_path / "m.pbtxt").write_text(text_format.MessageToString(message))
    with pytest.raises(bnstat.UnsupportedError, match=r"/m\.pbtxt: is a graph in text form"):
        mended(tmp_path / "m.pbtxt", tmp_path / "c.pbtxt")
    assert not (tmp_path / "c.pbtxt").exists()
