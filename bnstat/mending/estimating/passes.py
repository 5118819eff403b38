"""One reading of the data: what enters each layer, and how often the model is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bnstat.errors import AmbiguousError
from bnstat.mending.estimating.data import Batch
from bnstat.mending.estimating.kept import Kept
from bnstat.mending.estimating.moments import Halves
from bnstat.model import Array, as_float64

if TYPE_CHECKING:
    from bnstat.mending.estimating.running.runner import Runner
    from bnstat.mending.estimating.running.subject import Subject

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
