"""Batches that fit a model: with the right names, shapes and dtypes, and without NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.formats.dtypes import numpy_dtype
from bnstat.model import Array

UNNAMED = ""
"""The name of the array if the data is a single array without a name."""

_LEAST_SAMPLES = 2
"""The minimum number of samples for a variance."""

Arrays = Mapping[str, Array]
"""Name -> array; the samples lie along the first axis."""


@dataclass(frozen=True)
class Input:
    """An input of a model.

    Attributes:
        tensor: the tensor's name in the graph, such as `op:0`.
        dtype: the NumPy name of the dtype; `string` for strings.
        shape: the shape, with None for unknown sizes; None if the rank is unknown.
    """

    tensor: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class BatchSource:
    """Data that is not yet fitted to a model.

    Attributes:
        where: the data's path or description, for messages.
        batches: returns all data from the beginning, in batches of any size, at each call.
        samples: the number of samples of data in memory; otherwise None.
    """

    where: str
    batches: Callable[[], Iterable[Arrays]]
    samples: int | None = None


class Batch(NamedTuple):
    """The data of one run.

    Attributes:
        feeds: input name -> array.
        labels: class indices, [samples]; None if the accuracy is not requested.
        size: the number of samples.
    """

    feeds: Mapping[str, Array]
    labels: Array | None
    size: int


@dataclass
class Data:
    """Data that fits a model, in batches. It can be iterated more than once.

    Attributes:
        source: the data before it is fitted to the model.
        inputs: the inputs of the model, by name.
        batch_size: the number of samples in a batch; the last batch may have fewer. If
            the batch size is fixed, remaining samples are left out instead.
        is_fixed: True if the batch size is fixed by the shapes of the inputs.
        most: the largest number of samples to use.
        labels: the name of the labels, if accuracy is requested.
    """

    source: BatchSource
    inputs: Mapping[str, Input]
    batch_size: int
    most: int
    labels: str | None = None

    def __post_init__(self) -> None:
        sizes = {each.shape[0] for each in self.inputs.values() if each.shape} - {None}
        self.is_fixed = bool(sizes)
        if len(sizes) == 1:
            self.batch_size = next(size for size in sizes if size is not None)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches.

        Raises:
            BnstatError: the data does not fit the model.
        """
        where, count = self.source.where, 0
        for arrays in _of_size(self.source.batches(), self.batch_size, where):
            size = min(len(next(iter(arrays.values()))), self.most - count)
            if self.is_fixed and size < self.batch_size:
                break
            yield self._batch({name: array[:size] for name, array in arrays.items()}, size)
            count += size
            if count >= self.most:
                break
        if count < _LEAST_SAMPLES:
            has = "1 sample" if count else "no sample"
            batch = f", and the model takes {self.batch_size} at a time" if self.is_fixed else ""
            raise NotFoundError(where, f"has {has}{batch}: too few for a mean and a variance")

    def _batch(self, arrays: Arrays, size: int) -> Batch:
        labels = None if self.labels is None else self._classes(self.labels, arrays, size)
        names = self._array_names(arrays)
        feeds = {name: self._fitted(name, arrays[names[name]]) for name in self.inputs}
        return Batch(feeds, labels, size)

    def _classes(self, name: str, arrays: Arrays, size: int) -> Array:
        """Return the labels as class indices, [samples]; one-hot labels are converted."""
        where = self.source.where
        if name not in arrays:
            raise NotFoundError(where, f"has no array {name!r} for --labels", _list_names(arrays))
        labels = arrays[name].reshape(size, -1)
        if labels.dtype.kind not in "biuf":
            raise BnstatError(
                where,
                f"the labels {name!r} have the dtype {labels.dtype}, which is not numeric",
                "pass the index of each sample's class, counted from 0",
            )
        return np.asarray(labels.argmax(1) if labels.shape[1] > 1 else labels[:, 0])

    def _array_names(self, arrays: Arrays) -> Mapping[str, str]:
        """Return input name -> array name.

        Both names are equal, except that the only input takes the only array, whatever its name.
        """
        missing = [name for name in self.inputs if name not in arrays]
        others = (
            [UNNAMED] if UNNAMED in arrays else [name for name in arrays if name != self.labels]
        )
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
        """Return a hint for the user if several arrays could be the model's only input."""
        rename = f"rename the input array to {missing}"
        if self.labels is not None:
            return rename
        shape = self.inputs[missing].shape
        unfit = [name for name in others if shape and not _has_shape(arrays[name], shape)]
        labels = unfit[0] if len(others) == 2 and len(unfit) == 1 else None
        condition = f"if {labels} holds" if labels else "if one of them holds"
        return f"{condition} the labels, pass --labels {labels or 'NAME'}; otherwise {rename}"

    def _fitted(self, name: str, array: Array) -> Array:
        """Return an array in the dtype of an input; raise if it does not fit."""
        dtype_name, shape = self.inputs[name].dtype, self.inputs[name].shape
        if shape is not None and not _has_shape(array, shape):
            sizes = ", ".join("any" if size is None else str(size) for size in shape[1:])
            has = ", ".join(map(str, array.shape[1:]))
            raise self._misfit(name, f"have the shape [{has}], but the model takes [{sizes}]")
        if dtype_name == "string":
            if array.dtype.kind not in "SUO":
                raise self._misfit(
                    name, f"have the dtype {array.dtype}, but the model takes strings"
                )
            return array.astype(object)
        dtype = numpy_dtype(dtype_name, name)
        if not _is_numeric(array) or not _can_hold(dtype, array):
            raise self._misfit(
                name, f"have the dtype {array.dtype}, but the model takes {dtype_name}"
            )
        with np.errstate(over="ignore"):
            fitted = array.astype(dtype, copy=False)
        if not (finite := np.isfinite(fitted)).all():
            raise DamagedError(
                self.source.where,
                f"{name}: {np.count_nonzero(~finite)} of {array.size} values are NaN or infinite"
                + ("" if array.dtype == dtype else f" after conversion to {dtype}"),
            )
        return fitted

    def _misfit(self, name: str, what: str) -> BnstatError:
        return BnstatError(self.source.where, f"the samples for {name!r} {what}")


