"""Data that a Python caller has in memory: arrays, datasets, functions that give batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnstat.errors import BnstatError, UnsupportedError, first_line
from bnstat.mending.estimating.data.arrays import Arrays
from bnstat.mending.estimating.data.batches import UNNAMED, Raw, Source, Wanted

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
