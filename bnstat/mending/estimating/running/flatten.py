"""A graph without functions: calls inlined, conditionals and loops as Switch and Merge."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final

from bnstat.errors import NotFoundError, UnsupportedError
from bnstat.mending.estimating.running.interrupts import interruptible

_CONTROL_FLOW = frozenset({"If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile"})
_LARGEST_FLAT: Final = 100_000
"""Ops of a flat graph. TensorFlow takes 20 seconds for as many; large networks have 30,000."""

_LOWER = "_lower_using_switch_merge"
_IN_THE_WAY = ("_noinline", "_XlaMustCompile", "api_implements", "api_preferred_device", "_class")
"""Attributes that keep a function from being inlined, or tie ops to the place of others."""


def pruned(graph_def: Any, fetched: Collection[str], where: str) -> Any:
    """Return the part of a graph that runs if some ops are fetched.

    That is the ops that these ops depend on, and the functions that they call. Of a function it
    is what its outputs and control outputs depend on. Nothing of it is tied to a device.

    Args:
        graph_def: a `GraphDef`; it is not changed.
        fetched: names of ops.
        where: for messages.

    Raises:
        NotFoundError: there is no op of such a name.
    """
    missing = set(fetched) - {node.name for node in graph_def.node}
    if missing:
        raise NotFoundError(where, f"its graph has no op {min(missing)!r}")
    kept = type(graph_def)(versions=graph_def.versions)
    kept.node.extend(_upstream(graph_def.node, fetched))
    library = {function.signature.name: function for function in graph_def.library.function}
    waiting = called_by(kept.node)
    while waiting:
        function = library.pop(waiting.pop(), None)
        if function is not None:
            returned = (*function.ret.values(), *function.control_ret.values())
            body = _upstream(function.node_def, returned)
            copy = kept.library.function.add()
            copy.CopyFrom(function)
            del copy.node_def[:]
            copy.node_def.extend(body)
            waiting |= called_by(body)
    for thing in (*nodes(kept), *kept.library.function):
        for name in _IN_THE_WAY:
            thing.attr.pop(name, None)
    for node in nodes(kept):
        node.device = ""
    return kept


def called_by(nodes: Iterable[Any]) -> set[str]:
    """Return all names by which some `NodeDef`s may call a function: their ops and attributes."""
    return {name for node in nodes for name in _calls(node)}


def _calls(node: Any) -> Iterator[str]:
    """Yield the names by which a `NodeDef` may call a function, each as often as it has it."""
    yield node.op
    for value in node.attr.values():
        yield from _functions_in(value)


def _functions_in(value: Any) -> Iterator[str]:
    """Yield the names of the functions in an `AttrValue`, and in the attributes given to them."""
    for function in (*([value.func] if value.HasField("func") else []), *value.list.func):
        yield function.name
        for inner in function.attr.values():
            yield from _functions_in(inner)


def flattened(graph_def: Any, fetched: Collection[str], where: str) -> Any:
    """Return a graph with every function that it calls inlined.

    TensorFlow's own function optimizer does it, as before any run.

    Args:
        graph_def: what `pruned` returned; it is changed.
        fetched: names of ops.
        where: for messages.

    Raises:
        UnsupportedError: TensorFlow cannot inline a function, functions call each other in a
            circle, or the flat graph would be too large.
    """
    if _size_inlined(graph_def, where) > _LARGEST_FLAT:
        what = f"with its functions inlined, its graph has more than {_LARGEST_FLAT} ops"
        raise UnsupportedError(where, what)
    for node in nodes(graph_def):
        if node.op in _CONTROL_FLOW:
            node.attr[_LOWER].b = True
    if graph_def.library.function:
        graph_def = pruned(_inlined(graph_def, fetched, where), fetched, where)
    return graph_def


def _size_inlined(graph_def: Any, where: str) -> int:
    """Return how many ops a graph has once every function is inlined.

    Raises:
        UnsupportedError: its functions call each other in a circle.
    """
    bodies = {function.signature.name: function.node_def for function in graph_def.library.function}
    calls = {
        name: [call for node in body for call in _calls(node)] for name, body in bodies.items()
    }
    sizes = {name: len(body) for name, body in bodies.items()}
    try:
        for name in TopologicalSorter(calls).static_order():
            if name in bodies:
                sizes[name] += sum(sizes.get(callee, 0) for callee in calls[name])
    except CycleError:
        raise UnsupportedError(where, "its functions call each other in a circle") from None
    called = (sizes.get(call, 0) for node in graph_def.node for call in _calls(node))
    return len(graph_def.node) + sum(called)


def nodes(graph_def: Any) -> Iterator[Any]:
    """All `NodeDef`s of a graph, those of its functions' bodies too."""
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def upstream(graph_def: Any, names: Iterable[str]) -> set[str]:
    """Return the names of the ops that these ops depend on, themselves included."""
    return {node.name for node in _upstream(graph_def.node, names)}


def _upstream(nodes: Iterable[Any], tensors: Iterable[str]) -> list[Any]:
    """Return the `NodeDef`s that some tensors depend on, in their order."""
    by_name = {node.name: node for node in nodes}
    found: set[str] = set()
    stack = list(map(op_of, tensors))
    while stack:
        name = stack.pop()
        if name not in found and name in by_name:
            found.add(name)
            stack.extend(map(op_of, by_name[name].input))
    return [node for name, node in by_name.items() if name in found]


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
        return interruptible(lambda: tf_optimizer.OptimizeGraph(config, meta_graph))
    except Exception as error:  # whatever TensorFlow's status says
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise UnsupportedError(where, f"TensorFlow cannot inline its functions: {reason}") from None
