"""Make graphs flat, and find the dependencies of tensors in flat graphs.

A flat graph has no unused ops and no calls. Conditionals and loops consist of Switch and Merge.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from itertools import chain, pairwise
from typing import Any, Final

from bnstat.errors import BnstatError, NotFoundError, UnsupportedError, first_line
from bnstat.estimate.data.batches import Input
from bnstat.formats.tensorflow.graph_def import all_nodes
from bnstat.model import Array
from bnstat.signals import interruptible

_CONTROL_FLOW = frozenset({"If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile"})
_LARGEST_FLAT: Final = 100_000  # TensorFlow takes 20 s for it; large networks have 30,000 ops

_LOWER = "_lower_using_switch_merge"
_IN_THE_WAY = ("_noinline", "_XlaMustCompile", "api_implements", "api_preferred_device", "_class")
"""Attributes that prevent inlining, or tie an op to the device of another op."""

PLACEHOLDERS = frozenset({"Placeholder", "PlaceholderV2"})

_NODE = re.compile(r"\[\[\{\{node (.+?)\}\}")
_NOT_FED = "You must feed a value for placeholder tensor"


@dataclass(frozen=True)
class Program:
    """A graph with everything that is needed to run the graph.

    Attributes:
        variables: op name -> key of the variable that the op holds, completely or in part.
        read: takes the name of an op in `variables`, and returns the value that the op holds.
        outputs: the names of the output tensors.
        settings: tensor -> value that each run feeds, for example False for a training switch.
        masks: op name -> tensor name of the mask, if a layer normalizes the output of the op. The
            mask lacks the last dimension of the output, and is true at values to measure.
        initializers: the names of ops that fill lookup tables before the first run.
    """

    where: str
    graph_def: Any
    variables: Mapping[str, str]
    read: Callable[[str], Array]
    inputs: Mapping[str, Input]
    outputs: Sequence[str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    initializers: tuple[str, ...] = ()
    masks: Mapping[str, str] = field(default_factory=dict)


def op_of(tensor: str) -> str:
    """Return the name of the op of a tensor or control input."""
    return tensor.lstrip("^").partition(":")[0]


def full_name(tensor: str) -> str:
    """Return the name of a tensor with the index of the op's output, such as `op:0`."""
    return tensor if ":" in tensor else f"{tensor}:0"


def sizes_of(shape: Any) -> tuple[int | None, ...] | None:
    """Return a `TensorShape` or its proto as a tuple of sizes; None if the rank is unknown."""
    proto = shape.as_proto() if hasattr(shape, "as_proto") else shape
    if proto.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in proto.dim)


def upstream(nodes: Iterable[Any], tensors: Iterable[str]) -> list[Any]:
    """Return the `NodeDef`s that compute some tensors, directly or indirectly, in graph order."""
    by_name = {node.name: node for node in nodes}
    names: set[str] = set()
    stack = list(map(op_of, tensors))
    while stack:
        name = stack.pop()
        if name not in names and name in by_name:
            names.add(name)
            stack.extend(map(op_of, by_name[name].input))
    return [node for name, node in by_name.items() if name in names]


def origins(nodes: Mapping[str, Any], tensor: str, op_types: Collection[str]) -> list[str]:
    """Return `tensor` and the tensors that it comes from through ops of the given types."""
    tensors: list[str] = []
    while tensor not in tensors:
        tensors.append(tensor)
        node = nodes.get(op_of(tensor))
        if node is not None and node.op in op_types and node.input:
            tensor = node.input[0]
    return tensors


def called_by(nodes: Iterable[Any]) -> set[str]:
    """Return the op types of nodes, together with the names of functions in their attributes."""
    return set(chain.from_iterable(map(_calls, nodes)))


def _calls(node: Any) -> Iterator[str]:
    """Yield the names that a node may call: its op type, and the functions in its attributes."""
    yield node.op
    values = list(node.attr.values())
    for value in values:
        for function in (*([value.func] if value.HasField("func") else []), *value.list.func):
            yield function.name
            values.extend(function.attr.values())


