"""Models in memory as programs: traced once, in inference.

The masks of Keras: what its training leaves out of a layer's statistics.

Inference normalizes what is masked like all else, so the graph that runs does not tell.
Sources: keras/src/layers/normalization/batch_normalization.py, of Keras 3 and of tf-keras, whose
fused layers take no notice of a mask.

Lookup tables that a traced model holds, as tables of its graph.

Source: tensorflow/core/ops/lookup_ops.cc.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np

from bnstat.errors import BnstatError, UnsupportedError, first_line
from bnstat.estimate.running.flat_graph import Input, Program, op_of
from bnstat.live import holders, numpy_of
from bnstat.model import Array

_PASSES = frozenset({"Cast", "Identity"})


@contextmanager
def masks_noted(model: Any) -> Iterator[list[tuple[Any, Any]]]:
    """While a model is traced, note with which masks its batch-norm layers are called.

    Gives a list of pairs: what enters the layer, and the mask, of one dimension less.
    """
    noted: list[tuple[Any, Any]] = []
    layers = [
        layer
        for _, layer in holders(model)
        if hasattr(layer, "moving_variance")
        and hasattr(layer, "call")
        and not getattr(layer, "fused", False)
    ]
    for layer in layers:
        object.__setattr__(layer, "call", _noting(layer.call, noted))
    try:
        yield noted
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")


def _noting(call: Any, noted: list[tuple[Any, Any]]) -> Any:
    import tensorflow as tf

    def masked(inputs: Any, *args: Any, **options: Any) -> Any:
        mask = options.get("mask")
        if mask is not None:
            inputs = tf.identity(inputs)  # an op of its own, by which it is found again
            noted.append((inputs, mask))
        return call(inputs, *args, **options)

    return masked


def mask_of(nodes: Mapping[str, Any], tensor: str, masks: Mapping[str, str]) -> str | None:
    """The mask of a tensor that enters a normalization.

    Args:
        nodes: the graph's, by name.
        tensor: the tensor.
        masks: op -> the mask of what it gives.
    """
    name = op_of(tensor)
    while name not in masks and name in nodes and nodes[name].op in _PASSES:
        name = op_of(nodes[name].input[0])
    return masks.get(name)


_KEYS = ("string", "int64", "int32")
_VALUES = ("int64", "string", "float32", "int32", "float64", "bool")


def add_table(graph_def: Any, node: Any, handle: Any) -> str | None:
    """Turn a node that stands for a table in memory into a table with the same entries.

    Args:
        graph_def: the graph, to which what fills the table is added.
        node: a `NodeDef` of it; only its name stays.
        handle: the table's resource.

    Returns:
        The name of the op that fills it; None where the resource is no such table.
    """
    import tensorflow as tf

    dtypes = _dtypes(handle)
    if dtypes is None:
        return None
    entries = tf.raw_ops.LookupTableExportV2(
        table_handle=handle, Tkeys=dtypes[0], Tvalues=dtypes[1]
    )
    name = node.name
    with tf.Graph().as_default() as graph:
        table = tf.raw_ops.HashTableV2(
            key_dtype=dtypes[0], value_dtype=dtypes[1], shared_name=f"bnstat_{name}", name=name
        )
        keys, values = (tf.constant(each.numpy(), name=f"{name}_entries") for each in entries)
        tf.raw_ops.InitializeTableV2(
            table_handle=table, keys=keys, values=values, name=f"{name}_fill"
        )
    made, *others = graph.as_graph_def().node
    node.CopyFrom(made)
    graph_def.node.extend(others)
    fill: str = others[-1].name
    return fill


def _dtypes(handle: Any) -> tuple[Any, Any] | None:
    """The types of a table's keys and values, which are found by asking for no key at all."""
    import tensorflow as tf

    for key, value in product(map(tf.as_dtype, _KEYS), map(tf.as_dtype, _VALUES)):
        try:
            tf.raw_ops.LookupTableFindV2(
                table_handle=handle, keys=tf.zeros([0], key), default_value=tf.zeros([], value)
            )
        except tf.errors.OpError:
            continue
        return key, value
    return None


_SWITCHES = ("training", "is_training")