class SizedData(Data):
    """Data with a known number of samples."""

    def __len__(self) -> int:
        """The number of batches."""
        return -(-min(self.source.samples or 0, self.most) // self.batch_size)


def _list_names(arrays: Arrays) -> str:
    names = [name for name in arrays if name != UNNAMED]
    return f"it has {', '.join(names[:8])}" if names else "its arrays have no names"


def _has_shape(array: Array, shape: tuple[int | None, ...]) -> bool:
    pairs = zip(array.shape[1:], shape[1:], strict=False)
    return array.ndim == len(shape) and all(size in (None, actual) for actual, size in pairs)


def _is_numeric(array: Array) -> bool:
    """Return True for numbers, including bfloat16, whose NumPy kind is "void" like raw bytes."""
    return array.dtype.kind in "biuf" or (array.dtype.kind == "V" and array.dtype.type != np.void)


def _can_hold(dtype: np.dtype[np.generic], array: Array) -> bool:
    """Return True if a dtype can hold the values of an array; an integer dtype, exactly."""
    if dtype.kind in "iub":
        with np.errstate(invalid="ignore"):
            return bool((array.astype(dtype) == array).all())
    return True


def _of_size(parts: Iterable[Arrays], size: int, where: str) -> Iterator[Arrays]:
    """Yield the samples in batches of `size`; the last batch may be smaller."""
    kept: list[Arrays] = []
    count = 0
    for part in parts:
        if kept and _sample_shapes(part) != _sample_shapes(kept[0]):
            raise DamagedError(
                where, "its batches differ in the names of arrays or the shapes of samples"
            )
        lengths = {len(array) for array in part.values() if array.ndim}
        if len(lengths) != 1:
            raise DamagedError(where, "its arrays differ in the number of samples")
        length = lengths.pop()
        if not kept and length == size:
            yield part
            continue
        kept.append(part)
        count += length
        while count >= size:
            joined = _joined(kept)
            yield {name: array[:size] for name, array in joined.items()}
            kept = [{name: array[size:] for name, array in joined.items()}]
            count -= size
    if count:
        yield _joined(kept)


def _sample_shapes(arrays: Arrays) -> Mapping[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in arrays.items()}


def _joined(parts: list[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def batch_of_one(sample: Arrays) -> Arrays:
    """Return a sample as a batch."""
    return {name: array[np.newaxis] for name, array in sample.items()}


def eager_mode() -> AbstractContextManager[Any]:
    """Return a context in which TensorFlow is in eager mode."""
    from tensorflow.python.eager import context

    mode: AbstractContextManager[Any] = context.eager_mode()
    return mode