def with_placeholders(
    graph_def: Any, inputs: Mapping[str, Input]
) -> tuple[Any, Mapping[str, Input]]:
    """Replace inputs by placeholders, so that no input pipeline runs; return graph and inputs."""
    import tensorflow as tf

    fed = {node.name for node in graph_def.node if node.op in PLACEHOLDERS}
    others = {key: each for key, each in inputs.items() if op_of(each.tensor) not in fed}
    if not others:
        return graph_def, inputs
    cut = type(graph_def)()
    cut.CopyFrom(graph_def)
    names = {}
    for number, (key, old) in enumerate(others.items()):
        node = cut.node.add(name=f"bnstat_input_{number}", op="Placeholder")
        node.attr["dtype"].type = tf.as_dtype(old.dtype).as_datatype_enum
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(old.shape).as_proto())
        names[old.tensor.removesuffix(":0")] = node.name
        others[key] = replace(old, tensor=f"{node.name}:0")
    waits = {f"^{op_of(tensor)}" for tensor in names}
    for node in cut.node:
        taken = [names.get(tensor.removesuffix(":0"), tensor) for tensor in node.input]
        node.input[:] = [tensor for tensor in taken if tensor not in waits]
    return cut, {**inputs, **others}


def pruned(graph_def: Any, fetched: Collection[str], where: str) -> Any:
    """Return a `GraphDef` with only the ops, also inside functions, that `fetched` depends on."""
    missing = set(fetched) - {node.name for node in graph_def.node}
    if missing:
        raise NotFoundError(where, f"its graph has no op {min(missing)!r}")
    kept = type(graph_def)(versions=graph_def.versions)
    kept.node.extend(upstream(graph_def.node, fetched))
    library = {function.signature.name: function for function in graph_def.library.function}
    waiting = called_by(kept.node)
    while waiting:
        function = library.pop(waiting.pop(), None)
        if function is not None:
            returned = (*function.ret.values(), *function.control_ret.values())
            body = upstream(function.node_def, returned)
            copy = kept.library.function.add()
            copy.CopyFrom(function)
            del copy.node_def[:]
            copy.node_def.extend(body)
            waiting |= called_by(body)
    for message in (*all_nodes(kept), *kept.library.function):
        for name in _IN_THE_WAY:
            message.attr.pop(name, None)
    for node in all_nodes(kept):
        node.device = ""
    return kept


def flattened(graph_def: Any, fetched: Collection[str], where: str) -> Any:
    """Return a graph with all calls inlined. This also changes `graph_def` itself."""
    if _flat_size(graph_def, where) > _LARGEST_FLAT:
        what = f"with its functions inlined, its graph has more than {_LARGEST_FLAT} ops"
        raise UnsupportedError(where, what)
    for node in all_nodes(graph_def):
        if node.op in _CONTROL_FLOW:
            node.attr[_LOWER].b = True
    if graph_def.library.function:
        graph_def = pruned(_inlined(graph_def, fetched, where), fetched, where)
    return graph_def


def _flat_size(graph_def: Any, where: str) -> int:
    """Return the number of ops in a graph with all calls inlined."""
    bodies = {function.signature.name: function.node_def for function in graph_def.library.function}
    bodies[""] = graph_def.node
    calls = {name: [*chain.from_iterable(map(_calls, body))] for name, body in bodies.items()}
    sizes = {name: len(body) for name, body in bodies.items()}
    try:
        for name in TopologicalSorter(calls).static_order():
            if name in bodies:
                sizes[name] += sum(sizes.get(callee, 0) for callee in calls[name])
    except CycleError:
        raise UnsupportedError(where, "its functions call each other in a circle") from None
    return sizes[""]


def _inlined(graph_def: Any, fetched: Collection[str], where: str) -> Any:
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
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
    except Exception as error:  # whatever TensorFlow raises
        what = f"TensorFlow cannot inline its functions: {first_line(error)}"
        raise UnsupportedError(where, what) from None


