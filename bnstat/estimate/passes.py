"""One reading of the data: what enters each layer, and how often the model is right.

Means and variances, merged batch by batch in float64.

Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances" (1979). `E[x^2] - E[x]^2` is never formed of what is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnstat.errors import AmbiguousError
from bnstat.estimate.data import Batch
from bnstat.model import Array, as_float64

if TYPE_CHECKING:
    from bnstat.estimate.running.runner import Runner
    from bnstat.estimate.running.subject import Subject


Floats = NDArray[np.float64]


@dataclass
class Moments:
    """The moments of all that was added.

    Attributes:
        count: the number of elements of each channel.
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
        """The variance: over the number of elements, or over one less where `unbiased`."""
        return self.squares / max(self.count - unbiased, 1)


@dataclass
class Halves:
    """Moments of every other batch, and of those between, to tell how sure an estimate is."""

    first: Moments = field(default_factory=Moments)
    second: Moments = field(default_factory=Moments)

    @property
    def whole(self) -> Moments:
        """The moments of all."""
        whole = Moments(self.first.count, self.first.mean, self.first.squares)
        whole.add(self.second.count, self.second.mean, self.second.squares)
        return whole

    @property
    def error(self) -> float | None:
        """How far off the mean of all may be, in standard deviations, at the worst channel.

        Half of the distance between the halves; None where there is but one batch.
        """
        if not self.first.count or not self.second.count:
            return None
        deviation = np.sqrt(self.whole.variance(unbiased=False))
        distance = np.abs(self.first.mean - self.second.mean) / 2
        return float(np.max(in_deviations(distance, deviation), initial=0.0))


