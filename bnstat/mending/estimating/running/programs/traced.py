"""Models in memory as programs: traced once, in inference."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bnstat.errors import BnstatError, UnsupportedError, first_line
from bnstat.live import numpy_of
from bnstat.mending.estimating.running.program import Input, Program
from bnstat.mending.estimating.running.programs.masks import masks_noted
from bnstat.mending.estimating.running.programs.tables import add_table
from bnstat.model import Array

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
