"""Models in memory as programs, traced once in inference.

A traced graph does not show the masks of Keras, because inference normalizes masked values like
other values. The masks are therefore recorded during tracing: as in training, masked values do not
count for the statistics.

Sources: keras/src/layers/normalization/batch_normalization.py, of Keras 3 and of tf-keras, whose
fused layers ignore masks; tensorflow/core/ops/lookup_ops.cc.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np

from bnstat.errors import BnstatError, UnsupportedError, first_line
from bnstat.estimate.data import Input
from bnstat.estimate.running.flat_graph import Program, op_of, sizes_of
from bnstat.live import holders, numpy_of
from bnstat.model import Array

_SWITCHES = ("training", "is_training")
_SAME_MASK = frozenset({"Cast", "Identity"})
_KEYS = ("string", "int64", "int32")
_VALUES = ("int64", "string", "float32", "int32", "float64", "bool")


def traced(
    model: Any,
    where: str,
    keys: Mapping[int, str],
    example: Callable[[], Mapping[str, Array]] | None = None,
) -> Program:
    """Return the program of a model in memory, without dropout and similar layers.

    Args:
        model: a model of Keras or tf-keras, or a callable `tf.Module`.
        where: for messages.
        keys: `id` of a variable -> key, for variables that have a key.
        example: returns a sample, for a model that does not record its inputs.

    Raises:
        BnstatError: the model cannot be traced.
    """
    import tensorflow as tf

    specs = _specs(model) or _specs_of(example, where)
    switches = {name: False for name in _SWITCHES if name in _parameters(model)}

    def call(*tensors: Any) -> Any:
        return model(_packed(model, tensors), **switches)

    try:
        with _recorded_masks(model) as recorded:
            function = tf.function(call, autograph=False).get_concrete_function(*specs.values())
    except Exception as error:  # whatever the model's own code raises
        raise BnstatError(where, f"cannot be traced: {first_line(error)}") from None
    graph = function.graph
    inside = {id(internal) for _, internal in graph.captures}
    fed = [tensor for tensor in graph.inputs if id(tensor) not in inside]
    graph_def = graph.as_graph_def()
    variables, read, initializers = _captured(graph, graph_def, keys, where)
    inputs = {
        name: Input(tensor.name, tensor.dtype.name, sizes_of(tensor.shape))
        for name, tensor in zip(specs, fed, strict=True)
    }
    outputs = {str(place): tensor.name for place, tensor in enumerate(graph.outputs)}
    return Program(
        where,
        graph_def,
        variables,
        read,
        inputs,
        outputs,
        initializers=initializers,
        masks={x.op.name: mask.name for x, mask in recorded if x.graph is mask.graph is graph},
    )


def _specs(model: Any) -> dict[str, Any]:
    """Return input name -> `tf.TensorSpec`; empty if the model does not record its inputs."""
    import tensorflow as tf

    try:
        inputs = tf.nest.flatten(model.inputs)
    except (AttributeError, ValueError):
        return {}
    if not inputs or any(tensor is None for tensor in inputs):
        return {}
    return {op_of(each.name): tf.TensorSpec(each.shape, each.dtype) for each in inputs}


def _specs_of(example: Callable[[], Mapping[str, Array]] | None, where: str) -> dict[str, Any]:
    import tensorflow as tf

    if example is None:
        what = "does not record which inputs it takes"
        raise UnsupportedError(where, what, "save it as a SavedModel")
    return {
        name: tf.TensorSpec([None, *array.shape[1:]], tf.as_dtype(array.dtype))
        for name, array in example().items()
    }


def _packed(model: Any, tensors: tuple[Any, ...]) -> Any:
    """Return the tensors in the structure of the model's argument."""
    import tensorflow as tf

    try:
        return tf.nest.pack_sequence_as(model.input, tensors)
    except (AttributeError, ValueError, TypeError):
        return tensors[0] if len(tensors) == 1 else list(tensors)


def _parameters(model: Any) -> set[str]:
    """Return the names of the parameters with which a model can be called."""
    names: set[str] = set()
    for name in ("call", "__call__"):
        method = getattr(model, name, None)
        function: Any = getattr(method, "python_function", method)
        try:
            names.update(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            continue
    return names


def _captured(
    graph: Any, graph_def: Any, keys: Mapping[int, str], where: str
) -> tuple[Mapping[str, str], Callable[[str], Array], tuple[str, ...]]:
    """Convert a function's captured tensors to variables, tables and constants of its graph.

    Returns:
        The variables, the function that reads the variables, and the ops that fill the tables.
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
        elif fill := external.dtype == tf.resource and _add_table(graph_def, node, external):
            fills.append(fill)
        else:
            node.op = "Const"
            try:
                value = np.asarray(external.numpy())
            except (AttributeError, NotImplementedError, TypeError, tf.errors.OpError):
                what = f"uses {external.dtype.name} state that cannot be run apart from it"
                raise UnsupportedError(where, what) from None
            node.attr["dtype"].type = external.dtype.as_datatype_enum
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, external.dtype))
    return variables, lambda key: numpy_of(readers[key]), tuple(fills)


@contextmanager
def _recorded_masks(model: Any) -> Iterator[list[tuple[Any, Any]]]:
    """Record the masks with which the batch-norm layers of a model are called.

    Yields:
        A list to which pairs (input of a layer, mask) are added; a mask lacks the last dimension.
    """
    recorded: list[tuple[Any, Any]] = []
    layers = [
        layer
        for _, layer in holders(model)
        if hasattr(layer, "moving_variance")
        and hasattr(layer, "call")
        and not getattr(layer, "fused", False)
    ]
    for layer in layers:
        object.__setattr__(layer, "call", _recording(layer.call, recorded))
    try:
        yield recorded
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")


def _recording(call: Any, recorded: list[tuple[Any, Any]]) -> Any:
    import tensorflow as tf

    def wrapper(inputs: Any, *args: Any, **options: Any) -> Any:
        mask = options.get("mask")
        if mask is not None:
            inputs = tf.identity(inputs)  # this op identifies the tensor in the graph
            recorded.append((inputs, mask))
        return call(inputs, *args, **options)

    return wrapper


def mask_of(nodes: Mapping[str, Any], tensor: str, masks: Mapping[str, str]) -> str | None:
    """Return the mask of a tensor that enters a normalization; for `masks` see `Program`."""
    name = op_of(tensor)
    while name not in masks and name in nodes and nodes[name].op in _SAME_MASK:
        name = op_of(nodes[name].input[0])
    return masks.get(name)


def _add_table(graph_def: Any, node: Any, handle: Any) -> str | None:
    """Replace a node for a lookup table in memory by a table with the same entries.

    Returns:
        The name of the new op that fills the table; None if the resource is not a known table.
    """
    import tensorflow as tf

    dtypes = _table_dtypes(handle)
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
    table_node, *other_nodes = graph.as_graph_def().node
    node.CopyFrom(table_node)
    graph_def.node.extend(other_nodes)
    fill: str = other_nodes[-1].name
    return fill


def _table_dtypes(handle: Any) -> tuple[Any, Any] | None:
    """Return the dtypes of a table's keys and values, determined by an empty lookup."""
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