def in_deviations(distance: Floats, deviation: Floats) -> Floats:
    """Distances in standard deviations; of a constant channel, 0 or infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = distance / deviation
    return np.where(distance == 0, 0.0, ratio)


MOST: Final = 1 << 30
"""Bytes of activations that are kept at a time."""


@dataclass
class Kept:
    """Of each batch the tensors from which a later wave can start, as many as there is room for.

    What was kept stays right in all later waves, so a batch for whose newest tensors there is no
    room starts from older ones, or from the inputs.

    Attributes:
        most: bytes to keep.
    """

    most: int = MOST
    _cut: Sequence[str] = ()
    _full: bool = False
    _tensors: dict[int, Mapping[str, Array]] = field(default_factory=dict)

    @property
    def held(self) -> int:
        """Bytes that are kept."""
        return sum(map(_size, self._tensors.values()))

    def enter(self, cut: Sequence[str]) -> None:
        """Begin a wave in which these tensors are to be kept."""
        self._cut, self._full = cut, False

    def start(self, batch: int) -> Mapping[str, Array]:
        """What there is of a batch."""
        return self._tensors.get(batch, {})

    def wanted(self, batch: int) -> Sequence[str]:
        """What is to be kept of a batch: nothing where it is there, or where there is no room."""
        held = self.start(batch)
        return () if held.keys() == set(self._cut) or (self._full and not held) else self._cut

    def offer(self, batch: int, tensors: Mapping[str, Array]) -> None:
        """Keep tensors of a batch in the place of older ones, if there is room."""
        if not tensors:
            return
        others = self.held - _size(self.start(batch))
        if others + _size(tensors) <= self.most:
            self._tensors[batch] = tensors
        else:
            self._full = True


def _size(tensors: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in tensors.values())


Statistics = Mapping[str, Mapping[str, Array]]
"""Layer -> role -> [channels]."""

Watch = Callable[[Batch, Array], None]
"""Is given each batch and what the model returned for it."""

Track = Callable[[Iterable[Batch], str], Iterable[Batch]]
"""Passes batches on and shows how far it is: the batches, what is being done."""


def untracked(batches: Iterable[Batch], what: str) -> Iterable[Batch]:
    """Show nothing."""
    return batches


@dataclass
class Reading:
    """What a pass over the data gave.

    Attributes:
        moments: layer -> the moments of all that entered it.
        samples, batches: how many there were.
        right: how many samples the model classified as labelled; None without labels.
    """

    moments: dict[str, Halves] = field(default_factory=dict)
    samples: int = 0
    batches: int = 0
    right: int | None = None

    @property
    def accuracy(self) -> float | None:
        """The part of the samples that was classified as labelled."""
        return None if self.right is None else self.right / self.samples


def read(
    subject: Subject,
    runner: Runner,
    data: Iterable[Batch],
    track: Track,
    what: str,
    *,
    given: Statistics,
    layers: Sequence[str],
    with_accuracy: bool = False,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> Reading:
    """Run a model over data.

    Args:
        subject: the model.
        runner: its session.
        data: the batches that it is fed.
        track: shows how far it is.
        what: what is being done, for `track`.
        given: the statistics that each layer uses, where it does not use its batch's.
        layers: what to measure.
        with_accuracy: whether to compare the model's answers with the labels.
        watch: called with each batch and the model's answer.
        kept: activations to start from, and where others are kept.

    Raises:
        BnstatError: it cannot be run, or its answer is no classification.
    """
    numbers = subject.numbers(layers)
    answers = _Answers(subject.output)
    kept = kept or Kept()
    reading = Reading({name: Halves() for name in layers})
    output = subject.output if with_accuracy or watch else None
    for batch in track(data, what):
        ran = runner.run(
            batch.feeds,
            given,
            numbers,
            output,
            start=kept.start(reading.batches),
            keep=kept.wanted(reading.batches),
        )
        kept.offer(reading.batches, ran.kept)
        for number, (count, mean, variance) in zip(numbers, ran.counted, strict=True):
            halves = reading.moments[subject.sites[number].layer]
            half = halves.second if reading.batches % 2 else halves.first
            half.add(count, mean, as_float64(variance) * count)
        if ran.answer is not None and with_accuracy:
            answers.add(ran.answer, batch)
        if ran.answer is not None and watch is not None:
            watch(batch, ran.answer)
        reading.samples += batch.size
        reading.batches += 1
    reading.right = answers.right()
    return reading


class _Answers:
    """A model's answers, compared with the labels of the samples.

    A label is the number of a class. A model that gives one score for each sample has two classes,
    and so have labels of -1 and 1; the larger label stands for the larger score.

    Args:
        output: the tensor of the answers, for messages.
    """

    def __init__(self, output: str) -> None:
        self._output = output
        self._right: int | None = None
        self._scores: list[Array] = []
        self._labels: list[Array] = []

    def add(self, answer: Array, batch: Batch) -> None:
        """Add the answers to a batch.

        Raises:
            AmbiguousError: they do not classify the samples, or the labels are of other classes.
        """
        if batch.labels is None:
            return
        scores = answer.reshape(answer.shape[0], -1) if answer.ndim else answer.reshape(1, 1)
        if len(scores) != batch.size:
            shape = list(answer.shape)
            raise AmbiguousError(
                self._output, f"its shape {shape} is no score for each sample", "name --answer"
            )
        if scores.shape[1] == 1:
            self._scores.append(as_float64(scores)[:, 0])
            self._labels.append(batch.labels)
            return
        labels = batch.labels
        least, most = int(labels.min()), int(labels.max())
        if scores.shape[1] == 2 and least == -1:
            labels, least = np.maximum(labels, 0), 0
        if least < 0 or most >= scores.shape[1]:
            raise AmbiguousError(
                self._output,
                f"it has {scores.shape[1]} classes, counted from 0, and a label is "
                f"{least if least < 0 else most}",
                "name --answer, or other --labels",
            )
        self._right = (self._right or 0) + int((scores.argmax(1) == labels).sum())

    def right(self) -> int | None:
        """Return how many samples were classified as labelled; None without labels."""
        if not self._scores:
            return self._right
        scores, labels = np.concatenate(self._scores), np.concatenate(self._labels)
        # Only all scores tell probabilities from logits and from scores of -1 to 1.
        is_probability = scores.min() >= 0 and scores.max() <= 1 and labels.min() >= 0
        return int(
            (np.greater(scores, 0.5 if is_probability else 0.0) == np.greater(labels, 0)).sum()
        )
