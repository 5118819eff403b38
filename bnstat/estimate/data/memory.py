"""Data that a Python caller has in memory: arrays, datasets, functions that give batches."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnsupportedError, first_line
from bnstat.estimate.data.batches import UNNAMED, Raw, Source, Wanted
from bnstat.model import Array

_STARTS = (b"PK", b"\x93NUMPY")


@dataclass(frozen=True)
class Arrays:
    """Arrays whose first axis is that of the samples.

    Attributes:
        where: what they are, for messages.
        arrays: by name.
    """

    where: str
    arrays: Mapping[str, Array]

    def batches(self, size: int) -> Iterator[Raw]:
        """Slices of the arrays."""
        if not self.arrays:
            raise DamagedError(self.where, "holds no arrays")
        lengths = {len(array) for array in self.arrays.values()}
        if len(lengths) != 1:
            listed = ", ".join(f"{name} {len(array)}" for name, array in self.arrays.items())
            raise DamagedError(self.where, f"its arrays are not of one length: {listed}")
        for start in range(0, lengths.pop(), size):
            yield {name: array[start : start + size] for name, array in self.arrays.items()}


def open_numpy(path: str, names: Sequence[str] = ()) -> Arrays:
    """The arrays of an `.npz` or `.npy` file.

    Args:
        path: the file.
        names: the arrays that are needed; where it has all of them the others are not read.

    Raises:
        DamagedError: it cannot be read, or holds Python objects.
        BnstatError: unpacked it is larger than the machine's memory.
    """
    from zipfile import BadZipFile

    with open(path, "rb") as file:
        if not file.read(6).startswith(_STARTS):
            raise DamagedError(path, "is neither .npz nor .npy, whatever its name says")
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r")
        if isinstance(loaded, np.ndarray):
            return Arrays(path, {UNNAMED: _with_samples(loaded, path)})
        with loaded:
            chosen = needed(loaded.files, names)
            members = loaded.zip.infolist()
            sizes = {each.filename.removesuffix(".npy"): each.file_size for each in members}
            _refuse_large(path, sum(sizes[name] for name in chosen))
            arrays = {name: loaded[name] for name in chosen}
    except (OSError, ValueError, EOFError, KeyError, SyntaxError, MemoryError, BadZipFile) as error:
        raise DamagedError(path, f"NumPy cannot read it: {error}") from None
    return Arrays(path, {name: _with_samples(array, path) for name, array in arrays.items()})


def needed(there: Iterable[str], names: Sequence[str]) -> list[str]:
    """Those of some arrays that are needed: all, where one of these names is missing."""
    there = list(there)
    return list(names) if names and set(names) <= set(there) else there


def _refuse_large(path: str, size: int) -> None:
    """Refuse what cannot be unpacked: `zipfile` gives no more than the sizes it is told."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return
    if size > memory > 0:
        raise BnstatError(
            path,
            f"unpacks to {size / 1e9:.3g} GB, more than this machine's memory",
            "give an .npy, which is read piece by piece",
        )


def _with_samples(array: Array, path: str) -> Array:
    if not array.ndim:
        raise BnstatError(path, "an array of a single number is no set of samples")
    return array


def is_numpy(path: str) -> bool:
    """Whether a path is named as NumPy names its files."""
    return os.path.splitext(path)[1].lower() in (".npz", ".npy")


LABELS = "labels"
"""The name of the second of a pair `(x, y)`."""


@dataclass(frozen=True)
class Batches:
    """Batches, or single samples, that come one after the other.

    Attributes:
        where: what they are, for messages.
        begin: gives them from the beginning.
        inputs: the model's, which tell a sample from a batch; empty where they are not known.
    """

    where: str
    begin: Callable[[], Iterable[Any]]
    inputs: Mapping[str, Wanted]

    def batches(self, size: int) -> Iterator[Raw]:
        """The batches as they come; samples put together to batches of a size."""
        samples: list[Raw] = []
        for element in self._elements():
            raw = raw_of(element, self.where)
            if not self._is_sample(raw):
                yield raw
                continue
            samples.append(raw)
            if len(samples) == size:
                yield _stacked(samples)
                samples = []
        if samples:
            yield _stacked(samples)

    def _elements(self) -> Iterator[Any]:
        try:
            yield from self.begin()
        except BnstatError:
            raise
        except (Exception, SystemExit) as error:  # whatever the caller's code raises
            raise BnstatError(self.where, f"gives no batches: {reason_of(error)}") from error

    def _is_sample(self, raw: Raw) -> bool:
        ranks = {name: len(each.shape) for name, each in self.inputs.items() if each.shape}
        found = {rank - raw[name].ndim for name, rank in ranks.items() if name in raw}
        if not found and len(self.inputs) == 1:
            found = {rank - each.ndim for rank in ranks.values() for each in raw.values()} - {0}
            return 1 in found and not any(each.ndim in ranks.values() for each in raw.values())
        return 1 in found


