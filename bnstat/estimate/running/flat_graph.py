"""A graph without functions: calls inlined, conditionals and loops as Switch and Merge."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, NamedTuple

from bnstat.errors import NotFoundError, UnsupportedError
from bnstat.estimate.running.interrupts import interruptible
from bnstat.model import Array

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


_SWITCHES = frozenset({"Switch", "RefSwitch"})
_MERGES = frozenset({"Merge", "RefMerge"})
_ENTERS = frozenset({"Enter", "RefEnter"})
_EXITS = frozenset({"Exit", "RefExit"})
_BACK = frozenset({"NextIteration", "RefNextIteration"})
_GOING = "LoopCond"

DATA = "(data)"
"""The mark of what depends on the data; all others are names of layers."""


class Condition(NamedTuple):
    """A tensor is computed only where `predicate` is `value`.

    Attributes:
        predicate: a tensor of one bool.
        value: true or false.
    """

    predicate: str
    value: bool


class Loop(NamedTuple):
    """A tensor is computed in each turn of a loop.

    Attributes:
        frame: the loop's name.
        parallel: how many turns may be under way at a time.
        going: the tensor of one bool that tells whether there is another turn.
        deciding: whether it is for something on which `going` depends, which is computed once
            more than the loop's body.
    """

    frame: str
    parallel: int
    going: str
    deciding: bool


class Order:
    """The dependencies in a flat graph.

    Args:
        graph_def: a flat `GraphDef`.
        marks: name of an op -> the marks that it sets on all that depends on it.
    """

    def __init__(self, graph_def: Any, marks: Mapping[str, Collection[str]]) -> None:
        self._nodes = {node.name: node for node in graph_def.node}
        self._marks: dict[str, frozenset[str]] = {}
        self._conditions: dict[str, frozenset[Condition]] = {}
        self._frames: dict[str, tuple[str, ...]] = {}
        self._enters: dict[str, Any] = {}
        order = list(self._sorted())
        for name in order:
            node = self._nodes[name]
            inputs = [tensor for tensor in node.input if op_of(tensor) in self._frames]
            self._frames[name] = self._frames_of(node, inputs)
            self._conditions[name] = self._conditions_of(node, inputs)
        changed = True
        while changed:  # a second time, and more often, for what loops hand back
            before = dict(self._marks)
            for name in order:
                self._marks[name] = frozenset(marks.get(name, ())).union(
                    *(
                        self.marks(tensor)
                        for tensor in self._nodes[name].input
                        if not tensor.startswith("^")
                    )
                )
            changed = bool(self._enters) and before != self._marks
        self._going = {
            self.frames(name)[-1]: name
            for name in order
            if self._nodes[name].op == _GOING and self.frames(name)
        }

    def marks(self, tensor: str) -> frozenset[str]:
        """The marks of all ops that a tensor depends on."""
        return self._marks.get(op_of(tensor), frozenset())

    def frames(self, tensor: str) -> tuple[str, ...]:
        """The names of the loops that a tensor is computed in; the outermost first."""
        return self._frames.get(op_of(tensor), ())

    def conditions(self, tensor: str, user: str = "") -> Sequence[Condition | Loop]:
        """When a tensor is computed, and in which loops; the outermost first.

        Args:
            tensor: the tensor.
            user: the op that it is computed for; loops are said to be decided by that.
        """
        frames = self.frames(tensor)
        levels: list[list[Condition | Loop]] = [[] for _ in range(len(frames) + 1)]
        found = self._of_tensor(tensor)
        for each in sorted(found, key=lambda each: (len(self._of_tensor(each.predicate)), each)):
            if op_of(each.predicate) not in self._going.values():
                levels[len(self.frames(each.predicate))].append(each)
        for level, frame in zip(levels, frames, strict=False):
            going = self._going.get(frame)
            if going is not None:  # without it TensorFlow refuses the loop
                parallel = self._enters[frame].attr["parallel_iterations"].i
                level.append(Loop(frame, parallel, going, self._decides(user or tensor, going)))
        return [each for level in levels for each in level]

    def _decides(self, tensor: str, going: str) -> bool:
        """Whether a loop's going on depends on a tensor of the same turn."""
        seen: set[str] = set()
        stack = [going]
        while stack:
            name = stack.pop()
            if name not in seen and name in self._nodes:
                seen.add(name)
                if self._nodes[name].op not in _BACK:
                    stack.extend(map(op_of, self._nodes[name].input))
        return op_of(tensor) in seen

    def _of_tensor(self, tensor: str) -> frozenset[Condition]:
        name = op_of(tensor)
        found = self._conditions.get(name, frozenset())
        node = self._nodes.get(name)
        if node is not None and node.op in _SWITCHES and not tensor.startswith("^"):
            found |= {Condition(node.input[1], tensor.endswith(":1"))}
        return found

    def _conditions_of(self, node: Any, inputs: Sequence[str]) -> frozenset[Condition]:
        each = [self._of_tensor(tensor) for tensor in inputs]
        if node.op in _MERGES and each:
            return frozenset.intersection(*each)
        found = frozenset[Condition]().union(*each)
        if node.op in _EXITS:
            depth = len(self.frames(node.name))
            found = frozenset(one for one in found if len(self.frames(one.predicate)) <= depth)
        return found

    def _frames_of(self, node: Any, inputs: Sequence[str]) -> tuple[str, ...]:
        around = max(map(self.frames, inputs), key=len, default=())
        if node.op in _ENTERS:
            frame = node.attr["frame_name"].s.decode(errors="replace")
            self._enters[frame] = node
            return (*around, frame)
        return around[:-1] if node.op in _EXITS else around

    def _sorted(self) -> Iterator[str]:
        """All ops, each after those that it depends on; what a loop hands back comes later."""
        done: set[str] = set()
        begun: set[str] = set()
        for root in self._nodes:
            stack = [(root, False)]
            while stack:
                name, finished = stack.pop()
                if finished:
                    done.add(name)
                    yield name
                elif name not in begun and name in self._nodes:
                    begun.add(name)
                    stack.append((name, True))
                    if self._nodes[name].op not in _BACK:
                        stack.extend((op_of(tensor), False) for tensor in self._nodes[name].input)


