"""The tensors in PyTorch's pickles, and NumPy's and JAX's arrays in pickles.

A storage is identified by a persistent id `("storage", TYPE, KEY, DEVICE, COUNT)`. A tensor is what
`torch._utils._rebuild_tensor_v2(STORAGE, OFFSET, SIZE, STRIDE, ...)` returns. bnstat knows only
the functions that build tensors, and containers. Nothing of PyTorch is imported.

One of three calls builds an array; pickles of protocol 5 use `_frombuffer`:

    numpy._core.multiarray._reconstruct(ndarray, ...)
    numpy._core.numeric._frombuffer(bytes, dtype, shape, order)
    jax._src.array._reconstruct_array(_reconstruct, arguments, state, ...)

An array's state is `(version, shape, dtype, is Fortran order, bytes)`. The pickle sets the state
after it calls NumPy's `_reconstruct`. The dtype is `numpy.dtype("f4", ...)`, whose state contains
the byte order, or `numpy.dtype(TYPE)` for ml_dtypes. Before NumPy 2 the modules were `numpy.core`.

Sources: torch/_utils.py, torch/_tensor.py, torch/serialization.py, torch/storage.py;
numpy/_core/src/multiarray/methods.c, `array_reduce_ex`; jax/_src/array.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError
from bnstat.formats.dtypes import (
    as_shape,
    as_sizes,
    bytes_needed,
    dtype_of_descr,
    extents,
    find_dtype,
    numpy_dtype,
)
from bnstat.formats.pytorch.pickled import Global, Opaque, PickleError, bytes_of
from bnstat.storage.files import File, Range

DTYPES: Final = {
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16",
    "IntStorage": "int32", "LongStorage": "int64", "UntypedStorage": "uint8",
    "HalfStorage": "float16", "BFloat16Storage": "bfloat16", "FloatStorage": "float32",
    "DoubleStorage": "float64", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "qint8", "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
}  # fmt: skip
"""Storage class -> name of the type; bnstat does not read types smaller than a byte."""
_RENAMED: Final = {"half": "float16", "float": "float32", "double": "float64"}
"""PyTorch's name of a type -> NumPy's name, for types whose names differ."""
_UNBUILT: Final = Global("torch", "Tensor")


@dataclass(frozen=True, slots=True)
class Storage:
    """A contiguous sequence of elements that tensors are views of.

    Attributes:
        key: the name in the file.
        offset: the index of the first element in the stored bytes. Before PyTorch 1.6, several
            storages can share the same bytes.
    """

    key: str
    dtype: str
    count: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage; offset and strides count elements of `dtype`.

    Attributes:
        quantizer: (scale, zero point, axis) of a quantized tensor; None for other tensors. The
            axis has no meaning if the scale is a number.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    quantizer: tuple[float | Tensor, int | Tensor, int] | None = None

    @property
    def nbytes(self) -> int:
        """The bytes that the tensor takes in the file or in memory, whichever is larger."""
        dtype = find_dtype(self.dtype)
        return 0 if dtype is None else max(prod(self.shape), self.reach) * dtype.itemsize

    @property
    def reach(self) -> int:
        """The number of storage elements from the view's first to last element, both included."""
        if 0 in self.shape:
            return 0
        pairs = zip(self.shape, self.strides, strict=True)
        return 1 + sum((size - 1) * stride for size, stride in pairs)

    def read(self, content: File, is_big_endian: bool, where: str) -> NDArray[np.generic]:
        """Return the elements from the storage's bytes; `where` names the tensor in errors."""
        dtype = numpy_dtype(self.dtype, where)
        size = dtype.itemsize
        start, length = self._start(size), self.reach * size
        if start < 0 or start + length > content.size:
            raise DamagedError(where, f"reaches beyond its storage of {content.size} bytes")
        data = content.read(start, length)
        pairs = zip(self.shape, self.strides, strict=True)
        strides = [stride * size if count > 1 else 0 for count, stride in pairs] if length else None
        view: NDArray[np.generic] = np.ndarray(self.shape, dtype, data, 0, strides)
        array = view.astype(dtype, order="C")
        return array if is_big_endian == (sys.byteorder == "big") else array.byteswap()

    def extents(self, content: File, is_big_endian: bool) -> Sequence[Range]:
        """Return the extents; empty if the dtype or offset is invalid. See `Variable.extents`."""
        dtype = find_dtype(self.dtype)
        if dtype is None or self._start(dtype.itemsize) < 0:
            return ()
        is_plain, expected = not is_big_endian and self.quantizer is None, 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            is_plain &= size == 1 or stride == expected
            expected *= size
        start, length = self._start(dtype.itemsize), self.reach * dtype.itemsize
        return extents(content, start, length, dtype if is_plain else None, self.shape)

    def _start(self, itemsize: int) -> int:
        return (self.storage.offset + self.offset) * itemsize


