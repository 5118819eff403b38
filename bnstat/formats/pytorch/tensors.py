"""What PyTorch's pickles are made of: storages, and tensors as views of them.

A storage is named by a persistent id `("storage", TYPE, KEY, DEVICE, COUNT)`; a tensor is what
`torch._utils._rebuild_tensor_v2(STORAGE, OFFSET, SIZE, STRIDE, ...)` gives. These functions and
the containers around them are all that is understood; nothing of PyTorch is imported.

Sources: torch/_utils.py, torch/_tensor.py, torch/serialization.py, torch/storage.py.

NumPy's arrays in pickles, JAX's as well: what would rebuild them tells all of them.

    numpy._core.multiarray._reconstruct(ndarray, ...)   then the state (version, shape, dtype,
                                                        whether columns come first, bytes)
    numpy._core.numeric._frombuffer(bytes, dtype, shape, order)             of protocol 5
    jax._src.array._reconstruct_array(_reconstruct, arguments, state, ...)  of the first kind

The dtype is `numpy.dtype("f4", ...)` with its byte order in the state, or `numpy.dtype` of a type
of ml_dtypes. Before NumPy 2 the modules were `numpy.core.*`.

Sources: numpy/_core/src/multiarray/methods.c, `array_reduce_ex`; jax/_src/array.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError
from bnstat.formats.dtypes import (
    TORCH,
    TORCH_STORAGES,
    bytes_needed,
    dtype_of_descr,
    extents,
    find_dtype,
    numpy_dtype,
)
from bnstat.formats.pytorch.pickled import Global, Opaque, PickleError, bytes_of
from bnstat.storage.files import File, Range

_MOST_DIMS: Final = 32


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers.

    Attributes:
        key: the file's name for it.
        dtype: of its elements.
        count: how many it has.
        offset: of its first element in what is called by the key.
    """

    key: str
    dtype: str
    count: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage; offset and strides count elements of `dtype`.

    Attributes:
        quantizer: of a quantized tensor, its scale, what stands for 0, and the axis of these
            where they are tensors.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    quantizer: tuple[float | Tensor, int | Tensor, int] | None = None

    @property
    def nbytes(self) -> int:
        """The bytes that reading takes, in the file or in memory, whichever are more."""
        dtype = find_dtype(self.dtype)
        return 0 if dtype is None else max(prod(self.shape), _reach(self)) * dtype.itemsize


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a storage are: in which file, from where on."""

    file: File
    start: int
    length: int
    is_big_endian: bool = False


def storage_type(kind: Any) -> str | None:
    """The element type of a class of storages; None of any other."""
    return TORCH_STORAGES.get(kind.name) if isinstance(kind, Global) else None


def storage_of(persistent_id: Any) -> Storage | Global:
    """The storage that a persistent id names; or the class, with its source, as files before
    PyTorch 1.6 name those of modules.

    Raises:
        PickleError: it names none.
    """
    match persistent_id:
        case ("storage", Global(_, kind), str(key), _, int(count), *view) if (
            kind in TORCH_STORAGES and key.isascii()
        ):
            offset = 0
            match view:
                case [(_, int(first), int(size))]:  # of files before PyTorch 1.6
                    offset, count = first, size
            return Storage(key, TORCH_STORAGES[kind], count, offset)
        case ("module", Global() as kind, *_):
            return kind
    raise PickleError("a persistent id that names no storage")


def call(function: Global, arguments: tuple[Any, ...]) -> Any:
    """What a function or class gives, of those that are understood; else an `Opaque`."""
    known = _KNOWN.get(function)
    if known is not None:
        try:
            return known(*arguments)
        except TypeError as error:
            raise PickleError(f"{function} is given other arguments than it takes") from error
    return Opaque(function, arguments)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    if not isinstance(storage, Storage):
        return Opaque(Global("torch", "Tensor"))
    dtype = storage.dtype
    if len(rest) > 2 and isinstance(rest[2], Global) and rest[2].module == "torch":
        dtype = TORCH.get(rest[2].name, rest[2].name)
    sizes, strides = _sizes(size), _sizes(stride)
    if type(offset) is not int or offset < 0 or len(sizes) != len(strides):
        raise PickleError("a tensor of no possible shape")
    return Tensor(storage, dtype, offset, sizes, strides)


def _tensor_v2(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    return _tensor(storage, offset, size, stride)


def _quantized(storage: Any, offset: Any, size: Any, stride: Any, quantizer: Any, *_: Any) -> Any:
    tensor = _tensor(storage, offset, size, stride)
    match quantizer:
        case (Global("torch", _), float(scale), int(zero)) if abs(zero) < 1 << 31:
            return replace(tensor, quantizer=(scale, zero, 0))
        case (Global("torch", _), Tensor() as scales, Tensor() as zeros, int(axis)):
            return replace(tensor, quantizer=(scales, zeros, axis))
    return Opaque(Global("torch", "Tensor"))


def _sizes(value: Any) -> tuple[int, ...]:
    is_shape = isinstance(value, tuple | list) and len(value) <= _MOST_DIMS
    if not is_shape or not all(type(size) is int and 0 <= size < 1 << 63 for size in value):
        raise PickleError("a tensor of no possible shape")
    return tuple(value)


def _first(value: Any = None, *_: Any) -> Any:
    return value


def _from_type(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    if isinstance(function, Global) and isinstance(arguments, tuple) and function in _TENSORS:
        return _TENSORS[function](*arguments)
    return Opaque(Global("torch", "Tensor"))


def _dict(*arguments: Any) -> dict[Any, Any]:
    """A dict, of which older pickles list the items."""
    pairs = arguments[-1] if arguments else ()
    if not isinstance(pairs, list | tuple):
        return dict(pairs) if isinstance(pairs, dict) else {}
    return {
        pair[0]: pair[1]
        for pair in pairs
        if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str | int)
    }


def _encoded(text: Any, encoding: Any = "utf-8", *_: Any) -> Any:
    """Bytes, which pickles of before protocol 3 have as text."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        return Opaque(Global("_codecs", "encode"))
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise PickleError("bytes that are none") from error


