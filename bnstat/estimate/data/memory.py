"""Data from arrays, NumPy files, datasets in memory and user code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnsupportedError, first_line
from bnstat.estimate.data.batches import UNNAMED, Arrays, BatchSource, Input, batch_of_one

LABELS = "labels"
"""The name that the second element of a pair `(x, y)` gets."""

_STARTS = (b"PK", b"\x93NUMPY")


def source_of_arrays(where: str, arrays: Arrays, names: Sequence[str]) -> BatchSource:
    """Return arrays as data; if all `names` are among them, other arrays are ignored.

    Raises:
        DamagedError: there are no arrays, or the arrays differ in length.
        BnstatError: an array is a scalar.
    """
    arrays = {name: arrays[name] for name in _needed(arrays, names)}
    if not all(array.ndim for array in arrays.values()):
        raise BnstatError(where, "a scalar array has no sample axis")
    lengths = {name: len(array) for name, array in arrays.items()}
    if not lengths:
        raise DamagedError(where, "contains no arrays")
    count = min(lengths.values())
    if count != max(lengths.values()):
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DamagedError(where, f"its arrays differ in length: {listed}")
    return BatchSource(where, lambda: [arrays], count)


def open_numpy(path: str, names: Sequence[str]) -> BatchSource:
    """Read an `.npz` or `.npy` file; if it has arrays of all `names`, other arrays are not read.

    Raises:
        DamagedError: the file cannot be read, or holds Python objects.
        BnstatError: the arrays are larger than the machine's memory.
    """
    from zipfile import BadZipFile

    with open(path, "rb") as file:
        if not file.read(6).startswith(_STARTS):
            raise DamagedError(path, "has the name of an .npz or .npy file, but not the contents")
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r")
        if isinstance(loaded, np.ndarray):
            return source_of_arrays(path, {UNNAMED: loaded}, names)
        with loaded:
            chosen = _needed(loaded.files, names)
            members = loaded.zip.infolist()
            sizes = {each.filename.removesuffix(".npy"): each.file_size for each in members}
            _refuse_large(path, sum(sizes[name] for name in chosen))
            arrays = {name: loaded[name] for name in chosen}
    except (OSError, ValueError, EOFError, KeyError, SyntaxError, MemoryError, BadZipFile) as error:
        raise DamagedError(path, f"NumPy cannot read it: {error}") from None
    return source_of_arrays(path, arrays, names)


def _needed(available: Collection[str], names: Sequence[str]) -> Collection[str]:
    """Return `names` if all are available, otherwise all available names."""
    return names if names and set(names) <= set(available) else available


def _refuse_large(path: str, size: int) -> None:
    """Raise if an archive's arrays, of `size` bytes in total, exceed the machine's memory.

    The size recorded in the archive is sufficient, because `zipfile` never unpacks more.
    """
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return
    if size > memory > 0:
        raise BnstatError(
            path,
            f"unpacks to {size / 1e9:.3g} GB, more than this machine's memory",
            "pass an .npy, which is read piece by piece",
        )


def source_of_batches(
    where: str, begin: Callable[[], Iterable[Any]], inputs: Mapping[str, Input]
) -> BatchSource:
    """Return an iterable of batches or of single samples as data.

    Args:
        where: the description of the data, for messages.
        begin: returns the iterable, from the beginning at each call.
        inputs: the inputs of the model; their ranks distinguish samples from batches. Empty if
            unknown.
    """

    def batches() -> Iterator[Arrays]:
        with _user_code(where, "yields no batches: "):
            for element in begin():
                arrays = arrays_of(element, where)
                yield batch_of_one(arrays) if _is_sample(arrays, inputs) else arrays

    return BatchSource(where, batches)


def _is_sample(arrays: Arrays, inputs: Mapping[str, Input]) -> bool:
    """Return True if the arrays have one dimension less than the inputs: no batch dimension."""
    ranks = {name: len(each.shape) for name, each in inputs.items() if each.shape}
    missing = {rank - arrays[name].ndim for name, rank in ranks.items() if name in arrays}
    if not missing and len(inputs) == 1:
        missing = {rank - each.ndim for rank in ranks.values() for each in arrays.values()}
        return 1 in missing and 0 not in missing
    return 1 in missing


def source_of_object(
    data: Any, inputs: Mapping[str, Input], names: Sequence[str], where: str = ""
) -> BatchSource:
    """Return data from arrays, a pair `(x, y)`, an iterable, or a function that returns one.

    An iterator is converted to a list, because it can be used only once. A function is called each
    time that the batches are needed. `where` describes the data in messages.
    """
    if callable(data) and not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        return _source_of_function(
            data, inputs, names, where or getattr(data, "__name__", repr(data))
        )
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
    raise UnsupportedError(
        where, "is not a type of data that bnstat reads", "pass arrays or batches of arrays"
    )


def arrays_of(element: Any, where: str) -> Arrays:
    """Return the arrays of a batch by name; `y` of a pair `(x, y)` gets the name `LABELS`.

    Raises:
        UnsupportedError: the batch contains an object that is not an array.
    """
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


def _source_of_function(
    function: Callable[[], Any], inputs: Mapping[str, Input], names: Sequence[str], where: str
) -> BatchSource:
    result = function()
    if isinstance(result, (np.ndarray, Mapping, tuple)):
        return source_of_object(result, inputs, names, where)
    unused = [result]

    def begin() -> Iterable[Any]:
        batches: Iterable[Any] = unused.pop() if unused else function()
        return batches

    return source_of_batches(where, begin, inputs)


def source_of_code(spec: str, inputs: Mapping[str, Input], names: Sequence[str]) -> BatchSource:
    """Return the data that a user's function (`module:function`, `file.py:function`) returns."""
    module, _, name = spec.rpartition(":")
    function = getattr(import_user_module(module, spec), name, None)
    if not callable(function):
        raise NotFoundError(spec, f"{module} has no function {name!r}")
    with _user_code(spec):
        return source_of_object(function, inputs, names, spec)


def import_user_module(name: str, where: str) -> ModuleType:
    """Import a module by name, or by the path of a `.py` file.

    Modules in the working directory are found too.

    Raises:
        NotFoundError: the module does not exist.
        BnstatError: the module's code fails.
    """
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        with _user_code(where, "cannot be imported: "):
            if not name.endswith(".py"):
                return importlib.import_module(name)
            if not os.path.isfile(name):
                raise NotFoundError(where, f"the file {name} does not exist")
            spec = importlib.util.spec_from_file_location("bnstat_data", name)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
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