def storage_of(persistent_id: Any) -> Storage | Global:
    """Return the storage that a persistent id names, or the class of a module (before 1.6)."""
    match persistent_id:
        case ("storage", Global(_, kind), str(key), _, int(count), *view) if (
            kind in DTYPES and key.isascii()
        ):
            offset = 0
            match view:
                case [(_, int(first), int(size))]:  # of files before PyTorch 1.6
                    offset, count = first, size
            return Storage(key, DTYPES[kind], count, offset)
        case ("module", Global() as kind, *_):
            return kind
    raise PickleError("a persistent id does not name a storage")


def call(function: Global, arguments: tuple[Any, ...]) -> Any:
    """Return what a known function or class would build; return an `Opaque` for an unknown one."""
    build = _KNOWN.get(function)
    if build is None:
        return Opaque(function, arguments)
    try:
        return build(*arguments)
    except TypeError as error:
        raise PickleError(f"{function} is called with invalid arguments") from error


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    if not isinstance(storage, Storage):
        return Opaque(_UNBUILT)
    dtype = storage.dtype
    match rest:
        case (_, _, Global("torch", name), *_):  # of `_rebuild_tensor_v3`
            dtype = _RENAMED.get(name, name)
    shape, strides = as_shape(size), as_sizes(stride)
    if type(offset) is not int or offset < 0 or shape is None or strides is None:
        raise PickleError("a tensor has an invalid shape")
    if len(shape) != len(strides):
        raise PickleError("a tensor's strides do not match its dimensions")
    return Tensor(storage, dtype, offset, shape, strides)


def _quantized(storage: Any, offset: Any, size: Any, stride: Any, quantizer: Any, *_: Any) -> Any:
    tensor = _tensor(storage, offset, size, stride)
    match quantizer:
        case (Global("torch", _), float(scale), int(zero)) if abs(zero) < 1 << 31:
            return replace(tensor, quantizer=(scale, zero, 0))
        case (Global("torch", _), Tensor() as scales, Tensor() as zeros, int(axis)):
            return replace(tensor, quantizer=(scales, zeros, axis))
    return Opaque(_UNBUILT)


def _first(value: Any = None, *_: Any) -> Any:
    return value


def _from_type(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    if isinstance(function, Global) and isinstance(arguments, tuple) and function in _TENSORS:
        return _TENSORS[function](*arguments)
    return Opaque(_UNBUILT)


def _dict(*arguments: Any) -> dict[Any, Any]:
    """Return the dict that a dict class would build from a dict or a list of pairs."""
    pairs = arguments[-1] if arguments else ()
    if not isinstance(pairs, list | tuple):
        return dict(pairs) if isinstance(pairs, dict) else {}
    return {
        pair[0]: pair[1]
        for pair in pairs
        if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str | int)
    }


