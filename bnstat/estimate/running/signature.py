"""Which tensors of a graph are fed and which one is the answer, where the user has a say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bnstat.errors import AmbiguousError, NotFoundError
from bnstat.estimate.running.allowed_ops import refuse_evaluated
from bnstat.estimate.running.flat_graph import PLACEHOLDERS, Input, op_of, pruned, upstream
from bnstat.estimate.running.runner import imported

_FED = PLACEHOLDERS | {"PlaceholderWithDefault"}
_LOSSES = frozenset({"SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits"})
_NO_ANSWER = re.compile(
    r"NoOp|Placeholder.*|Const|Assert|VarHandleOp|.*Assign.*|.*Apply.*|.*Save.*"
)


@dataclass(frozen=True)
class Chosen:
    """What the user says of a model's inputs and outputs.

    Attributes:
        inputs: names, or tensors of the graph; empty where all of them are meant.
        outputs: likewise; the first is the answer of a classifier.
        feeds: name of a placeholder, or of an input, that takes no data -> the one value of it.
        signature: the name of a SavedModel's signature; the one that is served, if None.
        trust: allow ops that are not on the list of allowed ops.
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    feeds: Mapping[str, Any] = field(default_factory=dict)
    signature: str | None = None
    trust: bool = False

    def inputs_of(
        self, there: Mapping[str, Input], graph_def: Any, where: str
    ) -> Mapping[str, Input]:
        """The inputs of those names, or tensors of the graph.

        Raises:
            NotFoundError: there is none of a name.
        """
        if not self.inputs:
            return there
        by_name = {node.name: node for node in graph_def.node}
        _known([each for each in self.inputs if op_of(each) not in by_name], there, where, "input")
        return {
            name: there[name] if name in there else _input(name, graph_def, where, self.trust)
            for name in self.inputs
        }

    def parted(
        self, inputs: Mapping[str, Input], graph_def: Any, where: str
    ) -> tuple[Mapping[str, Input], Mapping[str, Any]]:
        """The inputs that take data, and the values of what takes none, by their tensors.

        Placeholders of a single bool switch training on, and are off unless `feeds` says so.

        Raises:
            NotFoundError: there is no placeholder of a name in `feeds`.
            AmbiguousError: an input takes a single number, which nobody tells.
        """
        placeholders = {node.name: node for node in graph_def.node if node.op in _FED}
        _known(
            [op_of(name) for name in self.feeds if name not in inputs],
            placeholders,
            where,
            "placeholder",
        )
        settings: dict[str, Any] = {
            f"{name}:0": False for name, node in placeholders.items() if _is_switch(node)
        }
        for name, value in self.feeds.items():
            settings[inputs[name].tensor if name in inputs else f"{op_of(name)}:0"] = value
        data = {name: one for name, one in inputs.items() if one.tensor not in settings}
        for name, one in data.items():
            if one.shape == () and name not in self.inputs:
                raise AmbiguousError(
                    where,
                    f"its placeholder {name!r} takes a single number",
                    f"say which, such as --feed {name}=1",
                )
        return data, settings

    def outputs_of(self, there: Mapping[str, str], graph_def: Any, where: str) -> Mapping[str, str]:
        """The outputs of those names, or tensors of the graph.

        Raises:
            NotFoundError: there is none of a name.
        """
        if not self.outputs:
            return there
        ops = {node.name for node in graph_def.node}
        _known([each for each in self.outputs if op_of(each) not in ops], there, where, "output")
        return {name: there.get(name, _full(name)) for name in self.outputs}


def obvious(
    graph_def: Any, chosen: Chosen, where: str
) -> tuple[Mapping[str, Input], Mapping[str, str]]:
    """The inputs and outputs of a graph without a signature.

    Outputs are the logits of a loss, or what nothing else takes; inputs are the placeholders that
    they depend on.

    Raises:
        AmbiguousError: there is no one answer, and the user has not said it.
        NotFoundError: there is no op of a name that the user says.
    """
    by_name = {node.name: node for node in graph_def.node}
    for kind, names in (("input", chosen.inputs), ("output", chosen.outputs)):
        _known(map(op_of, names), by_name, where, kind)
    outputs = list(chosen.outputs) or _answers(graph_def, chosen.inputs)
    if not outputs:
        hint = "name --answer" if chosen.inputs else "name --input, and --answer"
        raise AmbiguousError(where, "no op of the graph is obviously its answer", hint)
    reached = upstream(graph_def, map(op_of, outputs))
    fed = {op_of(name) for name in chosen.feeds}
    inputs = list(chosen.inputs) or [
        name
        for name, node in by_name.items()
        if name in reached - fed and node.op in PLACEHOLDERS and _is_data(node)
    ]
    if not inputs:
        raise AmbiguousError(
            where, f"nothing is fed to {', '.join(outputs[:3])}", "name --input, and --answer"
        )
    return (
        {name: _input(name, graph_def, where, chosen.trust) for name in inputs},
        {name: _full(name) for name in outputs},
    )


def unknown_shape(message: Any) -> bool:
    """Whether a `TensorShapeProto` leaves even the rank open."""
    return bool(message.unknown_rank)


def _known(names: Iterable[str], there: Iterable[str], where: str, kind: str) -> None:
    for name in names:
        if name not in there:
            listed = ", ".join(list(there)[:5])
            hint = f"there are: {listed}" + ("; -o names a file" if kind == "output" else "")
            raise NotFoundError(where, f"the model has no {kind} {name!r}", hint)


def _answers(graph_def: Any, inputs: Iterable[str]) -> list[str]:
    """What a loss compares with labels; else what is computed of data for no other op."""
    fed = set(map(op_of, inputs)) or {
        node.name for node in graph_def.node if node.op in PLACEHOLDERS and _is_data(node)
    }
    compared = [node.input[0] for node in graph_def.node if node.op in _LOSSES]
    if not compared:
        taken = {op_of(tensor) for node in graph_def.node for tensor in node.input}
        compared = [
            node.name
            for node in graph_def.node
            if node.name not in taken and not _NO_ANSWER.match(node.op)
        ]
    return [tensor for tensor in compared if upstream(graph_def, [op_of(tensor)]) & fed]


def _is_data(node: Any) -> bool:
    """Whether a placeholder is for data: not a switch, which is a single bool."""
    from tensorflow.core.framework import types_pb2

    return bool(node.attr["dtype"].type != types_pb2.DT_BOOL)


def _is_switch(node: Any) -> bool:
    """Whether a placeholder is of a single bool."""
    return not _is_data(node) and not node.attr["shape"].shape.dim


def _input(name: str, graph_def: Any, where: str, trust: bool) -> Input:
    """Return what is fed at a tensor of a graph, be it a placeholder or any other."""
    import tensorflow as tf

    node = next(node for node in graph_def.node if node.name == op_of(name))
    if node.op not in _FED:
        graph_def = pruned(graph_def, [node.name], where)
        refuse_evaluated(graph_def, name, where, trust=trust)
        try:
            tensor = imported(graph_def, where).get_tensor_by_name(_full(name))
        except (KeyError, ValueError):
            raise NotFoundError(where, f"its graph has no tensor {name!r}") from None
        sizes = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
        return Input(tensor.name, tensor.dtype.base_dtype.name, sizes)
    shape = node.attr["shape"].shape
    known = "shape" in node.attr and not unknown_shape(shape)
    sizes = tuple(None if dim.size < 0 else dim.size for dim in shape.dim) if known else None
    return Input(_full(name), tf.as_dtype(node.attr["dtype"].type).name, sizes)


def _full(tensor: str) -> str:
    return tensor if ":" in tensor else f"{tensor}:0"
