"""Make a `Program` of a model in memory, by tracing the model once in inference.

The masks of Keras are recorded during tracing, because a graph does not show masks. The statistics
then exclude masked values, as in training.

Sources: keras/src/layers/normalization/batch_normalization.py, of Keras 3 and of tf-keras, whose
fused layers ignore masks; tensorflow/core/ops/lookup_ops.cc.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from bnstat.errors import BnstatError, UnsupportedError, first_line
from bnstat.estimate.data.batches import Input
from bnstat.estimate.running.flat_graph import Program, op_of, sizes_of
from bnstat.live import holders, numpy_of
from bnstat.model import Array

_KEYS = ("string", "int64", "int32")
_VALUES = ("int64", "string", "float32", "int32", "float64", "bool")


def traced(
    model: Any,
    where: str,
    variables: Mapping[str, Any],
    example: Callable[[], Mapping[str, Array]] | None = None,
) -> Program:
    """Return a `Program` that runs a Keras model or a callable `tf.Module` in inference.

    `variables`: key -> variable. `example` returns a batch; used if the model records no inputs.
    """
    import tensorflow as tf

    specs = _specs(model, example, where)
    keys = {id(getattr(each, "_value", each)): key for key, each in variables.items()}
    switches = dict.fromkeys(_parameters(model) & {"training", "is_training"}, False)

    def call(*tensors: Any) -> Any:
        return model(_packed(model, tensors), **switches)

    try:
        with _recorded_masks(model) as recorded:
            function = tf.function(call, autograph=False).get_concrete_function(*specs.values())
    except Exception as error:  # whatever the model's own code raises
        raise BnstatError(where, f"TensorFlow cannot trace it: {first_line(error)}") from None
    graph = function.graph
    graph_def = graph.as_graph_def()
    held, initializers = _captured(graph, graph_def, where)
    inputs = {
        name: Input(tensor.name, tensor.dtype.name, sizes_of(tensor.shape))
        for name, tensor in zip(specs, graph.inputs, strict=False)  # captured tensors follow
    }
    return Program(
        where,
        graph_def,
        {name: keys.get(id(variable), name) for name, variable in held.items()},
        lambda name: numpy_of(held[name]),
        inputs,
        [tensor.name for tensor in graph.outputs],
        initializers=initializers,
        masks={x.op.name: mask.name for x, mask in recorded if x.graph is mask.graph is graph},
    )


def _specs(
    model: Any, example: Callable[[], Mapping[str, Array]] | None, where: str
) -> dict[str, Any]:
    """Return input name -> `tf.TensorSpec`, from `example` if the model records no inputs."""
    import tensorflow as tf

    try:
        inputs = tf.nest.flatten(model.inputs)
    except (AttributeError, ValueError):
        inputs = []
    if inputs and not any(tensor is None for tensor in inputs):
        return {op_of(each.name): tf.TensorSpec(each.shape, each.dtype) for each in inputs}
    if example is None:
        hint = "save it as a SavedModel"
        raise UnsupportedError(where, "does not record which inputs it takes", hint)
    return {
        name: tf.TensorSpec([None, *array.shape[1:]], tf.as_dtype(array.dtype))
        for name, array in example().items()
    }


def _packed(model: Any, tensors: tuple[Any, ...]) -> Any:
    """Return the tensors in the structure that the model takes, such as one tensor or a list."""
    import tensorflow as tf

    try:
        return tf.nest.pack_sequence_as(model.input, tensors)
    except (AttributeError, ValueError, TypeError):
        return tensors[0] if len(tensors) == 1 else list(tensors)


def _parameters(model: Any) -> set[str]:
    names: set[str] = set()
    for name in ("call", "__call__"):
        method: Any = getattr(model, name, None)
        with suppress(TypeError, ValueError):
            names.update(inspect.signature(getattr(method, "python_function", method)).parameters)
    return names


def _captured(graph: Any, graph_def: Any, where: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Replace captured tensors by ops; return op name -> variable, and the ops that fill tables."""
    import tensorflow as tf

    nodes = {node.name: node for node in graph_def.node}
    held = {id(variable.handle): variable for variable in graph.variables}
    variables = {}
    fills: list[str] = []
    for external, internal in graph.captures:
        node = nodes[internal.op.name]
        name, variable = node.name, held.get(id(external))
        node.Clear()
        node.name = name
        if variable is not None:
            variables[name] = variable
            node.op = "VarHandleOp"
            node.attr["dtype"].type = variable.dtype.as_datatype_enum
            node.attr["shape"].shape.CopyFrom(variable.shape.as_proto())
            node.attr["shared_name"].s = f"bnstat_{name}".encode()
        elif fill := external.dtype == tf.resource and _add_table(graph_def, node, external):
            fills.append(fill)
        else:
            try:
                value = np.asarray(external.numpy())
            except (AttributeError, NotImplementedError, TypeError, tf.errors.OpError):
                what = f"uses {external.dtype.name} state that bnstat cannot copy into a graph"
                raise UnsupportedError(where, what) from None
            node.op = "Const"
            node.attr["dtype"].type = external.dtype.as_datatype_enum
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, external.dtype))
    return variables, tuple(fills)


@contextmanager
def _recorded_masks(model: Any) -> Iterator[list[tuple[Any, Any]]]:
    """Yield a list, to which each masked call of a batch-norm layer appends (input, mask)."""
    import tensorflow as tf

    recorded: list[tuple[Any, Any]] = []

    def record(call: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        mask = options.get("mask")
        if mask is not None:
            inputs = tf.identity(inputs)  # this op identifies the tensor in the graph
            recorded.append((inputs, mask))
        return call(inputs, *args, **options)

    norms = [layer for _, layer in holders(model) if hasattr(layer, "moving_variance")]
    layers = [each for each in norms if hasattr(each, "call") and not getattr(each, "fused", False)]
    for layer in layers:
        object.__setattr__(layer, "call", partial(record, layer.call))
    try:
        yield recorded
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")


def _add_table(graph_def: Any, node: Any, handle: Any) -> str | None:
    """Copy a resource into a graph if it is a lookup table; return the op that fills the copy."""
    import tensorflow as tf

    entries = _entries(handle)
    if entries is None:
        return None
    name, fill_name = node.name, f"{node.name}_fill"
    with tf.Graph().as_default() as graph:
        keys, values = (tf.constant(each, name=f"{name}_entries") for each in entries)
        table = tf.raw_ops.HashTableV2(
            key_dtype=keys.dtype, value_dtype=values.dtype, shared_name=f"bnstat_{name}", name=name
        )
        tf.raw_ops.InitializeTableV2(table_handle=table, keys=keys, values=values, name=fill_name)
    *constants, table_node, fill = graph.as_graph_def().node
    node.CopyFrom(table_node)
    graph_def.node.extend([*constants, fill])
    return str(fill.name)


def _entries(handle: Any) -> Sequence[Array] | None:
    """Return [keys, values] of a lookup table; None if the resource is not a known table.

    The handle does not record the dtypes, so an empty lookup is tried with each pair of dtypes.
    """
    import tensorflow as tf

    for key, value in product(map(tf.as_dtype, _KEYS), map(tf.as_dtype, _VALUES)):
        with suppress(tf.errors.OpError):
            tf.raw_ops.LookupTableFindV2(
                table_handle=handle, keys=tf.zeros([0], key), default_value=tf.zeros([], value)
            )
            entries = tf.raw_ops.LookupTableExportV2(table_handle=handle, Tkeys=key, Tvalues=value)
            return [each.numpy() for each in entries]
    return None
