"""Batches as a model takes them: the right names, shapes and dtypes, and no NaN."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.formats.dtypes import numpy_dtype
from bnstat.model import Array

UNNAMED = ""
"""The name of the only array of data that has no names."""

LEAST = 2
"""Fewer samples have no variance."""

Raw = Mapping[str, Array]
"""Name -> array; the first axis is that of the samples."""


class Wanted(Protocol):
    """An input of a model."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int | None, ...] | None: ...

    @property
    def batch(self) -> int | None: ...


class Source(Protocol):
    """Data before it is fitted to a model.

    Attributes:
        where: what it is, for messages.
    """

    @property
    def where(self) -> str: ...

    def batches(self, size: int) -> Iterable[Raw]:
        """All of it from the beginning, in batches of about this size."""
        ...


class Batch(NamedTuple):
    """What one run is fed.

    Attributes:
        feeds: input name -> array.
        labels: [samples], where they are asked for.
        size: the number of samples.
    """

    feeds: Mapping[str, Array]
    labels: Array | None
    size: int


@dataclass
class Data:
    """Data that fits a model, in batches, as often as asked for.

    Attributes:
        source: where it comes from.
        inputs: the model's.
        batch_size: samples in a batch; the last one may have fewer.
        most: samples in all.
        labels: the name of the labels, where accuracy is wanted.
    """

    source: Source
    inputs: Mapping[str, Wanted]
    batch_size: int
    most: int
    labels: str | None = None

    def __post_init__(self) -> None:
        self._fixed = {each.batch for each in self.inputs.values() if each.batch is not None}
        if len(self._fixed) == 1:
            self.batch_size = next(iter(self._fixed))

    def __iter__(self) -> Iterator[Batch]:
        """The batches.

        Raises:
            BnstatError: the data does not fit the model.
        """
        left = self.most
        count = 0
        for raw in _of_size(self.source.batches(self.batch_size), self.batch_size, self._where):
            size = min(len(next(iter(raw.values()))), left)
            if self._fixed and size < self.batch_size:
                break
            yield self._batch({name: array[:size] for name, array in raw.items()}, size)
            count += size
            left -= size
            if left <= 0:
                break
        if count < LEAST:
            has = "no sample" if not count else "1 sample"
            batch = f", and the model takes {self.batch_size} at a time" if self._fixed else ""
            raise NotFoundError(self._where, f"has {has}{batch}: too few for a mean and a variance")

    @property
    def is_fixed(self) -> bool:
        """Return True if every batch has exactly `batch_size` samples."""
        return bool(self._fixed)

    @property
    def _where(self) -> str:
        return self.source.where

    def _batch(self, raw: Raw, size: int) -> Batch:
        labels = None
        if self.labels is not None:
            if self.labels not in raw:
                raise NotFoundError(
                    self._where, f"has no {self.labels!r} for --labels", _there(raw)
                )
            labels = raw[self.labels].reshape(size, -1)
            if labels.dtype.kind not in "biuf":
                raise BnstatError(
                    self._where,
                    f"the labels {self.labels!r} are of {labels.dtype}",
                    "give the number of each sample's class, counted from 0",
                )
            labels = labels.argmax(1) if labels.shape[1] > 1 else labels[:, 0]
        names = self._names(raw)
        feeds = {name: self._fitted(name, raw[names[name]]) for name in self.inputs}
        return Batch(feeds, labels, size)

    def _names(self, raw: Raw) -> Mapping[str, str]:
        """Input -> the array for it: the one of its name, or the only one for the only input."""
        missing = [name for name in self.inputs if name not in raw]
        others = [UNNAMED] if UNNAMED in raw else [name for name in raw if name != self.labels]
        if missing and len(self.inputs) == 1 and len(others) == 1:
            return {missing[0]: others[0]}
        if missing:
            wanted = ", ".join(self.inputs)
            hint = f"the model takes {wanted}; {_there(raw)}"
            if self.labels is None and len(self.inputs) == 1:
                hint += "; --labels names the one that is none of the inputs"
            if len(self.inputs) > 1:
                hint += f"; what takes no data is given by --feed {missing[0]}=VALUE"
            raise NotFoundError(self._where, f"has no array named {missing[0]!r}", hint)
        return {name: name for name in self.inputs}

    def _fitted(self, name: str, array: Array) -> Array:
        wanted = self.inputs[name]
        self._refuse_shape(name, array, wanted)
        if wanted.dtype == "string":
            if array.dtype.kind not in "SUO":
                raise self._misfit(name, f"of {array.dtype}, the model takes text")
            return array.astype(object)
        dtype = numpy_dtype(wanted.dtype, name)
        if not _of_numbers(array) or not _holds(dtype, array):
            raise self._misfit(name, f"of {array.dtype}, the model takes {wanted.dtype}")
        with np.errstate(over="ignore"):
            fitted = array.astype(dtype, copy=False)
        if not (finite := np.isfinite(fitted)).all():
            raise DamagedError(
                self._where,
                f"{name}: {np.count_nonzero(~finite)} of {array.size} numbers are NaN or infinite"
                + ("" if array.dtype == dtype else f", as {dtype}"),
            )
        return fitted

    def _refuse_shape(self, name: str, array: Array, wanted: Wanted) -> None:
        if wanted.shape is None:
            return
        pairs = zip(array.shape[1:], wanted.shape[1:], strict=False)
        if array.ndim != len(wanted.shape) or any(b is not None and a != b for a, b in pairs):
            sizes = ", ".join("any" if size is None else str(size) for size in wanted.shape[1:])
            has = ", ".join(map(str, array.shape[1:]))
            raise self._misfit(name, f"[{has}] each, the model takes [{sizes}]")

    def _misfit(self, name: str, what: str) -> BnstatError:
        return BnstatError(self._where, f"the samples for {name!r} are {what}")