@dataclass(frozen=True)
class Input:
    """What a model takes.

    Attributes:
        tensor: its tensor in the graph, `op:0`.
        dtype: NumPy's name of its element type; `string` for text.
        shape: None in place of unknown sizes; None as a whole where the rank is unknown.
    """

    tensor: str
    dtype: str
    shape: tuple[int | None, ...] | None

    @property
    def batch(self) -> int | None:
        """The number of samples that a batch must have, where it is fixed."""
        return self.shape[0] if self.shape else None


@dataclass(frozen=True)
class Program:
    """A graph with all that is needed to run it.

    Attributes:
        where: the path or object that it came from, for messages.
        graph_def: the graph; may still call functions.
        variables: name of an op -> key of the variable that it stands for.
        read: reads the variable of a key.
        parts: name of an op that stands for a part of a variable -> the indices of that part.
        inputs: name -> what is fed.
        outputs: name -> the tensor that is the model's answer.
        settings: tensor -> the value that it has in inference, such as a switch for training.
        masks: name of an op whose output enters a normalization -> the tensor, of one dimension
            less, that tells what of it counts for the statistics.
        prepare: ops that fill lookup tables before the first run.
    """

    where: str
    graph_def: Any
    variables: Mapping[str, str]
    read: Callable[[str], Array]
    inputs: Mapping[str, Input]
    outputs: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    prepare: tuple[str, ...] = ()
    parts: Mapping[str, tuple[slice, ...]] = field(default_factory=dict)
    masks: Mapping[str, str] = field(default_factory=dict)


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