def imported(graph_def: Any, where: str) -> Any:
    """Return a `GraphDef` as a `tf.Graph`."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        try:
            tf.graph_util.import_graph_def(graph_def, name="")
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise refused(where, error) from None
    return graph


def refused(where: str, error: Exception) -> BnstatError:
    """Convert an error of TensorFlow to a `BnstatError` of one line, with the reason and the op."""
    message = str(getattr(error, "message", None) or error)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reason, at = (lines or ["no reason given"])[0], ""
    for before, line in pairwise(lines):
        if match := _NODE.match(line):
            reason, at = before, f" (at {match[1]})"
            break
    hint = "set it with --feed, or name it with --input" if reason.startswith(_NOT_FED) else ""
    return BnstatError(where, f"TensorFlow cannot run it: {reason}{at}", hint)


DATA = "(data)"
"""The mark of tensors that depend on the data. All other marks are names of layers."""


Condition = tuple[str, bool]
"""A condition for computing a tensor: the name of a bool tensor, and the value it must have."""


class Dependencies:
    """The loops, the conditions and the marked ops on which each tensor depends.

    `marks` maps the name of an op to the op's marks. The constructor raises a `CycleError` if ops
    depend on each other in a circle that is not a loop.
    """

    def __init__(self, graph_def: Any, marks: Mapping[str, Collection[str]]) -> None:
        self._nodes = {node.name: node for node in graph_def.node}
        # Ops on references, such as RefSwitch, count as the other ops.
        self._kinds = {name: node.op.removeprefix("Ref") for name, node in self._nodes.items()}
        self._depths: dict[str, int] = {}
        self._conditions: dict[str, frozenset[Condition]] = {}
        self._marks: dict[str, frozenset[str]] = {}
        # Loops are ordered as if the edges back to their beginnings were missing.
        taken = {
            name: [] if self._kinds[name] == "NextIteration" else map(op_of, node.input)
            for name, node in self._nodes.items()
        }
        names = [name for name in TopologicalSorter(taken).static_order() if name in taken]
        for name in names:
            kind = self._kinds[name]
            inputs = [each for each in self._nodes[name].input if op_of(each) in self._depths]
            depth = max((self._depths[op_of(tensor)] for tensor in inputs), default=0)
            self._depths[name] = depth + (kind == "Enter") - (kind == "Exit")
            self._conditions[name] = self._conditions_of(name, inputs)
        has_loops = "NextIteration" in self._kinds.values()
        changed = True
        while changed:  # more than once for what one iteration of a loop passes to the next
            before = dict(self._marks)
            for name in names:
                inputs = [each for each in self._nodes[name].input if not each.startswith("^")]
                marked = frozenset(marks.get(name, ()))
                self._marks[name] = marked.union(*map(self.marks, inputs))
            changed = has_loops and before != self._marks

    def marks(self, tensor: str) -> frozenset[str]:
        """Return the marks (`DATA`, names of layers) of the ops on which a tensor depends."""
        return self._marks.get(op_of(tensor), frozenset())

    def is_in_loop(self, tensor: str) -> bool:
        """Return True if a tensor is computed in each iteration of a loop."""
        return self._depths.get(op_of(tensor), 0) > 0

    def conditions(self, tensor: str) -> Sequence[Condition]:
        """Return the conditions under which a tensor is computed, outermost first."""
        conditions = self._conditions_at(tensor)
        return sorted(conditions, key=lambda each: (len(self._conditions_at(each[0])), each))

    def _conditions_at(self, tensor: str) -> frozenset[Condition]:
        name = op_of(tensor)
        conditions = self._conditions.get(name, frozenset())
        if self._kinds.get(name) == "Switch" and not tensor.startswith("^"):
            predicates = self._nodes[name].input[1:2]
            conditions |= {(each, tensor.endswith(":1")) for each in predicates}
        return conditions

    def _conditions_of(self, name: str, inputs: Sequence[str]) -> frozenset[Condition]:
        of_inputs = [self._conditions_at(tensor) for tensor in inputs]
        if self._kinds[name] == "Merge" and of_inputs:
            return frozenset.intersection(*of_inputs)
        conditions = frozenset[Condition]().union(*of_inputs)
        if self._kinds[name] == "Exit":  # the conditions of the loop itself end here
            depth = self._depths[name]
            outer = [each for each in conditions if self._depths.get(op_of(each[0]), 0) <= depth]
            return frozenset(outer)
        return conditions