def _no_bytes(*arguments: Any) -> Any:
    return Opaque(Global("builtins", "bytes"), arguments) if arguments else b""


def _sequence(*arguments: Any) -> Any:
    return arguments[0] if arguments and isinstance(arguments[0], list | tuple) else ()


_TENSORS: Final[Mapping[Global, Callable[..., Any]]] = {
    Global("torch._utils", "_rebuild_tensor"): _tensor_v2,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
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
    Global("__builtin__", "bytes"): _no_bytes,
    Global("builtins", "bytes"): _no_bytes,
    Global("collections", "OrderedDict"): _dict,
    Global("collections", "defaultdict"): _dict,
    Global("builtins", "dict"): _dict,
    Global("__builtin__", "dict"): _dict,
    Global("builtins", "set"): _sequence,
    Global("__builtin__", "set"): _sequence,
}


def read_tensor(tensor: Tensor, place: Place, where: str) -> NDArray[np.generic]:
    """The numbers of a tensor, in its own shape.

    Args:
        tensor: the tensor.
        place: where its storage is.
        where: the tensor's name, for errors.

    Raises:
        DamagedError: it reaches beyond its storage.
        UnsupportedError: its elements are no plain numbers.
    """
    dtype = numpy_dtype(tensor.dtype, where)
    size = dtype.itemsize
    count, reach = prod(tensor.shape), _reach(tensor)
    start = _start(tensor, size)
    if start < 0 or start + reach * size > place.length:
        raise DamagedError(where, f"reaches beyond its storage of {place.length} bytes")
    data = place.file.read(place.start + start, reach * size)
    pairs = zip(tensor.shape, tensor.strides, strict=True)
    strides = [stride * size if length > 1 else 0 for length, stride in pairs] if count else None
    shaped: NDArray[np.generic] = np.ndarray(tensor.shape, _stored(dtype, place), data, 0, strides)
    return shaped.astype(dtype, order="C")


