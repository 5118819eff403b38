"""One pass over the data: the statistics of each layer's input, and the accuracy.

Means and variances of batches are merged in float64, by the method of Chan, Golub and LeVeque,
"Updating formulae and a pairwise algorithm for computing sample variances" (1979). No variance is
computed as `E[x^2] - E[x]^2`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnstat.errors import AmbiguousError
from bnstat.estimate.data import Batch
from bnstat.estimate.running.runner import Runner
from bnstat.model import Array, as_float64

Floats = NDArray[np.float64]

Statistics = Mapping[str, Mapping[str, Array]]
"""Layer -> role -> [channels]."""

Watch = Callable[[Batch, Array], None]
"""Called with each batch and its output."""

Track = Callable[[Iterable[Batch], str], Iterable[Batch]]
"""Yields the batches and shows the progress. The string describes the task."""

MOST_BYTES: Final = 1 << 30
"""The limit on bytes of activations that are kept at a time."""


def untracked(batches: Iterable[Batch], what: str) -> Iterable[Batch]:
    """Return the batches and show nothing."""
    return batches


@dataclass
class Moments:
    """The moments of all values added so far.

    Attributes:
        count: the number of elements per channel.
        mean: [channels], float64.
        squares: [channels], float64, the sum of the squared deviations from the mean.
    """

    count: int = 0
    mean: Floats = field(default_factory=lambda: np.zeros(0))
    squares: Floats = field(default_factory=lambda: np.zeros(0))

    def add(self, count: int, mean: ArrayLike, squares: ArrayLike) -> None:
        """Add the moments of more elements."""
        if not count:
            return
        new_mean, new_squares = np.asarray(mean, np.float64), np.asarray(squares, np.float64)
        if not self.count:
            self.count, self.mean, self.squares = count, new_mean, new_squares
            return
        total = self.count + count
        difference = new_mean - self.mean
        self.mean = self.mean + difference * (count / total)
        self.squares = self.squares + new_squares + difference**2 * (self.count * count / total)
        self.count = total

    def variance(self, unbiased: bool) -> Floats:
        """Return the variance, with or without Bessel's correction."""
        return self.squares / max(self.count - unbiased, 1)


@dataclass
class Halves:
    """The moments of every second batch, and of the other batches, to estimate the error."""

    first: Moments = field(default_factory=Moments)
    second: Moments = field(default_factory=Moments)

    @property
    def whole(self) -> Moments:
        """The moments of all batches."""
        whole = Moments(self.first.count, self.first.mean, self.first.squares)
        whole.add(self.second.count, self.second.mean, self.second.squares)
        return whole

    @property
    def error(self) -> float | None:
        """Half the distance between the means of the halves; None for a single batch.

        The unit is the standard deviation; the worst channel counts.
        """
        if not self.first.count or not self.second.count:
            return None
        deviation = np.sqrt(self.whole.variance(unbiased=False))
        distance = np.abs(self.first.mean - self.second.mean) / 2
        return float(np.max(in_deviations(distance, deviation), initial=0.0))


def in_deviations(distance: Floats, deviation: Floats) -> Floats:
    """Return distances in standard deviations; for a constant channel, 0 or infinity."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = distance / deviation
    return np.where(distance == 0, 0.0, ratio)


@dataclass
class ActivationCache:
    """A cache of tensors of each batch that later waves need not recompute.

    The tensors do not change in later waves. If a batch's newest tensors do not fit, the next wave
    starts from older tensors or from the inputs.

    Attributes:
        most: the largest number of bytes to keep.
    """

    most: int = MOST_BYTES
    _names: Sequence[str] = ()
    _is_full: bool = False
    _tensors: dict[int, Mapping[str, Array]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The number of bytes that are kept."""
        return sum(map(_size, self._tensors.values()))

    def begin_wave(self, names: Sequence[str]) -> None:
        """Begin a wave that keeps these tensors."""
        self._names, self._is_full = names, False

    def tensors(self, batch: int) -> Mapping[str, Array]:
        """Return name -> tensor, for the tensors that are kept for a batch."""
        return self._tensors.get(batch, {})

    def wanted(self, batch: int) -> Sequence[str]:
        """Return the names of the tensors not kept yet; none if the cache is full."""
        kept = self.tensors(batch)
        is_done = kept.keys() == set(self._names) or (self._is_full and not kept)
        return () if is_done else self._names

    def offer(self, batch: int, tensors: Mapping[str, Array]) -> None:
        """Replace the tensors of a batch by newer tensors, if there is room."""
        if not tensors:
            return
        others = self.size - _size(self.tensors(batch))
        if others + _size(tensors) <= self.most:
            self._tensors[batch] = tensors
        else:
            self._is_full = True


