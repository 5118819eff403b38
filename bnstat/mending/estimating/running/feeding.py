"""Tensors that are fed though they are no placeholders: the graph is cut there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bnstat.mending.estimating.running.flatten import op_of
from bnstat.mending.estimating.running.program import Input

PLACEHOLDERS = frozenset({"Placeholder", "PlaceholderV2"})


def with_placeholders(
    graph_def: Any, inputs: Mapping[str, Input]
) -> tuple[Any, Mapping[str, Input]]:
    """The graph, and what is fed to it, with placeholders in the place of all other inputs.

    So nothing is run of what filled them, such as a queue or an iterator over files.

    Args:
        graph_def: a `GraphDef`, which is left as it is.
        inputs: what is fed.
    """
    ops = {node.name: node.op for node in graph_def.node}
    others = {key: one for key, one in inputs.items() if ops[op_of(one.tensor)] not in PLACEHOLDERS}
    if not others:
        return graph_def, inputs
    cut = type(graph_def)()
    cut.CopyFrom(graph_def)
    names = {}
    for number, (key, one) in enumerate(others.items()):
        node = cut.node.add(name=f"bnstat_input_{number}", op="Placeholder")
        _describe(node, one)
        names[one.tensor.removesuffix(":0")] = node.name
        others[key] = replace(one, tensor=f"{node.name}:0")
    waits = {f"^{op_of(tensor)}" for tensor in names}
    for node in cut.node:
        fed = [names.get(tensor.removesuffix(":0"), tensor) for tensor in node.input]
        node.input[:] = [tensor for tensor in fed if tensor not in waits]
    return cut, {**inputs, **others}


def _describe(node: Any, one: Input) -> None:
    import tensorflow as tf

    node.attr["dtype"].type = tf.as_dtype(one.dtype).as_datatype_enum
    node.attr["shape"].shape.CopyFrom(tf.TensorShape(one.shape).as_proto())
