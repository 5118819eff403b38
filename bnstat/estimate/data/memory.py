"""Data in memory: arrays, also from NumPy's files, and batches from datasets and functions."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnsupportedError
from bnstat.estimate.data.batches import UNNAMED, Arrays, BatchSource, Input, batch_of_one
from bnstat.estimate.user_code import described, import_user_module

LABELS = "labels"
"""The name of the second part of a pair `(x, y)`."""

_STARTS = (b"PK", b"\x93NUMPY")


def source_of_arrays(where: str, arrays: Arrays, names: Sequence[str]) -> BatchSource:
    """Return arrays as data.

    Args:
        where: a path or description, for messages.
        arrays: name -> array; the samples lie along the first axis.
        names: the arrays that are needed; if all are present, other arrays are ignored.

    Raises:
        DamagedError: there are no arrays, or the arrays differ in length.
        BnstatError: an array is a scalar.
    """
    arrays = {name: arrays[name] for name in _needed(arrays, names)}
    if not all(array.ndim for array in arrays.values()):
        raise BnstatError(where, "a scalar array has no sample axis")
    lengths = {name: len(array) for name, array in arrays.items()}
    if not lengths:
        raise DamagedError(where, "holds no arrays")
    count = min(lengths.values())
    if count != max(lengths.values()):
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DamagedError(where, f"its arrays differ in length: {listed}")
    return BatchSource(where, lambda: [arrays], count)


def open_numpy(path: str, names: Sequence[str]) -> BatchSource:
    """Read an `.npz` or `.npy` file.

    Args:
        path: the file.
        names: the arrays that are needed; if the file contains all, other arrays are not read.

    Raises:
        DamagedError: the file cannot be read, or holds Python objects.
        BnstatError: the arrays are larger than the machine's memory.
    """
    from zipfile import BadZipFile

    with open(path, "rb") as file:
        if not file.read(6).startswith(_STARTS):
            raise DamagedError(path, "is neither .npz nor .npy, whatever its name says")
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
    """Raise if an archive is too large. `zipfile` never unpacks more than the recorded sizes."""
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
    """Return batches, or single samples, as data.

    Args:
        where: a path or description, for messages.
        begin: returns all batches or samples from the beginning.
        inputs: the inputs of the model, which distinguish a sample from a batch; empty if unknown.
    """

    def batches() -> Iterator[Arrays]:
        try:
            for element in begin():
                arrays = arrays_of(element, where)
                yield batch_of_one(arrays) if _is_sample(arrays, inputs) else arrays
        except BnstatError:
            raise
        except (Exception, SystemExit) as error:  # whatever the caller's code raises
            raise BnstatError(where, f"yields no batches: {described(error)}") from error

    return BatchSource(where, batches)


def _is_sample(arrays: Arrays, inputs: Mapping[str, Input]) -> bool:
    """Return True if the arrays have one dimension less than the inputs."""
    ranks = {name: len(each.shape) for name, each in inputs.items() if each.shape}
    missing = {rank - arrays[name].ndim for name, rank in ranks.items() if name in arrays}
    if not missing and len(inputs) == 1:
        missing = {rank - each.ndim for rank in ranks.values() for each in arrays.values()}
        return 1 in missing and 0 not in missing
    return 1 in missing


def source_of_object(
    data: Any, inputs: Mapping[str, Input], names: Sequence[str], where: str = ""
) -> BatchSource:
    """Return data from an array, a mapping of arrays, a pair `(x, y)`, or an iterable.

    A one-time iterator is converted to a list. A function is called each time that the batches are
    needed.

    Args:
        data: the object.
        inputs: the inputs of the model, if they are known.
        names: the arrays that are needed.
        where: for messages; by default the name of the type.

    Raises:
        UnsupportedError: the object is something else.
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
        where, "is not data that bnstat knows", "pass arrays or batches of arrays"
    )


def arrays_of(element: Any, where: str) -> Arrays:
    """Return the arrays of a batch by name; the second part of a pair `(x, y)` is the labels.

    Raises:
        UnsupportedError: the batch contains other objects than arrays.
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
    """Return the data that a user's function returns.

    Args:
        spec: `module:function` or `file.py:function`.
        inputs: the inputs of the model, if they are known.
        names: the arrays that are needed.
    """
    module, _, name = spec.rpartition(":")
    function = getattr(import_user_module(module, spec), name, None)
    if not callable(function):
        raise NotFoundError(spec, f"{module} has no function {name!r}")
    try:
        return source_of_object(function, inputs, names, spec)
    except BnstatError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise BnstatError(spec, described(error)) from error
