"""Evaluation of the nodes of an ONNX graph that depend only on constants.

Exporters write a vector of ones as `ConstantOfShape`, broadcast a scalar with `Expand`, or leave
arithmetic on initializers to the runtime. Nodes that only pass on a stored tensor (`Identity`,
`Cast`, `Reshape`) are not replaced, because only a stored tensor has bytes that `apply` can change.

Source: docs/Operators.md of ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from math import prod
from typing import Final

import numpy as np

from bnstat.errors import BnstatError
from bnstat.formats.dtypes import find_dtype
from bnstat.formats.onnx.graphs import DTYPES, TENSOR, Inlined, NodeOp, numbers_in, read_array
from bnstat.model import Array

_MAX_ELEMENTS: Final = 1 << 14
"""The maximum number of elements of an evaluated tensor; batch norm has one for each channel."""
_MAX_TOTAL: Final = 1 << 22
"""The maximum number of elements of all evaluated tensors of a model."""
_MAX_DEPTH: Final = 50
_FILLS: Final = frozenset({"ConstantOfShape", "Expand"})
_FORWARDS: Final = frozenset({"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze"})


def evaluate(inlined: Inlined) -> None:
    """Evaluate the nodes that depend only on constants, and replace each by its result.

    An arithmetic node is replaced only if another kind of operator, such as `BatchNormalization`,
    uses the result. Batch norm that is written as arithmetic thus stays recognizable.
    """
    other_inputs = {
        tensor for op in inlined.ops.values() if op.type not in _OPERATORS for tensor in op.inputs
    }
    evaluation = _Evaluation(inlined)
    results = [
        (op, evaluation.value(op.name))
        for op in inlined.ops.values()
        if op.type in _FILLS
        or (op.type in _OPERATORS and op.name in other_inputs and _is_computed(inlined, op.name))
    ]
    for op, array in results:
        if array is not None and array.dtype.kind == "f":
            inlined.compute(op.name, op.node.output[0], array)


def _is_computed(inlined: Inlined, name: str) -> bool:
    """Return True for a computed tensor. Casts and reshapes of a stored tensor do not count."""
    for _ in range(_MAX_DEPTH):
        op = inlined.ops.get(name)
        if op is None or op.type == "Const":
            return False
        if op.type not in _FORWARDS:
            return True
        name = op.inputs[0] if op.inputs else ""
    return False


class _Evaluation:
    def __init__(self, inlined: Inlined) -> None:
        self._inlined = inlined
        self._results: dict[str, Array | None] = {}
        self._left = _MAX_TOTAL

    def value(self, tensor: str, depth: int = 0) -> Array | None:
        """Return the values of a tensor; None if it is too large or cannot be evaluated."""
        if tensor in self._results:
            return self._results[tensor]
        self._results[tensor] = array = None
        # A node that cannot be evaluated stays a node.
        with suppress(BnstatError, ValueError, TypeError, LookupError, ArithmeticError):
            op = self._inlined.ops[tensor]
            if op.type == "Const":
                array = self._inlined.constant(tensor, _MAX_ELEMENTS)
            elif depth <= _MAX_DEPTH:
                operator = _OPERATORS[op.type]
                inputs = [self.value(name, depth + 1) for name in op.inputs]
                if all(array is not None for array in inputs):
                    with np.errstate(all="ignore"):
                        array = operator(op, self._inlined, *inputs)
        if array is not None and array.size <= _MAX_ELEMENTS:
            self._left -= array.size
            self._results[tensor] = array if self._left >= 0 else None
        return self._results[tensor]


def _sizes(array: Array) -> tuple[int, ...]:
    """Convert a tensor's values to a shape; raise a ValueError for an invalid or huge shape."""
    sizes = tuple(int(size) for size in array.ravel().tolist())
    if array.dtype.kind not in "iu" or len(sizes) > 32 or min(sizes, default=0) < -1:
        raise ValueError("not a shape")
    if prod(map(abs, sizes)) > _MAX_ELEMENTS:
        raise ValueError("too many elements")
    return sizes


def _constant_of_shape(op: NodeOp, inlined: Inlined, shape: Array) -> Array:
    tensor = inlined.message(op.find("value"), TENSOR)
    value = np.zeros(1, np.float32) if tensor is None else read_array(inlined.file, tensor)
    return np.full(_sizes(shape), value.reshape(-1)[0], value.dtype)


def _expand(op: NodeOp, inlined: Inlined, x: Array, shape: Array) -> Array:
    sizes = np.broadcast_shapes(x.shape, _sizes(shape))
    if x.size == prod(sizes) or prod(sizes) > _MAX_ELEMENTS:
        raise ValueError("nothing to expand, or too many elements")
    return np.broadcast_to(x, sizes).copy()


def _cast(op: NodeOp, inlined: Inlined, x: Array) -> Array:
    code = op.attribute("to")
    dtype = find_dtype(DTYPES[code]) if isinstance(code, int) and code in DTYPES else None
    if dtype is None:
        raise ValueError("not a numeric type")
    return x.astype(dtype)


def _reshape(op: NodeOp, inlined: Inlined, x: Array, shape: Array) -> Array:
    sizes = _sizes(shape)
    if not op.attribute("allowzero"):
        sizes = tuple(size or x.shape[axis] for axis, size in enumerate(sizes))
    return x.reshape(sizes)


def _axes(op: NodeOp, inlined: Inlined, name: str, *inputs: Array) -> tuple[int, ...] | None:
    """Return the axes from the optional input or the attribute `name`; None if none are given."""
    numbers = inputs[0] if inputs else numbers_in(inlined.file, op.find(name))
    return None if numbers is None else tuple(map(int, numbers.ravel().tolist())) or None


def _concat(op: NodeOp, inlined: Inlined, *parts: Array) -> Array:
    if sum(part.size for part in parts) > _MAX_ELEMENTS:
        raise ValueError("too many elements")
    return np.concatenate(parts, int(op.attribute("axis") or 0))


def _elementwise(function: Callable[..., Array]) -> Callable[..., Array]:
    def apply(op: NodeOp, inlined: Inlined, *arrays: Array) -> Array:
        if prod(np.broadcast_shapes(*(array.shape for array in arrays))) > _MAX_ELEMENTS:
            raise ValueError("too many elements")
        # ONNX broadcasts like NumPy, but never promotes.
        return np.asarray(function(*arrays)).astype(arrays[0].dtype)

    return apply


def _divide(x: Array, y: Array) -> Array:
    if x.dtype.kind != "f":
        raise ValueError("ONNX and NumPy round quotients of integers differently")
    return np.asarray(np.true_divide(x, y))


_OPERATORS: Final[Mapping[str, Callable[..., Array]]] = {
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Identity": lambda op, inlined, x: x,
    "Cast": _cast,
    "Reshape": _reshape,
    "Squeeze": lambda op, inlined, x, *axes: np.squeeze(x, _axes(op, inlined, "axes", *axes)),
    "Unsqueeze": lambda op, inlined, x, *axes: np.expand_dims(
        x, _axes(op, inlined, "axes", *axes) or ()
    ),
    "Transpose": lambda op, inlined, x: np.transpose(x, _axes(op, inlined, "perm")),
    "Concat": _concat,
    "Shape": lambda op, inlined, x: np.array(x.shape, np.int64),
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Div": _elementwise(_divide),
    "Neg": _elementwise(np.negative),
    "Sqrt": _elementwise(np.sqrt),
    "Reciprocal": _elementwise(np.reciprocal),
}
"""Operator -> the function that evaluates it, given the node, the graph and the inputs."""
