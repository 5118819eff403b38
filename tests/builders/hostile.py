"""SavedModels with one normalization, before which ops of any kind run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2, node_def_pb2
from tensorflow.core.framework.attr_value_pb2 import AttrValue
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

X = np.random.default_rng(0).normal(3, 2, (8, 1, 1, 3)).astype(np.float32)

INPUT = "x"


def node(name: str, op: str, *inputs: str, **attributes: Any) -> Any:
    """Return a `NodeDef`; attributes are `AttrValue`s, dtypes, shapes, plain values or lists."""
    made = node_def_pb2.NodeDef(name=name, op=op, input=inputs)
    for key, value in attributes.items():
        made.attr[key].CopyFrom(_attribute(value))
    return made


def _attribute(value: Any) -> Any:
    if isinstance(value, AttrValue):
        return value
    if isinstance(value, tf.TensorShape):
        return AttrValue(shape=value.as_proto())
    if isinstance(value, str):
        return AttrValue(func={"name": value})
    if isinstance(value, np.ndarray):
        return AttrValue(tensor=tf.make_tensor_proto(value))
    values = value if isinstance(value, list) else [value]
    field = {tf.DType: "type", bool: "b", int: "i", bytes: "s"}[type(values[0])]
    plain = [each.as_datatype_enum if field == "type" else each for each in values]
    return AttrValue(list={field: plain}) if value is values else AttrValue(**{field: plain[0]})


def const(name: str, value: Any) -> Any:
    array = np.asarray(value, object if isinstance(value, (str, bytes)) else None)
    return node(name, "Const", dtype=tf.as_dtype(array.dtype), value=array)


def graph(before: Sequence[Any], entering: str = INPUT, library: Any = None) -> Any:
    """Return the `GraphDef` of a normalization of `entering`, after the nodes `before`."""
    made = graph_pb2.GraphDef()
    made.versions.producer = tf.version.GRAPH_DEF_VERSION
    shape = tf.TensorShape([None, 1, 1, 3])
    made.node.append(node(INPUT, "Placeholder", dtype=tf.float32, shape=shape))
    for name, value in (("gamma", 1), ("beta", 0), ("moving_mean", 0.5), ("moving_variance", 2)):
        made.node.append(const(f"bn/{name}", np.full(3, value, np.float32)))
    made.node.extend(before)
    last = [f"^{before[-1].name}"] if before else []
    made.node.append(node("entering", "Identity", entering, *last, T=tf.float32))
    inputs = ["entering", "bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"]
    settings = {"T": tf.float32, "U": tf.float32, "is_training": False}
    norm = node("bn/norm", "FusedBatchNormV3", *inputs, **settings)
    norm.attr["epsilon"].f = 1e-3
    norm.attr["data_format"].s = b"NHWC"
    made.node.append(norm)
    made.node.append(node("y", "Identity", "bn/norm", T=tf.float32))
    if library is not None:
        made.library.CopyFrom(library)
    return made


def saved_model(folder: Path, graph_def: Any) -> Path:
    """Write a SavedModel with this graph, which is served from `x` to `y`."""
    meta_graph = meta_graph_pb2.MetaGraphDef(graph_def=graph_def)
    meta_graph.meta_info_def.tags.append("serve")
    signature = meta_graph.signature_def["serving_default"]
    for infos, name in ((signature.inputs, INPUT), (signature.outputs, "y")):
        infos[name].name = f"{name}:0"
        infos[name].dtype = tf.float32.as_datatype_enum
        infos[name].tensor_shape.CopyFrom(tf.TensorShape([None, 1, 1, 3]).as_proto())
    message = saved_model_pb2.SavedModel(saved_model_schema_version=1, meta_graphs=[meta_graph])
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(message.SerializeToString())
    return folder


def function(name: str, nodes: Sequence[Any], output: str, *, argument: bool = True) -> Any:
    """Return the `FunctionDef` of a float function, of one float `a` if `argument`.

    `output` is the tensor that it returns, as `node:output:0`, or `a`.
    """
    from tensorflow.core.framework import function_pb2

    made = function_pb2.FunctionDef(node_def=nodes, ret={"r": output})
    made.signature.name = name
    if argument:
        made.signature.input_arg.add(name="a", type=tf.float32.as_datatype_enum)
    made.signature.output_arg.add(name="r", type=tf.float32.as_datatype_enum)
    stateful = [each.name for each in nodes if each.op != "Const"]
    made.control_ret.update({each: each for each in stateful})
    made.signature.control_output.extend(stateful)
    made.signature.is_stateful = True
    return made
