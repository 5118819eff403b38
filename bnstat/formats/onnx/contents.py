"""The contents of an ONNX file: the initializers and constants, and the graph.

The key of a tensor is its name in the file; `#2` is appended if a nested graph repeats a name.

Exporters write a vector of ones as `ConstantOfShape`, broadcast a scalar with `Expand`, or leave
arithmetic on initializers to the runtime. Such tensors are evaluated here, up to a limit, and are
constants in the graph. A chain that only passes a stored tensor on (`Identity`, `Cast`, `Reshape`)
stays as it is, because the stored tensor is the one that can be shown and written.

Source: docs/Operators.md of ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import BnstatError, UnsupportedError
from bnstat.formats.contents import Contents, Graph
from bnstat.formats.dtypes import ONNX, find_dtype
from bnstat.formats.onnx.graphs import Inlined, NodeOp, constant, inline
from bnstat.formats.onnx.messages import Model, Tensor, find_array, read_array, read_model
from bnstat.formats.protobuf.wire import LARGEST_MESSAGE, Window, WireError, damaged
from bnstat.model import Source, Variable
from bnstat.storage.files import File

Array = NDArray[np.generic]

_MAX_ELEMENTS: Final = 1 << 14
"""Elements of a tensor that is evaluated; batch norm has one for each channel."""

_MAX_TOTAL: Final = 1 << 22
"""Elements of all tensors that are evaluated for a model."""

_MAX_SMALL: Final = 1 << 12
"""Elements of a tensor that can be part of a graph's structure, such as a shape."""

_MAX_DEPTH: Final = 50
"""The longest chain of operators that is evaluated."""

_FILLS: Final = frozenset({"ConstantOfShape", "Expand"})
_FORWARDS: Final = frozenset({"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze"})


def evaluate(inlined: Inlined, file: File) -> None:
    """Replace nodes that depend only on constants by constants.

    Arithmetic is evaluated only if another kind of operator takes its result, so that a
    normalization composed of arithmetic operators stays recognizable.
    """
    evaluation = _Evaluation(inlined, file)
    arrays = {name: evaluation.value(name) for name in evaluation.targets()}
    for name, array in arrays.items():
        op = inlined.ops[name]
        if array is not None and array.dtype.kind == "f" and isinstance(op, NodeOp):
            inlined.compute(name, op.node.outputs[0], array)


class _Evaluation:
    """Evaluates the nodes of a model, each once."""

    def __init__(self, inlined: Inlined, file: File) -> None:
        self._inlined = inlined
        self._file = file
        self._results: dict[str, Array | None] = {}
        self._left = _MAX_TOTAL

    def targets(self) -> list[str]:
        """Return the names of the nodes whose results should become constants."""
        ops = self._inlined.ops
        other_inputs = {
            tensor for op in ops.values() if op.type not in _OPERATORS for tensor in op.inputs
        }
        return [
            op.name
            for op in ops.values()
            if op.type in _FILLS
            or (op.type in _OPERATORS and op.name in other_inputs and self._is_computed(op.name))
        ]

    def value(self, tensor: str, depth: int = 0) -> Array | None:
        """Return a tensor's numbers; None if it depends on an input, or has too many elements."""
        if tensor not in self._results:
            self._results[tensor] = None
            # A node that cannot be evaluated stays a node.
            with suppress(
                BnstatError, WireError, ValueError, TypeError, LookupError, ArithmeticError
            ):
                self._results[tensor] = self._evaluated(tensor, depth)
        return self._results[tensor]

    def _is_computed(self, name: str) -> bool:
        """Return False if a node only passes on a tensor that the file stores."""
        for _ in range(_MAX_DEPTH):
            op = self._inlined.ops.get(name)
            if op is None or op.type == "Const":
                return False
            if op.type not in _FORWARDS:
                return True
            name = op.inputs[0] if op.inputs else ""
        return False

    def _evaluated(self, tensor: str, depth: int) -> Array | None:
        op = self._inlined.ops.get(tensor)
        if op is None or depth > _MAX_DEPTH:
            return None
        if op.type == "Const":
            return self._bounded(constant(self._inlined, self._file, tensor, _MAX_ELEMENTS))
        operator = _OPERATORS.get(op.type)
        if operator is None or not isinstance(op, NodeOp):
            return None
        inputs = [self.value(name, depth + 1) for name in op.inputs]
        arrays = [array for array in inputs if array is not None]
        if len(arrays) != len(inputs):
            return None
        with np.errstate(all="ignore"):
            return self._bounded(operator(op, self._file, *arrays))

    def _bounded(self, array: Array | None) -> Array | None:
        if array is None or array.size > _MAX_ELEMENTS:
            return None
        self._left -= array.size
        return array if self._left >= 0 else None


def _sizes(array: Array) -> tuple[int, ...]:
    """Convert a tensor's values to a shape.

    Raises:
        ValueError: the values are not a valid shape, or the shape has too many elements.
    """
    sizes = tuple(int(size) for size in array.ravel().tolist())
    if array.dtype.kind not in "iu" or len(sizes) > 32 or min(sizes, default=0) < -1:
        raise ValueError("not a shape")
    count = 1
    for size in sizes:
        count *= abs(size)
        if count > _MAX_ELEMENTS:
            raise ValueError("too many elements")
    return sizes