def of_object(data: Any, inputs: Mapping[str, Wanted], where: str = "") -> Source:
    """Data from an array, a mapping of arrays, a pair `(x, y)`, or something to iterate.

    What can be iterated only once is kept.

    Args:
        data: the object; a function is called for the batches whenever they are needed.
        inputs: the model's, where they are known.
        where: what it is, for messages; the name of its type if left out.

    Raises:
        UnsupportedError: it is none of these.
    """
    if callable(data) and not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        return _of_function(data, inputs, where or getattr(data, "__name__", repr(data)))
    where = where or f"the data ({type(data).__name__})"
    if isinstance(data, (np.ndarray, Mapping)) or (
        isinstance(data, tuple) and len(data) in (2, 3) and hasattr(data[0], "shape")
    ):
        return Arrays(where, raw_of(data, where))
    if hasattr(data, "__iter__"):
        if iter(data) is data:
            data = list(data)
        return Batches(where, lambda: data, inputs)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return Batches(where, lambda: (data[place] for place in range(len(data))), inputs)
    raise UnsupportedError(
        where, "is no data that bnstat knows", "give arrays or batches of arrays"
    )


def raw_of(element: Any, where: str) -> Raw:
    """A batch by names; of a pair `(x, y)` the second is the labels.

    Raises:
        UnsupportedError: it is nothing of the kind.
    """
    if isinstance(element, Mapping):
        return {str(name): _array(value, where) for name, value in element.items()}
    if isinstance(element, (tuple, list)) and element:
        first = raw_of(element[0], where)
        if isinstance(element, tuple) and len(element) > 1 and element[1] is not None:
            return {**first, LABELS: _array(element[1], where)}
        return first
    return {UNNAMED: _array(element, where)}


def _of_function(function: Callable[[], Any], inputs: Mapping[str, Wanted], where: str) -> Source:
    given = function()
    if isinstance(given, (np.ndarray, Mapping, tuple)):
        return of_object(given, inputs, where)
    kept = [given]

    def begin() -> Iterable[Any]:
        batches: Iterable[Any] = kept.pop() if kept else function()
        return batches

    return Batches(where, begin, inputs)


def reason_of(error: BaseException) -> str:
    """What the user's code raises, in one line."""
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name


def _array(value: Any, where: str) -> Any:
    value = value.numpy() if hasattr(value, "numpy") else value
    array = np.asarray(value)
    if array.dtype.kind == "O" and not all(isinstance(each, (str, bytes)) for each in array.flat):
        raise UnsupportedError(where, f"gives {type(value).__name__}, which is no array of numbers")
    return array


def _stacked(samples: list[Raw]) -> Raw:
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def of_code(spec: str, inputs: Mapping[str, Wanted]) -> Source:
    """What a function gives: arrays, or batches.

    Args:
        spec: where the function is; modules are looked for in the working directory too.
        inputs: the model's, where they are known.

    Raises:
        NotFoundError: there is no such module or function.
        BnstatError: it fails.
    """
    place, _, name = spec.rpartition(":")
    module = _module(place, spec)
    function = getattr(module, name, None)
    if not callable(function):
        raise NotFoundError(spec, f"there is no function {name!r} in {place}")
    try:
        return of_object(function, inputs, spec)
    except BnstatError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise BnstatError(spec, reason_of(error)) from error


def _module(place: str, spec: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        if not os.path.isfile(place):
            raise NotFoundError(spec, f"there is no file {place}")
        found = importlib.util.spec_from_file_location("bnstat_data", place)
        if found is None or found.loader is None:
            raise NotFoundError(spec, f"{place} is no Python file")
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    except BnstatError:
        raise
    except ModuleNotFoundError as error:
        raise NotFoundError(spec, f"cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise BnstatError(spec, f"cannot be imported: {reason_of(error)}") from error
    finally:
        sys.path.remove(os.getcwd())
    return module