@dataclass
class SizedData(Data):
    """The same, of a known number of samples.

    Attributes:
        there: how many samples the source has.
    """

    there: int = 0

    def __len__(self) -> int:
        """The number of batches."""
        return -(-min(self.there, self.most) // self.batch_size)


def _there(raw: Raw) -> str:
    names = [name for name in raw if name != UNNAMED]
    return f"it has {', '.join(names[:8])}" if names else "its arrays have no names"


def _of_numbers(array: Array) -> bool:
    """Whether an array is of numbers, such as bfloat16, which NumPy calls void as it does bytes."""
    return array.dtype.kind in "biuf" or (array.dtype.kind == "V" and array.dtype.type != np.void)


def _holds(dtype: np.dtype[np.generic], array: Array) -> bool:
    """Whether an array's numbers may be given as another type: whole numbers only exactly."""
    if dtype.kind in "iub":
        with np.errstate(invalid="ignore"):
            return bool((array.astype(dtype) == array).all())
    return True


def _of_size(raws: Iterable[Raw], size: int, where: str) -> Iterator[Raw]:
    """The same samples in batches of this size, and one of what is left."""
    kept: list[Raw] = []
    count = 0
    for raw in raws:
        if kept and _form(raw) != _form(kept[0]):
            raise DamagedError(where, "its batches are not of one form: other names or shapes")
        lengths = {len(array) for array in raw.values() if array.ndim}
        if len(lengths) != 1:
            raise DamagedError(where, "its arrays are not of one number of samples")
        length = lengths.pop()
        if not kept and length == size:
            yield raw
            continue
        kept.append(raw)
        count += length
        while count >= size:
            whole = _joined(kept)
            yield {name: array[:size] for name, array in whole.items()}
            kept = [{name: array[size:] for name, array in whole.items()}]
            count -= size
    if count:
        yield _joined(kept)


def _form(raw: Raw) -> Mapping[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in raw.items()}


def _joined(raws: list[Raw]) -> Raw:
    if len(raws) == 1:
        return raws[0]
    return {name: np.concatenate([raw[name] for raw in raws]) for name in raws[0]}


def eagerly() -> AbstractContextManager[Any]:
    """Within it TensorFlow computes at once, whatever the caller has made its default."""
    from tensorflow.python.eager import context

    mode: AbstractContextManager[Any] = context.eager_mode()
    return mode
