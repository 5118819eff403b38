"""Data from memory, NumPy files and user code, and batches of data that fit a model."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnsupportedError, first_line
from bnstat.formats.dtypes import numpy_dtype
from bnstat.model import Array

UNNAMED = ""  # the name of a single array without a name

LABELS = "labels"
"""The name that the second element of a pair `(x, y)` gets."""

_LEAST_SAMPLES = 2

Arrays = Mapping[str, Array]
"""Name -> array; the samples lie along the first axis."""


@dataclass(frozen=True)
class Input:
    """An input of a model. The dtype is the name of a NumPy dtype, or `string`.

    The shape has None for unknown sizes, and is None if the rank is unknown.
    """

    tensor: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class BatchSource:
    """Data before it is matched with inputs; `samples` is None for data outside memory.

    Each call of `batches` returns all data from the beginning, in batches of any size.
    """

    where: str
    batches: Callable[[], Iterable[Arrays]]
    samples: int | None = None


class Batch(NamedTuple):
    """A batch of `size` samples: `feeds` maps input names to arrays, `labels` are class indices."""

    feeds: Mapping[str, Array]
    labels: Array | None
    size: int


@dataclass
class Data:
    """Up to `most` samples in batches that fit a model. The data can be iterated more than once.

    If the inputs fix the batch size, samples that do not fill the last batch are left out.
    """

    source: BatchSource
    inputs: Mapping[str, Input]
    batch_size: int
    most: int
    labels: str | None = None

    def __post_init__(self) -> None:
        # A size of 0 would take no samples at all.
        sizes = set(filter(None, (each.shape[0] for each in self.inputs.values() if each.shape)))
        self.is_fixed = bool(sizes)
        if len(sizes) == 1:
            (self.batch_size,) = sizes

    def __iter__(self) -> Iterator[Batch]:
        where, count = self.source.where, 0
        for arrays in _of_size(self.source.batches(), self.batch_size, where):
            size = min(len(next(iter(arrays.values()))), self.most - count)
            if self.is_fixed and size < self.batch_size:
                break
            arrays = {name: array[:size] for name, array in arrays.items()}
            labels = None if self.labels is None else self._classes(self.labels, arrays, size)
            names = self._array_names(arrays).items()
            feeds = {name: self._fitted(name, arrays[found]) for name, found in names}
            yield Batch(feeds, labels, size)
            count += size
            if count >= self.most:
                break
        if count < _LEAST_SAMPLES:
            has = "1 sample" if count else "no sample"
            batch = f", and the model takes {self.batch_size} at a time" if self.is_fixed else ""
            raise NotFoundError(where, f"has {has}{batch}: too few for a mean and a variance")

    def _classes(self, name: str, arrays: Arrays, size: int) -> Array:
        """Return the labels as class indices, [samples]; one-hot labels are converted."""
        where = self.source.where
        if name not in arrays:
            raise NotFoundError(where, f"has no array {name!r} for --labels", _list_names(arrays))
        labels = arrays[name].reshape(size, -1)
        if labels.dtype.kind not in "biuf":
            what = f"the labels {name!r} have the dtype {labels.dtype}, which is not numeric"
            raise BnstatError(where, what, "pass the index of each sample's class, counted from 0")
        return np.asarray(labels.argmax(1) if labels.shape[1] > 1 else labels[:, 0])

    def _array_names(self, arrays: Arrays) -> Mapping[str, str]:
        """Return input name -> array name; names may differ if there is one input and one array."""
        missing = [name for name in self.inputs if name not in arrays]
        others = [UNNAMED] if UNNAMED in arrays else [key for key in arrays if key != self.labels]
        if missing and len(self.inputs) == 1 and len(others) == 1:
            return {missing[0]: others[0]}
        if missing:
            hint = f"the model takes {', '.join(self.inputs)}; {_list_names(arrays)}"
            if len(self.inputs) > 1:
                hint += f"; --feed {missing[0]}=VALUE sets an input that takes no data"
            elif others:
                hint += f": {self._renaming(missing[0], others, arrays)}"
            raise NotFoundError(self.source.where, f"has no array named {missing[0]!r}", hint)
        return {name: name for name in self.inputs}

    def _renaming(self, missing: str, others: list[str], arrays: Arrays) -> str:
        """Return a hint: rename the input array to `missing`, or name the labels by --labels."""
        rename = f"rename the input array to {missing}"
        if self.labels is not None:
            return rename
        shape = self.inputs[missing].shape
        unfit = [name for name in others if shape and not _has_shape(arrays[name], shape)]
        labels = unfit[0] if len(others) == 2 and len(unfit) == 1 else None
        condition = f"if {labels} holds" if labels else "if one of them holds"
        return f"{condition} the labels, pass --labels {labels or 'NAME'}; otherwise {rename}"

    def _fitted(self, name: str, array: Array) -> Array:
        dtype_name, shape = self.inputs[name].dtype, self.inputs[name].shape
        has_dtype = f"have the dtype {array.dtype}"
        if shape is not None and not _has_shape(array, shape):
            sizes = ", ".join("any" if size is None else str(size) for size in shape[1:])
            has = ", ".join(map(str, array.shape[1:]))
            raise self._misfit(name, f"have the shape [{has}], but the model takes [{sizes}]")
        if dtype_name == "string":
            if array.dtype.kind not in "SUO":
                raise self._misfit(name, f"{has_dtype}, but the model takes strings")
            return array.astype(object)
        dtype = numpy_dtype(dtype_name, name)
        # The NumPy kind of bfloat16 is "void", like that of raw bytes.
        is_raw = array.dtype.kind == "V" and array.dtype.type == np.void
        is_numeric = array.dtype.kind in "biufV" and not is_raw
        with np.errstate(over="ignore", invalid="ignore"):
            fitted = array.astype(dtype, copy=False) if is_numeric else array
        if not is_numeric or (dtype.kind in "iub" and (fitted != array).any()):
            raise self._misfit(name, f"{has_dtype}, but the model takes {dtype_name}")
        if not (finite := np.isfinite(fitted)).all():
            when = "" if array.dtype == dtype else f" after conversion to {dtype}"
            count = f"{np.count_nonzero(~finite)} of {array.size}"
            what = f"{name}: {count} values are NaN or infinite{when}"
            raise DamagedError(self.source.where, what)
        return fitted

    def _misfit(self, name: str, what: str) -> BnstatError:
        return BnstatError(self.source.where, f"the samples for {name!r} {what}")


class SizedData(Data):
    """Data in memory, with a known number of batches."""

    def __len__(self) -> int:
        return -(-min(self.source.samples or 0, self.most) // self.batch_size)


def _list_names(arrays: Arrays) -> str:
    names = [name for name in arrays if name != UNNAMED]
    return f"it has {', '.join(names[:8])}" if names else "its arrays have no names"


def _has_shape(array: Array, shape: tuple[int | None, ...]) -> bool:
    pairs = zip(array.shape[1:], shape[1:], strict=False)
    return array.ndim == len(shape) and all(size in (None, actual) for actual, size in pairs)


def _of_size(parts: Iterable[Arrays], size: int, where: str) -> Iterator[Arrays]:
    kept: list[Arrays] = []
    count = 0
    for part in parts:
        if kept and _sample_shapes(part) != _sample_shapes(kept[0]):
            what = "its batches differ in the names of arrays or the shapes of samples"
            raise DamagedError(where, what)
        if not part:
            raise DamagedError(where, "contains no arrays")
        if not all(array.ndim for array in part.values()):
            raise BnstatError(where, "a scalar array has no sample axis")
        lengths = {name: len(array) for name, array in part.items()}
        length = min(lengths.values())
        if length != max(lengths.values()):
            listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise DamagedError(where, f"its arrays differ in length: {listed}")
        if not kept and length == size:
            yield part
            continue
        kept.append(part)
        count += length
        while count >= size:
            arrays = joined(kept)
            yield {name: array[:size] for name, array in arrays.items()}
            kept = [{name: array[size:] for name, array in arrays.items()}]
            count -= size
    if count:
        yield joined(kept)


def _sample_shapes(arrays: Arrays) -> Mapping[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in arrays.items()}


def joined(parts: list[Arrays]) -> Arrays:
    """Return name -> array, with the arrays of all parts joined along the first axis."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def source_of_arrays(where: str, arrays: Arrays, names: Sequence[str]) -> BatchSource:
    """Return a source of one batch: the arrays in `names`, or all if the file lacks one of them."""
    arrays = {name: arrays[name] for name in _needed(arrays, names)}
    count = max((len(array) for array in arrays.values() if array.ndim), default=0)
    return BatchSource(where, lambda: [arrays], count)


