"""Graphs, functions and constants in the common form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from bnstat.errors import BnstatError, DamagedError, UnsupportedError
from bnstat.formats.contents import Graph
from bnstat.formats.protobuf.protos import message_class
from bnstat.formats.tensorflow.graph_def import decode_tensor, function_graphs, graph_of
from tests.builders.effort import bounded
from tests.builders.oracle import same_bits

Node = tuple[str, str, Sequence[str]] | tuple[str, str, Sequence[str], Mapping[str, Any]]
"""Name, op, inputs and optional attributes, such as the names of functions."""


def add_nodes(nodes: Any, given: Sequence[Node]) -> None:
    for name, op, inputs, *attributes in given:
        node = nodes.add(name=name, op=op, input=inputs)
        for key, value in attributes[0].items() if attributes else ():
            attribute = node.attr[key]
            if isinstance(value, bool | float | bytes):
                setattr(attribute, {bool: "b", float: "f", bytes: "s"}[type(value)], value)
            elif isinstance(value, str):
                attribute.func.name = value
            elif isinstance(value, list):
                for name in value:
                    attribute.list.func.add(name=name)
            else:
                attribute.tensor.MergeFrom(value)


def graph_def(*nodes: Node) -> Any:
    message = message_class("GraphDef")()
    add_nodes(message.node, nodes)
    return message


def add_function(
    graph: Any, name: str, arguments: Sequence[str], results: Mapping[str, str], *nodes: Node
) -> None:
    signature = {
        "name": name,
        "input_arg": [{"name": argument} for argument in arguments],
        "output_arg": [{"name": result} for result in results],
    }
    function = graph.library.function.add(signature=signature, ret=results)
    add_nodes(function.node_def, nodes)


def proto(sizes: Sequence[int], dtype: int = 1, **fields: Any) -> Any:
    message = message_class("TensorProto")(dtype=dtype, **fields)
    for size in sizes:
        message.tensor_shape.dim.add(size=size)
    return message


def strings(*values: bytes) -> Any:
    return proto([], 7, string_val=values)


def inputs(graph: Graph) -> dict[str, list[str]]:
    return {name: list(op.inputs) for name, op in graph.ops.items()}


# Top-level graphs


def test_ops_in_stored_order_without_control_inputs() -> None:
    nodes = ("b", "Add", ["a", "s:1", "^a"]), ("a", "Const", []), ("s", "Switch", ["a"])
    graph = graph_of(graph_def(*nodes), ())
    assert list(inputs(graph).items()) == [("b", ["a", "s:1"]), ("a", []), ("s", ["a"])]
    assert [op.type for op in graph.ops.values()] == ["Add", "Const", "Switch"]


@pytest.mark.parametrize("value", [1e-3, 1.1e-5, 1e-8, 0.1, 16777217.0])
def test_floats_in_the_fewest_digits_of_float32(value: float) -> None:
    attributes = {"epsilon": value, "is_training": False, "data_format": b"NCHW"}
    op = graph_of(graph_def(("n", "FusedBatchNorm", [], attributes)), ()).ops["n"]
    assert op.attribute("epsilon") == float(str(np.float32(value)))
    assert op.attribute("is_training") is False
    assert op.attribute("data_format") == "NCHW"
    assert op.attribute("left_out") is None


def test_variables_by_their_names() -> None:
    message = graph_def(
        ("bn/gamma", "VariableV2", []),
        ("handle", "VarHandleOp", [], {"shared_name": b"bn/beta"}),
        ("bn/mean/part_0", "VariableV2", []),
        ("bn/mean/part_1", "VariableV2", []),
        ("local", "VariableV2", []),
        ("bn/no_variable", "Const", []),
    )
    graph = graph_of(message, {"bn/gamma", "bn/beta", "bn/mean", "bn/no_variable"})
    parts = {"bn/mean/part_0": "bn/mean", "bn/mean/part_1": "bn/mean"}
    assert graph.variables == {"bn/gamma": "bn/gamma", "handle": "bn/beta", **parts}


@pytest.mark.parametrize(("op", "before"), [("SaveV2", ["names", "slices"]), ("Save", ["names"])])
def test_variables_by_the_names_that_the_saver_gives(op: str, before: list[str]) -> None:
    message = graph_def(
        ("a", "VarHandleOp", []),
        ("b", "VariableV2", []),
        ("a/read", "ReadVariableOp", ["a"]),
        ("names", "Const", [], {"value": strings(b"stored/a", b"stored/b")}),
        ("save", op, ["prefix", *before, "a/read", "b"]),
    )
    graph = graph_of(message, {"stored/a", "stored/b"})
    assert graph.variables == {"a": "stored/a", "b": "stored/b"}


def test_constants() -> None:
    tensor = proto([], float_val=[0.5])
    message = graph_def(
        ("c", "Const", [], {"value": tensor}),
        ("large", "Const", [], {"value": proto([1 << 40], float_val=[0.5])}),
        ("empty", "Const", []),
        ("text", "Const", [], {"value": strings(b"a")}),
        ("other", "Identity", ["c"], {"value": tensor}),
    )
    graph = graph_of(message, ())
    assert same_bits(graph.constant("c"), np.array(0.5, np.float32))
    for name in ("large", "empty", "text", "other", "missing"):
        assert graph.constant(name) is None


# Calls


def test_call_is_replaced_by_its_body() -> None:
    message = graph_def(
        ("x", "Placeholder", []),
        ("call", "PartitionedCall", ["x", "v:1", "^x"], {"f": "inner"}),
        ("y", "Relu", ["call:1"]),
        ("missing", "PartitionedCall", ["x"], {"f": "gone"}),
    )
    add_function(
        message, "inner", ["a", "b"], {"first": "b", "second": "sum:z:0"},
        ("sum", "Add", ["a", "fused:batch_variance:0"]), ("fused", "FusedBatchNormV3", ["b"]),
    )  # fmt: skip
    called = {"call/sum": ["x", "call/fused:2"], "call/fused": ["v:1"]}
    assert inputs(graph_of(message, ())) == {"x": [], **called, "y": ["call/sum"], "missing": ["x"]}


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("TRTEngineOp", {"segment_func": "part", "segment_funcdef_name": b""}),
        ("TRTEngineOp", {"segment_funcdef_name": b"part", "segment_func": ""}),
        ("TRTEngineOp", {"segment_funcdef_name": b"part"}),
        ("BatchFunction", {"f": "part"}),
        ("XlaLaunch", {"function": "part"}),
    ],
)
def test_other_ops_that_call_a_function(op: str, attributes: Mapping[str, Any]) -> None:
    message = graph_def(("call", op, ["x"], attributes), ("y", "Softmax", ["call"]))
    add_function(message, "part", ["a"], {"r": "relu:activations:0"}, ("relu", "Relu", ["a"]))
    assert inputs(graph_of(message, ())) == {"call/relu": ["x"], "y": ["call/relu"]}


def test_branches_become_a_choice() -> None:
    attributes = {"then_branch": "yes", "else_branch": "no"}
    message = graph_def(("if", "If", ["p", "x"], attributes), ("if/Identity", "Identity", ["if"]))
    for name, op in (("yes", "Exp"), ("no", "Log")):
        add_function(message, name, ["a"], {"out": "Identity:output:0"},
                     ("op", op, ["a"]), ("Identity", "Identity", ["op:y:0"]))  # fmt: skip
    graph = graph_of(message, ())
    (choice,) = (op for op in graph.ops.values() if op.type == "Merge")
    assert inputs(graph)["if/Identity"] == [choice.name]
    results = [graph.ops[graph.ops[tensor].inputs[0]] for tensor in choice.inputs]
    assert [(op.type, *op.inputs) for op in results] == [("Exp", "x"), ("Log", "x")]


def test_case_and_while() -> None:
    message = graph_def(
        ("case", "StatelessCase", ["i", "x"], {"branches": ["one", "two"]}),
        ("loop", "While", ["case"], {"cond": "one", "body": "two"}),
        ("y", "Identity", ["loop"]),
    )
    add_function(message, "one", ["a"], {"out": "op"}, ("op", "Exp", ["a"]))
    add_function(message, "two", ["a"], {"out": "op"}, ("op", "Log", ["a"]))
    graph = graph_of(message, ())
    (end,) = graph.ops["y"].inputs
    body, start = graph.ops[end].inputs
    assert (graph.ops[body].type, *graph.ops[body].inputs) == ("Log", start)
    assert {graph.ops[tensor].type for tensor in graph.ops[start].inputs} == {"Exp", "Log"}


def test_functions_that_call_themselves_stay_calls() -> None:
    message = graph_def(("call", "PartitionedCall", ["x"], {"f": "one"}))
    for name, other in (("one", "two"), ("two", "one")):
        call = ("c", "PartitionedCall", ["a"], {"f": other})
        add_function(message, name, ["a"], {"out": "c:output:0"}, call)
    graph = graph_of(message, ())
    assert inputs(graph) == {"call/c/c": ["x"]}
    meta_graph = message_class("MetaGraphDef")()
    add_function(meta_graph.graph_def, "f", ["w"], {}, ("c", "PartitionedCall", ["w"], {"f": "f"}))
    assert [each.name for each in function_graphs(meta_graph, {"f": ["k"]})] == ["f"]


def test_tensors_that_are_handed_round_for_ever() -> None:
    message = graph_def(
        ("a", "PartitionedCall", ["b"], {"f": "same"}),
        ("b", "PartitionedCall", ["a"], {"f": "same"}),
        ("y", "Identity", ["a"]),
    )
    add_function(message, "same", ["x"], {"out": "x"})
    assert inputs(graph_of(message, ()))["y"] == [""]


def test_library_that_calls_for_billions() -> None:
    message = graph_def(("call", "PartitionedCall", [], {"f": "f0"}))
    for level in range(40):
        calls = [(f"c{i}", "PartitionedCall", [], {"f": f"f{level + 1}"}) for i in range(4)]
        add_function(message, f"f{level}", [], {}, *calls)
    add_function(message, "f40", [], {}, ("op", "NoOp", []))
    with bounded():
        graph = graph_of(message, ())
    assert len(graph.ops) < 1_000_000


# Functions of a SavedModel


@pytest.fixture
def meta_graph() -> Any:
    """`model` calls `layer_1`, then `layer_2`; `signature` calls `model`."""
    message = message_class("MetaGraphDef")()
    graph = message.graph_def
    add_function(
        graph, "layer", ["x", "w"], {"out": "mul:z:0"},
        ("read", "ReadVariableOp", ["w"]), ("mul", "Mul", ["x", "read:value:0"]),
    )  # fmt: skip
    add_function(
        graph, "model", ["x", "w1", "w2"], {"out": "two:output:0"},
        ("one", "StatefulPartitionedCall", ["x", "w1"], {"f": "layer"}),
        ("two", "StatefulPartitionedCall", ["one:output:0", "w2"], {"f": "layer"}),
    )  # fmt: skip
    add_function(
        graph, "signature", ["input", "unknown", "unknown_0"], {"out": "Identity:output:0"},
        ("call", "StatefulPartitionedCall", ["input", "unknown", "unknown_0"], {"f": "model"}),
        ("Identity", "Identity", ["call:output:0", "^NoOp"]), ("NoOp", "NoOp", ["^call"]),
    )  # fmt: skip
    add_nodes(graph.node, [("serve", "StatefulPartitionedCall", [], {"f": "signature"})])
    message.signature_def["serving_default"].outputs["out"].name = "serve:0"
    return message


def test_function_with_its_variables_and_calls(meta_graph: Any) -> None:
    graph = next(function_graphs(meta_graph, {"signature": ["k1", "k2"]}))
    assert graph.name == "model"
    first = {"one/read": ["w1"], "one/mul": ["x", "one/read"]}
    assert inputs(graph) == {**first, "two/read": ["w2"], "two/mul": ["one/mul", "two/read"]}


@pytest.mark.parametrize(
    ("captured", "expected"),
    [
        ({"layer": ["k2"], "model": ["k1", "k2"], "gone": ["k1"]}, [("model", "k1 k2")]),
        ({"layer": ["k3"], "model": ["k1", "k2"]}, [("model", "k1 k2"), ("layer", "k3")]),
        ({"layer": [None], "model": [None, "k2"]}, [("model", "k2")]),
    ],
)
def test_functions_called_with_the_same_variables_or_none_are_left_out(
    meta_graph: Any, captured: Any, expected: list[tuple[str, str]]
) -> None:
    graphs = function_graphs(meta_graph, {**captured, "signature": captured["model"]})
    assert [(graph.name, " ".join(graph.variables.values())) for graph in graphs] == expected


def test_small_functions_before_large_ones_but_the_largest_first(meta_graph: Any) -> None:
    read = ("read", "ReadVariableOp", ["w1"])
    add_function(meta_graph.graph_def, "whole", ["w1", "w2", "w3"], {}, read)
    captured = {"model": ["k1", "k2"], "layer": ["k4"], "whole": ["k1", "k2", "k3"]}

    def names(**signature: Any) -> list[str]:
        return [graph.name for graph in function_graphs(meta_graph, {**captured, **signature})]

    assert names(signature=["k1", "k2"]) == ["model", "whole", "layer"]
    meta_graph.signature_def.clear()
    assert names() == ["whole", "layer", "model"]


def test_many_callers_of_one_large_function() -> None:
    message = message_class("MetaGraphDef")()
    captured = {}
    body = [(f"n{i}", "Identity", ["w"]) for i in range(1000)]
    add_function(message.graph_def, "large", ["w"], {}, *body)
    for index in range(2000):
        captured[f"f{index}"] = [f"k{index}"]
        call = ("c", "PartitionedCall", ["w"], {"f": "large"})
        add_function(message.graph_def, f"f{index}", ["w"], {}, call, ("y", "Exp", ["w"]))

    with bounded():
        assert sum(len(graph.ops) for graph in function_graphs(message, captured)) < 1_000_000


tf = pytest.importorskip("tensorflow")


def ours(proto: Any) -> Any:
    return message_class("TensorProto").FromString(proto.SerializeToString())


DTYPES = ["float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "uint16",
          "int32", "uint32", "int64", "uint64", "bool"]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (0,), (2, 0)])
def test_arrays(dtype: str, shape: tuple[int, ...]) -> None:
    kind = tf.as_dtype(dtype).as_numpy_dtype
    values = np.random.default_rng(1).integers(0, 3, shape).astype(kind)
    odd = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32)
    for array in (values, np.ones(shape, kind), odd):
        proto = tf.make_tensor_proto(array)
        expected = tf.make_ndarray(proto)
        assert same_bits(decode_tensor(ours(proto), "here"), expected)


@pytest.mark.parametrize(
    ("dtype", "field", "value"),
    [("float32", "float_val", 1.1e-5), ("float64", "double_val", 1.1e-5),
     ("float16", "half_val", 0x3C01), ("bfloat16", "half_val", 0x3F81), ("int32", "int_val", -2),
     ("int64", "int64_val", -(1 << 40)), ("bool", "bool_val", True)],
)  # fmt: skip
@pytest.mark.parametrize("listed", [0, 1, 2])
def test_the_last_value_is_repeated(dtype: str, field: str, value: Any, listed: int) -> None:
    kind = tf.as_dtype(dtype)
    proto = tf.make_tensor_proto(np.zeros([0], kind.as_numpy_dtype))
    proto.tensor_shape.dim[0].size = 3
    getattr(proto, field).extend([value] * listed)
    assert same_bits(decode_tensor(ours(proto), "here"), tf.make_ndarray(proto))


@pytest.mark.parametrize(
    ("damaged", "error"),
    [
        (proto([3], tensor_content=b"\0" * 8), DamagedError),
        (proto([1], float_val=[1, 2]), DamagedError),
        (proto([-1], float_val=[1]), DamagedError),
        (proto([1 << 62, 1 << 62]), DamagedError),
        (proto([0, 1 << 32, 1 << 32]), DamagedError),
        (proto([1 << 40], float_val=[1]), DamagedError),
        (proto([1 << 33], tensor_content=b"\0" * 4), DamagedError),
        (proto([1] * 100, float_val=[1]), DamagedError),
        (proto([], tensor_shape={"unknown_rank": True}, float_val=[1]), DamagedError),
        *((proto([1], dtype=dtype), UnsupportedError) for dtype in (7, 20, 21, 99)),
    ],
)
def test_damaged_or_unsupported(damaged: Any, error: type[BnstatError]) -> None:
    with pytest.raises(error, match="here: "):
        decode_tensor(damaged, "here")