def _encoded(text: Any, encoding: Any = "utf-8", *_: Any) -> Any:
    """Return the bytes that a pickle before protocol 3 stores as a string."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        return Opaque(Global("_codecs", "encode"))
    return text.encode(encoding)


def _bytes(*arguments: Any) -> Any:
    return Opaque(Global("builtins", "bytes"), arguments) if arguments else b""


def _sequence(*arguments: Any) -> Any:
    return arguments[0] if arguments and isinstance(arguments[0], list | tuple) else ()


_TENSORS: Final[Mapping[Global, Callable[..., Any]]] = {
    Global("torch._utils", "_rebuild_tensor"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v3"): _tensor,
    Global("torch._utils", "_rebuild_qtensor"): _quantized,
    Global("torch._utils", "_rebuild_parameter"): _first,
    Global("torch._utils", "_rebuild_parameter_with_state"): _first,
}
_KNOWN: Final[Mapping[Global, Callable[..., Any]]] = {
    **_TENSORS,
    Global("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    Global("torch.nn.parameter", "Parameter"): _first,
    Global("torch", "Size"): _sequence,
    Global("_codecs", "encode"): _encoded,
    Global("collections", "OrderedDict"): _dict,
    Global("collections", "defaultdict"): _dict,
    **{
        Global(module, name): function
        for module in ("builtins", "__builtin__")
        for name, function in (("bytes", _bytes), ("dict", _dict), ("set", _sequence))
    },
}


_RECONSTRUCT: Final = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_FROM_BUFFER: Final = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
_JAX: Final = ("jax._src.array._reconstruct_array", "jax._src.array._reconstruct_device_array")
BUILDERS: Final = (*_RECONSTRUCT, *_FROM_BUFFER, *_JAX)
"""The functions that rebuild arrays."""


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """An array whose elements are in the pickle.

    Attributes:
        stored: the dtype of the stored bytes, with the byte order.
        order: "C" if the last index varies fastest in the bytes, "F" if the first does.
    """

    stored: np.dtype[np.generic]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    data: bytes

    @property
    def nbytes(self) -> int:
        return len(self.data)

    @property
    def dtype(self) -> str:
        return self.stored.name

    def read(self, where: str) -> NDArray[np.generic]:
        """Return the elements; `where` names the array in errors."""
        if len(self.data) != bytes_needed(self.shape, self.stored):
            reason = f"the {len(self.data)} bytes of this array do not fit its shape"
            raise DamagedError(where, reason)
        array = np.frombuffer(self.data, self.stored).reshape(self.shape, order=self.order)
        return array.astype(self.stored.newbyteorder("="), order="C")


def array_of(value: Opaque) -> Array | None:
    """Return the numeric array that a pickled call builds; None if it builds something else."""
    name = str(value.kind)
    state: Any = None
    match value.arguments:
        case (data, dtype, shape, order) if name in _FROM_BUFFER:
            state = (shape, dtype, order == "F", data)
        case (_, _, inner, *_) if name in _JAX:
            state = inner
        case _ if name in _RECONSTRUCT:
            state = value.state
    match state:
        case (int(), sizes, kind, bool(is_fortran), data) | (sizes, kind, bool(is_fortran), data):
            dtype, shape = _dtype(kind), as_shape(sizes)
            content = bytes_of(data) if isinstance(data, str) else data
            if dtype is not None and shape is not None and isinstance(content, bytes):
                return Array(dtype, shape, "F" if is_fortran else "C", content)
    return None


def _dtype(value: Any) -> np.dtype[np.generic] | None:
    """Return the dtype that a pickled `numpy.dtype` describes; None if it is not numeric."""
    if not isinstance(value, Opaque) or str(value.kind) != "numpy.dtype" or not value.arguments:
        return None
    name = value.arguments[0]
    if isinstance(name, Global):
        return find_dtype(name.name) if name.module == "ml_dtypes" else None
    dtype = dtype_of_descr(name) if isinstance(name, str) else None
    if dtype is None or dtype.kind not in "biufc":
        return None
    is_big = isinstance(value.state, tuple) and value.state[1:2] == (">",)
    return dtype.newbyteorder(">" if is_big else "<")
