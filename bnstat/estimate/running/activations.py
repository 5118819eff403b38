"""The function that a model's output is the result of, or the input of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

from bnstat.estimate.running.flat_graph import op_of

Activation = Literal["softmax", "sigmoid", "tanh", "logits of softmax", "logits of sigmoid"]

_FUNCTIONS: Final[dict[str, Activation]] = {
    "Softmax": "softmax",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
}
_APPLIED: Final[dict[str, Activation]] = {
    "Softmax": "logits of softmax",
    "LogSoftmax": "logits of softmax",
    "SoftmaxCrossEntropyWithLogits": "logits of softmax",
    "SparseSoftmaxCrossEntropyWithLogits": "logits of softmax",
    "Sigmoid": "logits of sigmoid",
}
_SAME_VALUES: Final = frozenset(
    {"Cast", "ExpandDims", "Identity", "IdentityN", "Reshape", "Snapshot", "Squeeze"}
)


def activation_of(graph_defs: Iterable[Any], output: str) -> Activation | None:
    """Return the function that an output is the result of, or otherwise the input of.

    Args:
        graph_defs: graphs to look into, the strongest first; only their outermost ops count.
        output: a tensor.
    """
    for graph_def in graph_defs:
        ops = {node.name: node for node in graph_def.node}
        source = _source(ops, output)
        if source in ops and ops[source].op in _FUNCTIONS:
            return _FUNCTIONS[ops[source].op]
        for node in graph_def.node:
            if node.op in _APPLIED and node.input and _source(ops, node.input[0]) == source:
                return _APPLIED[node.op]
    return None


def _source(ops: dict[str, Any], tensor: str) -> str:
    """Return the op that computes the values of a tensor, whatever reshapes them."""
    name = op_of(tensor)
    seen = set()
    while name in ops and ops[name].op in _SAME_VALUES and name not in seen:
        seen.add(name)
        name = op_of(ops[name].input[0])
    return name