def _size(tensors: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in tensors.values())


@dataclass
class Reading:
    """The results of a pass over the data.

    Attributes:
        moments: layer -> the moments of the layer's input.
        samples, batches: the numbers of samples and batches.
        accuracy: the fraction of samples that were classified as labelled; None without labels.
    """

    moments: dict[str, Halves]
    samples: int = 0
    batches: int = 0
    accuracy: float | None = None


def read(
    runner: Runner,
    batches: Iterable[Batch],
    *,
    statistics: Statistics,
    layers: Sequence[str] = (),
    with_accuracy: bool = False,
    watch: Watch | None = None,
    cache: ActivationCache | None = None,
) -> Reading:
    """Run a network over data.

    Args:
        runner: a session of the network.
        batches: the data.
        statistics: layer -> statistics, for layers that do not normalize with batch statistics.
        layers: the layers to measure.
        with_accuracy: True to compare the output with the labels.
        watch: called with each batch and the output.
        cache: activations to start from; newer activations are offered to the cache.

    Raises:
        BnstatError: the network cannot be run, or the output is not a classification.
    """
    output = runner.network.output
    accuracy = _Accuracy(output)
    cache = cache or ActivationCache()
    reading = Reading({name: Halves() for name in layers})
    for number, batch in enumerate(batches):
        wanted = list(cache.wanted(number))
        fetched = [*wanted, output] if with_accuracy or watch else wanted
        moments, tensors = runner.run(
            batch.feeds, statistics, layers, fetched, start=cache.tensors(number)
        )
        cache.offer(number, {name: tensors[name] for name in wanted})
        for layer, uses in moments.items():
            halves = reading.moments[layer]
            half = halves.second if number % 2 else halves.first
            for count, mean, variance in uses:
                half.add(int(count), mean, variance * count)
        if with_accuracy:
            accuracy.add(np.asarray(tensors[output]), batch)
        if watch is not None:
            watch(batch, np.asarray(tensors[output]))
        reading.samples += batch.size
        reading.batches += 1
    if with_accuracy:
        reading.accuracy = accuracy.correct() / reading.samples
    return reading


class _Accuracy:
    """Compares outputs with labels.

    A label is a class index. If the model returns one score per sample, or the labels are -1 and 1,
    there are two classes, and the larger label corresponds to the larger score.

    Args:
        output: the tensor of the output, for messages.
    """

    def __init__(self, output: str) -> None:
        self._output = output
        self._correct = 0
        self._scores: list[Array] = []
        self._labels: list[Array] = []

    def add(self, output: Array, batch: Batch) -> None:
        """Add the output for a batch with labels.

        Raises:
            AmbiguousError: the output is not a classification, or a label is not one of the
                classes.
        """
        labels = np.asarray(batch.labels)
        scores = output.reshape(output.shape[0], -1) if output.ndim else output.reshape(1, 1)
        if len(scores) != batch.size:
            what = f"its shape {list(output.shape)} is not a score for each sample"
            raise AmbiguousError(self._output, what, "pass --answer")
        if scores.shape[1] == 1:
            self._scores.append(as_float64(scores)[:, 0])
            self._labels.append(labels)
            return
        least, most = int(labels.min()), int(labels.max())
        if scores.shape[1] == 2 and least == -1:
            labels, least = np.maximum(labels, 0), 0
        if least < 0 or most >= scores.shape[1]:
            raise AmbiguousError(
                self._output,
                f"label {least if least < 0 else most} is not one of its "
                f"{scores.shape[1]} classes, which count from 0",
                "select another output (--answer) or other labels (--labels)",
            )
        self._correct += int((scores.argmax(1) == labels).sum())

    def correct(self) -> int:
        """Return the number of samples that were classified as labelled."""
        if not self._scores:
            return self._correct
        scores, labels = np.concatenate(self._scores), np.concatenate(self._labels)
        # Only all scores together distinguish probabilities from logits and scores of -1 to 1.
        is_probability = scores.min() >= 0 and scores.max() <= 1 and labels.min() >= 0
        is_large = np.greater(scores, 0.5 if is_probability else 0.0)
        return int((is_large == np.greater(labels, 0)).sum())
