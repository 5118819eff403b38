"""A runnable network with its normalizations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from bnstat.errors import BnstatError, UnsupportedError
from bnstat.estimate.running import flat_graph
from bnstat.estimate.running.allowed_ops import refuse_unlisted
from bnstat.estimate.running.flat_graph import DATA, Dependencies, Program, op_of, origins
from bnstat.estimate.running.normalizations import (
    MEAN,
    VARIANCE,
    Normalization,
    entering,
    find_normalizations,
    tensor_of,
)
from bnstat.formats.tensorflow.graph_def import all_nodes
from bnstat.model import Array, BatchNorm

Activation = Literal["softmax", "sigmoid", "tanh", "logits of softmax", "logits of sigmoid"]
"""The function that computes an output or, with `logits of`, takes the output as logits."""

_RESULTS: dict[str, Activation] = {"Softmax": "softmax", "Sigmoid": "sigmoid", "Tanh": "tanh"}
_LOGITS: dict[str, Activation] = {
    "Softmax": "logits of softmax",
    "LogSoftmax": "logits of softmax",
    "SoftmaxCrossEntropyWithLogits": "logits of softmax",
    "SparseSoftmaxCrossEntropyWithLogits": "logits of softmax",
    "Sigmoid": "logits of sigmoid",
}
_SAME_VALUES: Final = frozenset(
    {"Cast", "ExpandDims", "Identity", "IdentityN", "Reshape", "Snapshot", "Squeeze"}
)

_IN_LOOP = (
    "the graph normalizes with it in a loop (tf.while_loop, tf.map_fn or a recurrent cell), "
    "where it cannot be measured"
)
UNREACHED = "the data never reaches it"


@dataclass(frozen=True)
class Network:
    """A runnable network with its normalizations.

    Attributes:
        program: the network; its graph is flat.
        layers: the layers that can be measured, by name, in the order of the network.
        left: layer that cannot be measured -> the reason.
        graph: `program.graph_def` as a `tf.Graph`.
    """

    program: Program
    layers: Mapping[str, BatchNorm]
    normalizations: Sequence[Normalization]
    left: Mapping[str, str]
    dependencies: Dependencies
    graph: Any
    activation: Activation | None

    @property
    def is_comparable(self) -> bool:
        """True if the model has exactly one output, a floating-point tensor."""
        output, *others = self.program.outputs
        return not others and bool(tensor_of(self.graph, output).dtype.is_floating)

    def stored(self) -> dict[str, dict[str, Array]]:
        """Return layer -> role -> stored statistics, [channels]."""
        return {
            name: {role: layer.variables[role].read().reshape(-1) for role in (MEAN, VARIANCE)}
            for name, layer in self.layers.items()
        }

    def waves(self) -> list[list[str]]:
        """Return the layer names of each wave; layers in a cycle share a wave."""
        before: dict[str, set[str]] = {name: set() for name in self.layers}
        for each in self.normalizations:
            before[each.layer] |= self.dependencies.marks(each.x) & self.layers.keys()
        for between in before:  # the transitive closure, by Warshall
            for names in before.values():
                if between in names:
                    names |= before[between]
        waves = []
        while before:
            # Layers whose only dependencies left depend on the layer in turn.
            wave = [
                name
                for name, names in before.items()
                if all(name in before[each] for each in names & before.keys())
            ]
            waves.append(wave)
            before = {name: names for name, names in before.items() if name not in wave}
        return waves


def build_network(program: Program, layers: Sequence[BatchNorm], *, trust: bool) -> Network:
    """Return a `Network`, with the program's graph made flat and the normalizations of `layers`."""
    original, program = program.graph_def, _flat(program, trust)
    flat = program.graph_def
    normalizations, left = find_normalizations(flat, program.variables, layers)
    nodes = {node.name: node for node in flat.node}
    for number, each in enumerate(normalizations):
        ops = map(op_of, origins(nodes, each.x, {"Cast", "Identity"}))
        mask = next((program.masks[name] for name in ops if name in program.masks), None)
        normalizations[number] = replace(each, mask=mask)
    marks: dict[str, list[str]] = {op_of(each.tensor): [DATA] for each in program.inputs.values()}
    for each in normalizations:
        marks.setdefault(each.op, []).append(each.layer)
    # This refuses ops that depend on each other in a circle.
    graph = flat_graph.imported(flat, program.where)
    dependencies = Dependencies(flat, marks)
    for each in normalizations:
        try:
            entering(graph, each)
        except UnsupportedError as error:
            left[each.layer] = error.what
        if any(map(dependencies.is_in_loop, (each.x, *(edge.op for edge in each.edges)))):
            left[each.layer] = _IN_LOOP
        elif DATA not in dependencies.marks(each.x):
            left.setdefault(each.layer, UNREACHED)
    measurable = {layer.name: layer for layer in layers if layer.name not in left}
    kept = [each for each in normalizations if each.layer not in left]
    activation = activation_of((flat, original), program.outputs[0])
    return Network(program, measurable, kept, left, dependencies, graph, activation)


def _flat(program: Program, trust: bool) -> Program:
    """Refuse forbidden ops; return the `Program` with a flat graph and only the needed inputs."""
    fetched = [op_of(each) for each in (*program.outputs, *program.masks.values())]
    graph_def, inputs = flat_graph.with_placeholders(program.graph_def, program.inputs)
    needed = flat_graph.pruned(graph_def, fetched, program.where)
    initializers: tuple[str, ...] = ()
    if program.initializers and any("Table" in node.op for node in all_nodes(needed)):
        initializers = tuple(map(op_of, program.initializers))
        fetched.extend(initializers)
        needed = flat_graph.pruned(graph_def, fetched, program.where)
    refuse_unlisted(needed, program.where, trust=trust)
    flat = flat_graph.flattened(needed, fetched, program.where)
    for node in flat.node:
        if f"{node.name}:0" in program.settings:
            # Graphs often leave this shape unknown, and with it all shapes that depend on it.
            node.attr["shape"].shape.Clear()
    names = {node.name for node in flat.node}
    inputs = {name: each for name, each in inputs.items() if op_of(each.tensor) in names}
    if not inputs:
        raise BnstatError(program.where, "its outputs depend on none of its inputs")
    fed = {key: value for key, value in program.settings.items() if op_of(key) in names}
    return replace(program, graph_def=flat, inputs=inputs, settings=fed, initializers=initializers)


def activation_of(graph_defs: Iterable[Any], output: str) -> Activation | None:
    """Return the activation that computes an output, or that is applied to logits; or None."""
    for graph_def in graph_defs:
        ops = {node.name: node for node in graph_def.node}
        source = op_of(origins(ops, output, _SAME_VALUES)[-1])
        if source in ops and ops[source].op in _RESULTS:
            return _RESULTS[ops[source].op]
        for node in graph_def.node:
            if node.op not in _LOGITS or not node.input:
                continue
            if op_of(origins(ops, node.input[0], _SAME_VALUES)[-1]) == source:
                return _LOGITS[node.op]
    return None