def find_tensor(tensor: Tensor, place: Place) -> Sequence[Range]:
    """Where the numbers of a tensor lie; see `Variable.extents`."""
    dtype = find_dtype(tensor.dtype)
    if dtype is None or _start(tensor, dtype.itemsize) < 0:
        return ()
    is_plain = not place.is_big_endian and _is_row_major(tensor)
    return extents(
        place.file,
        place.start + _start(tensor, dtype.itemsize),
        _reach(tensor) * dtype.itemsize,
        dtype if is_plain else None,
        tensor.shape,
    )


def _start(tensor: Tensor, itemsize: int) -> int:
    """The offset of a tensor's first byte in its storage."""
    return (tensor.storage.offset + tensor.offset) * itemsize


def _reach(tensor: Tensor) -> int:
    """The elements from a view's first to its last."""
    if 0 in tensor.shape:
        return 0
    pairs = zip(tensor.shape, tensor.strides, strict=True)
    return 1 + sum((size - 1) * stride for size, stride in pairs)


def _is_row_major(tensor: Tensor) -> bool:
    """Whether the elements follow each other in the order of their indices."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _stored(dtype: np.dtype[np.generic], place: Place) -> np.dtype[np.generic]:
    if dtype.kind in "iufcb":
        return dtype.newbyteorder(">" if place.is_big_endian else "<")
    return dtype


_RECONSTRUCT: Final = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_FROM_BUFFER: Final = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
_JAX: Final = ("jax._src.array._reconstruct_array", "jax._src.array._reconstruct_device_array")
BUILDERS: Final = (*_RECONSTRUCT, *_FROM_BUFFER, *_JAX)
"""The functions that rebuild arrays."""

_ARRAYS_MOST_DIMS: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """An array whose numbers are in the pickle.

    Attributes:
        stored: the dtype of its bytes, byte order included.
        shape: its shape.
        order: which index comes first in the bytes, the last ("C") or the first.
        data: the bytes.
    """

    stored: np.dtype[np.generic]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    data: bytes

    @property
    def nbytes(self) -> int:
        """The bytes that reading takes."""
        return len(self.data)

    @property
    def dtype(self) -> str:
        """The name of the element type."""
        return self.stored.name

    def read(self, where: str) -> NDArray[np.generic]:
        """The numbers.

        Raises:
            DamagedError: the bytes do not fit the shape; `where` names the array.
        """
        if len(self.data) != bytes_needed(self.shape, self.stored):
            raise DamagedError(where, f"{len(self.data)} bytes do not fit its shape")
        found = np.frombuffer(self.data, self.stored).reshape(self.shape, order=self.order)
        return found.astype(self.stored.newbyteorder("="), order="C")


def array_of(value: Opaque) -> Array | None:
    """The array that an object would have been; None where it would have been none."""
    name = str(value.kind)
    match value.arguments:
        case (data, dtype, shape, order) if name in _FROM_BUFFER:
            return _array(shape, dtype, order == "F", data)
        case (_, _, state, *_) if name in _JAX:
            return _of_state(state)
    return _of_state(value.state) if name in _RECONSTRUCT else None


def _of_state(state: Any) -> Array | None:
    match state:
        case (int(), shape, dtype, bool(is_turned), data) | (shape, dtype, bool(is_turned), data):
            return _array(shape, dtype, is_turned, data)
    return None


def _array(shape: Any, dtype: Any, is_turned: bool, data: Any) -> Array | None:
    stored, data = _dtype(dtype), bytes_of(data)
    if stored is None or data is None or not isinstance(shape, tuple):
        return None
    if len(shape) > _ARRAYS_MOST_DIMS or not all(
        type(n) is int and 0 <= n < 1 << 63 for n in shape
    ):
        return None
    return Array(stored, shape, "F" if is_turned else "C", data)


def _dtype(value: Any) -> np.dtype[np.generic] | None:
    """NumPy's type for numbers; None for objects, texts and records."""
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