def traced(
    model: Any,
    where: str,
    keys: Mapping[int, str],
    example: Callable[[], Mapping[str, Array]] | None = None,
) -> Program:
    """The program of a model in memory, with dropout and its like off.

    Args:
        model: of Keras or tf-keras, or a `tf.Module` that can be called.
        where: what it is, for messages.
        keys: identity of a variable -> its key, for those that have one.
        example: gives a batch, for models that do not say what they take.

    Raises:
        BnstatError: it cannot be traced.
    """
    import tensorflow as tf

    specs = _specs(model) or _specs_of(example, where)
    names = list(specs)
    switches = {name: False for name in _SWITCHES if name in _parameters(model)}

    def call(*tensors: Any) -> Any:
        return model(_packed(model, tensors), **switches)

    try:
        with masks_noted(model) as noted:
            function = tf.function(call, autograph=False).get_concrete_function(*specs.values())
    except Exception as error:  # whatever the model's own code raises
        raise BnstatError(where, f"cannot be traced: {first_line(error)}") from None
    graph = function.graph
    inside = {id(internal) for _, internal in graph.captures}
    fed = [tensor for tensor in graph.inputs if id(tensor) not in inside]
    graph_def = graph.as_graph_def()
    variables, read, prepare = _captured(graph, graph_def, keys, where)
    inputs = {
        name: Input(tensor.name, tensor.dtype.name, _shape(tensor.shape))
        for name, tensor in zip(names, fed, strict=True)
    }
    outputs = {str(place): tensor.name for place, tensor in enumerate(graph.outputs)}
    masks = {x.op.name: mask.name for x, mask in noted if x.graph is mask.graph is graph}
    return Program(where, graph_def, variables, read, inputs, outputs, prepare=prepare, masks=masks)


def _specs(model: Any) -> dict[str, Any]:
    """What a model says that it takes: name -> `tf.TensorSpec`; empty where it says nothing."""
    import tensorflow as tf

    try:
        inputs = tf.nest.flatten(model.inputs)
    except (AttributeError, ValueError):
        return {}
    if not inputs or any(tensor is None for tensor in inputs):
        return {}
    return {
        tensor.name.partition(":")[0]: tf.TensorSpec(tensor.shape, tensor.dtype)
        for tensor in inputs
    }


def _specs_of(example: Callable[[], Mapping[str, Array]] | None, where: str) -> dict[str, Any]:
    """What is fed to a model that does not say what it takes, by a batch."""
    import tensorflow as tf

    if example is None:
        raise UnsupportedError(where, "does not say what it takes", "save it as a SavedModel")
    return {
        name: tf.TensorSpec([None, *array.shape[1:]], tf.as_dtype(array.dtype))
        for name, array in example().items()
    }


def _packed(model: Any, tensors: tuple[Any, ...]) -> Any:
    """Tensors in the structure that a model takes."""
    import tensorflow as tf

    try:
        return tf.nest.pack_sequence_as(model.input, tensors)
    except (AttributeError, ValueError, TypeError):
        return tensors[0] if len(tensors) == 1 else list(tensors)


def _parameters(model: Any) -> set[str]:
    """The names of what a model's call takes."""
    found: set[str] = set()
    for name in ("call", "__call__"):
        method = getattr(model, name, None)
        function: Any = getattr(method, "python_function", method)
        try:
            found.update(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            continue
    return found


def _captured(
    graph: Any, graph_def: Any, keys: Mapping[int, str], where: str
) -> tuple[Mapping[str, str], Callable[[str], Array], tuple[str, ...]]:
    """Turn what a function captures into variables, tables and constants of its graph.

    Returns the variables, what reads them, and the ops that fill the tables.
    """
    import tensorflow as tf

    nodes = {node.name: node for node in graph_def.node}
    held = {id(variable.handle): variable for variable in graph.variables}
    variables = {}
    readers: dict[str, Any] = {}
    fills: list[str] = []
    for number, (external, internal) in enumerate(graph.captures):
        node = nodes[internal.op.name]
        name, variable = node.name, held.get(id(external))
        node.Clear()
        node.name = name
        if variable is not None:
            key = keys.get(id(variable), f"variable {number}")
            node.op = "VarHandleOp"
            node.attr["dtype"].type = variable.dtype.as_datatype_enum
            node.attr["shape"].shape.CopyFrom(variable.shape.as_proto())
            node.attr["shared_name"].s = f"bnstat_{number}".encode()
            variables[name], readers[key] = key, variable
        elif fill := external.dtype == tf.resource and add_table(graph_def, node, external):
            fills.append(fill)
        else:
            node.op = "Const"
            try:
                value = np.asarray(external.numpy())
            except (AttributeError, NotImplementedError, TypeError, tf.errors.OpError):
                raise UnsupportedError(
                    where, f"uses {external.dtype.name} state that cannot be run apart from it"
                ) from None
            node.attr["dtype"].type = external.dtype.as_datatype_enum
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, external.dtype))
    return variables, lambda key: numpy_of(readers[key]), tuple(fills)


def _shape(shape: Any) -> tuple[int | None, ...] | None:
    return None if shape.rank is None else tuple(shape.as_list())
