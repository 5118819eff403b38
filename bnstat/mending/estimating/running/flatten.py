"""A graph without functions: calls inlined, conditionals and loops as Switch and Merge."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from bnstat.errors import NotFoundError, UnsupportedError

_CONTROL_FLOW = frozenset({"If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile"})
_LOWER = "_lower_using_switch_merge"
_IN_THE_WAY = ("_noinline", "_XlaMustCompile", "api_implements", "api_preferred_device", "_class")
"""Attributes that keep a function from being inlined, or tie ops to the place of others."""


def flattened(graph_def: Any, fetched: Collection[str], where: str) -> Any:
    """The part of a graph that some ops need, with every function that it calls inlined.

    TensorFlow's own function optimizer does it, as before any run.

    Args:
        graph_def: a `GraphDef`, which is left as it is.
        fetched: names of ops.
        where: for messages.

    Raises:
        UnsupportedError: TensorFlow cannot inline it.
        NotFoundError: there is no op of such a name.
    """
    missing = set(fetched) - {node.name for node in graph_def.node}
    if missing:
        raise NotFoundError(where, f"its graph has no op {min(missing)!r}")
    reached = _pruned(graph_def, fetched)
    for node in nodes(reached):
        for name in _IN_THE_WAY:
            node.attr.pop(name, None)
        node.device = ""
        if node.op in _CONTROL_FLOW:
            node.attr[_LOWER].b = True
    for function in reached.library.function:
        for name in _IN_THE_WAY:
            function.attr.pop(name, None)
    if reached.library.function:
        reached = _pruned(_inlined(reached, fetched, where), fetched)
    return reached


def _pruned(graph_def: Any, fetched: Iterable[str]) -> Any:
    """The ops that some ops depend on, and all functions."""
    kept = upstream(graph_def, fetched)
    pruned = type(graph_def)()
    pruned.node.extend(node for node in graph_def.node if node.name in kept)
    pruned.library.CopyFrom(graph_def.library)
    pruned.versions.CopyFrom(graph_def.versions)
    return pruned


def nodes(graph_def: Any) -> Iterator[Any]:
    """All `NodeDef`s of a graph, those of its functions' bodies too."""
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def upstream(graph_def: Any, names: Iterable[str]) -> set[str]:
    """The names of the ops that these ops depend on, themselves included."""
    by_name = {node.name: node for node in graph_def.node}
    found: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name not in found and name in by_name:
            found.add(name)
            stack.extend(map(op_of, by_name[name].input))
    return found


def op_of(tensor: str) -> str:
    """The op of a tensor, or of a control input."""
    return tensor.lstrip("^").partition(":")[0]


def _inlined(graph_def: Any, fetched: Collection[str], where: str) -> Any:
    from tensorflow.core.protobuf import (
        config_pb2,
        meta_graph_pb2,
        rewriter_config_pb2,
    )
    from tensorflow.python.grappler import tf_optimizer

    meta_graph = meta_graph_pb2.MetaGraphDef(graph_def=graph_def)
    meta_graph.collection_def["train_op"].node_list.value.extend(fetched)
    config = config_pb2.ConfigProto()
    rewriting = config.graph_options.rewrite_options
    rewriting.min_graph_nodes = -1
    rewriting.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.ONE
    rewriting.optimizers.append("function")
    rewriting.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    try:
        return tf_optimizer.OptimizeGraph(config, meta_graph)
    except Exception as error:  # whatever TensorFlow's status says
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise UnsupportedError(where, f"TensorFlow cannot inline its functions: {reason}") from None