def open_numpy(path: str, names: Sequence[str]) -> BatchSource:
    """Read an `.npz` or `.npy` file: the arrays in `names`, or all if one of them is missing."""
    from zipfile import BadZipFile

    with open(path, "rb") as file:
        if not file.read(6).startswith((b"PK", b"\x93NUMPY")):
            raise DamagedError(path, "has the name of an .npz or .npy file, but not the contents")
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r")
        if isinstance(loaded, np.ndarray):
            return source_of_arrays(path, {UNNAMED: loaded}, names)
        with loaded:
            chosen = _needed(loaded.files, names)
            members = loaded.zip.infolist()
            # The recorded sizes suffice, because zipfile never unpacks more.
            sizes = {each.filename.removesuffix(".npy"): each.file_size for each in members}
            _refuse_large(path, sum(sizes[name] for name in chosen))
            arrays = {name: loaded[name] for name in chosen}
    except (OSError, ValueError, EOFError, KeyError, SyntaxError, MemoryError, BadZipFile) as error:
        raise DamagedError(path, f"NumPy cannot read it: {error}") from None
    return source_of_arrays(path, arrays, names)


def _needed(available: Collection[str], names: Sequence[str]) -> Collection[str]:
    return names if names and set(names) <= set(available) else available


def _refuse_large(path: str, size: int) -> None:
    """Raise if unpacked arrays of `size` bytes would exceed the machine's memory."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return
    if size > memory > 0:
        what = f"unpacks to {size / 1e9:.3g} GB, more than this machine's memory"
        raise BnstatError(path, what, "pass an .npy, which is read piece by piece")


def source_of_batches(
    where: str, begin: Callable[[], Iterable[Any]], inputs: Mapping[str, Input]
) -> BatchSource:
    """Return a source of batches. `begin` returns a new iterable of batches or of samples."""

    def batches() -> Iterator[Arrays]:
        with _user_code(where, "yields no batches: "):
            for element in begin():
                arrays = arrays_of(element, where)
                if _is_sample(arrays, inputs):
                    arrays = {name: array[np.newaxis] for name, array in arrays.items()}
                yield arrays

    return BatchSource(where, batches)


def _is_sample(arrays: Arrays, inputs: Mapping[str, Input]) -> bool:
    """Return True if the arrays are one sample: they lack the batch dimension of the inputs."""
    ranks = {name: len(each.shape) for name, each in inputs.items() if each.shape}
    missing = {rank - arrays[name].ndim for name, rank in ranks.items() if name in arrays}
    if not missing and len(inputs) == 1:
        missing = {rank - each.ndim for rank in ranks.values() for each in arrays.values()}
        return 1 in missing and 0 not in missing
    return 1 in missing


def source_of_object(
    data: Any, inputs: Mapping[str, Input], names: Sequence[str], where: str = ""
) -> BatchSource:
    """Return a source for arrays, a pair `(x, y)`, an iterable, or a function that returns data."""
    if callable(data) and not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        where = where or getattr(data, "__name__", repr(data))
        result = data()
        if not isinstance(result, (np.ndarray, Mapping, tuple)):
            unused = [result]
            return source_of_batches(where, lambda: unused.pop() if unused else data(), inputs)
        data = result
    where = where or f"the data ({type(data).__name__})"
    if isinstance(data, (np.ndarray, Mapping)) or (
        isinstance(data, tuple) and len(data) in (2, 3) and hasattr(data[0], "shape")
    ):
        return source_of_arrays(where, arrays_of(data, where), names)
    if hasattr(data, "__iter__"):
        if iter(data) is data:
            data = list(data)
        return source_of_batches(where, lambda: data, inputs)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return source_of_batches(where, lambda: (data[place] for place in range(len(data))), inputs)
    what = "is not a type of data that bnstat reads"
    raise UnsupportedError(where, what, "pass arrays or batches of arrays")


def arrays_of(element: Any, where: str) -> Arrays:
    """Return name -> array for a batch. In a pair `(x, y)`, the name of `y` is `labels`."""
    if isinstance(element, Mapping):
        return {str(name): _array(value, where) for name, value in element.items()}
    if isinstance(element, (tuple, list)) and element:
        first = arrays_of(element[0], where)
        if isinstance(element, tuple) and len(element) > 1 and element[1] is not None:
            return {**first, LABELS: _array(element[1], where)}
        return first
    return {UNNAMED: _array(element, where)}


def _array(value: Any, where: str) -> Any:
    value = value.numpy() if hasattr(value, "numpy") else value
    array = np.asarray(value)
    if array.dtype.kind == "O" and not all(isinstance(each, (str, bytes)) for each in array.flat):
        kind = type(value).__name__
        raise UnsupportedError(where, f"yields {kind}, which is not an array of numbers")
    return array


def source_of_code(spec: str, inputs: Mapping[str, Input], names: Sequence[str]) -> BatchSource:
    """Return a source of the data from a function, `module:function` or `file.py:function`."""
    module, _, name = spec.rpartition(":")
    function = getattr(import_user_module(module, spec), name, None)
    if not callable(function):
        raise NotFoundError(spec, f"{module} has no function {name!r}")
    with _user_code(spec):
        return source_of_object(function, inputs, names, spec)


def import_user_module(name: str, where: str) -> ModuleType:
    """Import a module by name (the working directory comes first) or by the path of a `.py`."""
    sys.path.insert(0, folder := os.getcwd())
    try:
        with _user_code(where, "cannot be imported: "):
            if not name.endswith(".py"):
                return importlib.import_module(name)
            if not os.path.isfile(name):
                raise NotFoundError(where, f"the file {name} does not exist")
            module = ModuleType("bnstat_data")
            module.__file__ = name
            SourceFileLoader("bnstat_data", name).exec_module(module)
            return module
    finally:
        sys.path.remove(folder)


@contextmanager
def _user_code(where: str, what: str = "") -> Iterator[None]:
    """Convert an error of the user's code to a one-line `BnstatError` that begins with `what`."""
    try:
        yield
    except BnstatError:
        raise
    except ImportError as error:
        raise NotFoundError(where, f"{what}{first_line(error)}") from error
    except (Exception, SystemExit) as error:
        reason = type(error).__name__
        if str(error).strip():
            reason += f": {first_line(error)}"
        raise BnstatError(where, f"{what}{reason}") from error