def _constant_of_shape(op: NodeOp, file: File, shape: Array) -> Array:
    attribute = op.find("value")
    tensor = None if attribute is None else attribute.tensor
    value = np.zeros(1, np.float32) if tensor is None else read_array(file, tensor)
    return np.full(_sizes(shape), value.reshape(-1)[0], value.dtype)


def _expand(op: NodeOp, file: File, x: Array, shape: Array) -> Array:
    sizes = np.broadcast_shapes(x.shape, _sizes(shape))
    if x.size == prod(sizes) or prod(sizes) > _MAX_ELEMENTS:
        raise ValueError("passes its input on, or has too many elements")
    return np.broadcast_to(x, sizes).copy()


def _cast(op: NodeOp, file: File, x: Array) -> Array:
    code = op.attribute("to")
    dtype = find_dtype(ONNX[code]) if isinstance(code, int) and code in ONNX else None
    if dtype is None:
        raise ValueError("not a numeric type")
    return x.astype(dtype)


def _reshape(op: NodeOp, file: File, x: Array, shape: Array) -> Array:
    sizes = _sizes(shape)
    if not op.attribute("allowzero"):
        sizes = tuple(size or x.shape[axis] for axis, size in enumerate(sizes))
    return x.reshape(sizes)


def _axes(op: NodeOp, axes: Sequence[Array]) -> tuple[int, ...]:
    """Return an operator's axes: an input since opset 13, an attribute in older opsets."""
    return _integers(axes[0] if axes else op, "axes")


def _integers(source: NodeOp | Array, name: str) -> tuple[int, ...]:
    """Return the integers in an array, or in the attribute `name` of an op."""
    if isinstance(source, NodeOp):
        attribute = source.find(name)
        numbers = None if attribute is None else attribute.numbers
    else:
        numbers = source
    return () if numbers is None else tuple(int(number) for number in numbers.ravel().tolist())


def _squeeze(op: NodeOp, file: File, x: Array, *axes: Array) -> Array:
    return np.squeeze(x, _axes(op, axes) or None)


def _unsqueeze(op: NodeOp, file: File, x: Array, *axes: Array) -> Array:
    return np.expand_dims(x, _axes(op, axes))


def _transpose(op: NodeOp, file: File, x: Array) -> Array:
    return np.transpose(x, _integers(op, "perm") or None)


def _concat(op: NodeOp, file: File, *parts: Array) -> Array:
    if sum(part.size for part in parts) > _MAX_ELEMENTS:
        raise ValueError("too many elements")
    return np.concatenate(parts, int(op.attribute("axis") or 0))


def _shape(op: NodeOp, file: File, x: Array) -> Array:
    return np.array(x.shape, np.int64)


def _elementwise(function: Callable[..., Array]) -> Callable[..., Array]:
    def apply(op: NodeOp, file: File, *arrays: Array) -> Array:
        if prod(np.broadcast_shapes(*(array.shape for array in arrays))) > _MAX_ELEMENTS:
            raise ValueError("too many elements")
        # ONNX broadcasts like NumPy, but never promotes.
        return np.asarray(function(*arrays)).astype(arrays[0].dtype)

    return apply


def _divide(x: Array, y: Array) -> Array:
    if x.dtype.kind != "f":
        raise ValueError("integer division follows other rules")
    result: Array = np.true_divide(x, y)
    return result


_OPERATORS: Final[Mapping[str, Callable[..., Array]]] = {
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Identity": lambda op, file, x: x,
    "Cast": _cast,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Shape": _shape,
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Div": _elementwise(_divide),
    "Neg": _elementwise(np.negative),
    "Sqrt": _elementwise(np.sqrt),
    "Reciprocal": _elementwise(np.reciprocal),
}
"""Operator -> the function that evaluates it, given the node, the file and the inputs."""


def contents_of(file: File, source: Source) -> Contents:
    """Return the tensors and the graph of an ONNX file.

    Raises:
        DamagedError: the file is truncated or inconsistent.
        UnsupportedError: the file is too large, or nested too deeply.
    """
    if file.size >= LARGEST_MESSAGE:
        raise UnsupportedError(file.path, "is larger than an ONNX file can be")
    try:
        model = read_model(Window(file))
        inlined = inline(model, file.path)
        evaluate(inlined, file)
    except WireError as error:
        raise damaged(file.path, "the model", error) from error
    except UnicodeDecodeError as error:
        raise damaged(file.path, "a name", WireError(error)) from error
    variables = {}
    keys = {}
    for name, (_, key, value) in inlined.constants.items():
        # Converters keep the `:0` of TensorFlow's names.
        plain_name = key.removesuffix(":0")
        if isinstance(value, Tensor):
            reader, finder = partial(read_array, file, value), partial(find_array, file, value)
            if value.shape is None:
                continue
            variable = Variable(key, plain_name, value.dtype, value.shape, reader, finder)
        elif value.ndim:
            variable = Variable(key, plain_name, value.dtype.name, value.shape, value.copy)
        else:
            continue
        variables[key], keys[name] = variable, key
    small = partial(constant, inlined, file, largest=_MAX_SMALL)
    graph = Graph("", inlined.ops, keys, small)
    return Contents(
        replace(source, format="onnx", writer=_writer(model)),
        variables,
        names={key: variable.name for key, variable in variables.items()},
        graphs=lambda: (graph,),
    )


def _writer(model: Model) -> str | None:
    opset = f"(opset {model.opset})" if model.opset is not None else ""
    return " ".join(part for part in (model.producer, opset) if part) or None
