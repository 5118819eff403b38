"""Both modes of batch norm side by side: with the stored statistics, and with the data's own.

If all layers hold the initial mean 0 and variance 1, the outputs of a classifier show in which
mode it was trained. A network is trained to make the mutual information of input and prediction
large: the entropy of the mean prediction minus the mean entropy of the predictions, in nats. It is
0 if all inputs get the same prediction, and the logarithm of the number of classes if the
predictions are certain and spread evenly. In the other mode, the network loses most of it. Data
other than that of the training can turn this round, so both limits below are far from where that
was seen. With labels, the accuracies have to agree as well.

`tests/survey/predict_mode.py` measures how often this is right. Of 6,878 sets of data for 138 small
classifiers, half of them trained in each mode, the predictions show the mode of 773, and the
accuracies that of 467 out of 4,190. No verdict was wrong. With three or more classes and 32 or
more samples like those of the training, every second one shows it; two classes rarely do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import nan, sqrt
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np

from bnstat.checks.rule import at_start
from bnstat.checks.training_mode import Evidence, TrainedWith, trained_with
from bnstat.estimate.data import Batch
from bnstat.estimate.passes import Floats, Statistics, Track, read
from bnstat.model import Array, Model, as_float64

if TYPE_CHECKING:
    from bnstat.estimate.recalibrating import Scene
    from bnstat.estimate.running.activations import Activation
    from bnstat.estimate.running.runner import Runner
    from bnstat.estimate.running.subject import Subject


Mode = Literal["stored", "own"]

MOST_SAMPLES: Final = 512
"""Samples on which both modes are compared."""

_MOST_BYTES: Final = 256 << 20
"""The memory that the inputs of these samples may take, if they are more than a batch."""

_MOST_NUMBERS: Final = 4096
"""Outputs of a sample that are compared; of larger outputs every n-th position."""

_LIMIT: Final = 0.01
"""The distance from a limit of the sigmoid or tanh, as a part of its range: saturated outputs."""

_SIGNIFICANT: Final = 4.0
"""Standard errors by which two accuracies differ clearly."""

_LEAST_RATIO: Final = 6.0
"""The least ratio of the information in both modes that shows how a network was trained."""

_LEAST_INFORMATION: Final = 0.65
"""The least information in the better mode, in nats. That of two classes is 0.69 at most."""

_LEAST_WITH_LABELS: Final = 1.0
_LEAST_RATIO_WITH_LABELS: Final = 2.0
"""The same if the accuracy differs clearly as well; then either pair of limits is enough."""

_LEAST_SAMPLES: Final = 32
"""Fewer samples show nothing."""


class Sample:
    """Some samples of data, drawn at random in one pass, with the outputs for them.

    Data is often sorted by class, and a batch of one class has statistics of its own. The batches
    of a sample are therefore mixed anew.

    Args:
        most: how many samples are drawn; fewer if they need too much memory.
    """

    def __init__(self, most: int = MOST_SAMPLES) -> None:
        self._most = most
        self._random = np.random.default_rng(0)
        self._seen = 0
        self._rows: list[tuple[dict[str, Array], Array | None, Array | None]] = []

    def add(self, batch: Batch, answer: Array) -> None:
        """Consider the samples of a batch, of which `answer` is the output."""
        outputs = rows_of(answer, batch.size)
        if not self._seen:
            size = sum(array.nbytes for array in batch.feeds.values()) // batch.size
            self._most = max(batch.size, min(self._most, _MOST_BYTES // max(size, 1)))
        for number in range(batch.size):
            place = self._seen if self._seen < self._most else self._random.integers(self._seen + 1)
            self._seen += 1
            if place >= self._most:
                continue
            row = (
                {name: np.array(array[number], array.dtype) for name, array in batch.feeds.items()},
                None if batch.labels is None else batch.labels[number],
                None if outputs is None else outputs[number].copy(),
            )
            self._rows[place : place + 1] = [row]

    def batches(self, size: int, is_fixed: bool) -> list[Batch]:
        """Return the samples in mixed batches of about a size, or exactly so if it is fixed."""
        self._random.shuffle(self._rows)
        count = len(self._rows)
        parts = count // size if is_fixed else -(-count // size)
        self._rows = self._rows[: parts * size]
        places = np.array_split(np.arange(len(self._rows)), parts) if parts else []
        return [_batch([self._rows[place] for place in part]) for part in places]

    def outputs(self) -> Floats | None:
        """Return the outputs for the samples, [samples, positions, scores], if they compare."""
        outputs = [output for _, _, output in self._rows if output is not None]
        if not outputs or len(outputs) < len(self._rows):
            return None
        return np.stack(outputs) if len({each.shape for each in outputs}) == 1 else None


def _batch(rows: list[tuple[dict[str, Array], Array | None, Array | None]]) -> Batch:
    feeds = {name: np.stack([row[0][name] for row in rows]) for name in rows[0][0]}
    labels = [row[1] for row in rows if row[1] is not None]
    return Batch(feeds, np.stack(labels) if labels else None, len(rows))


def rows_of(answer: Array, samples: int) -> Floats | None:
    """Return outputs as [samples, positions, scores]; None if there is not one per sample."""
    if not answer.ndim or len(answer) != samples or answer.dtype.kind in "SUO":
        return None
    if answer.ndim == 1:
        answer = answer[:, None]
    if answer.ndim > 2 and answer.shape[1] > 1 and _add_up(answer, 1) and not _add_up(answer, -1):
        answer = np.moveaxis(answer, 1, -1)
    width = answer.shape[-1]
    rows = answer.reshape(samples, -1, width)
    step = -(-rows.shape[1] * width // max(_MOST_NUMBERS, width))
    return as_float64(rows[:, :: max(step, 1)])


def _add_up(answer: Array, axis: int) -> bool:
    sums = as_float64(answer).sum(axis)
    return bool(np.isfinite(sums).all() and (np.abs(sums - 1) < _ROUNDED).all())


_ROUNDED: Final = 0.02
"""The distance from 1 of a sum of probabilities of half precision."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a model in one mode.

    Attributes:
        low, high: the least and the largest; NaN if none is finite.
        spread: how far those of different samples are apart: the root of their mean variance.
        saturated: the part that is at a limit of the sigmoid or tanh; None for others.
        information: the mutual information of input and prediction in nats; None if the outputs
            are not known to be scores of classes.
        accuracy: the part of the samples that is classified as labelled; None without labels.
    """

    low: float
    high: float
    spread: float
    saturated: float | None = None
    information: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Modes:
    """The outputs of a model in both modes.

    Attributes:
        trained_with: the statistics that normalized in training, as the outputs show it.
        reason: one sentence that says why, with the numbers.
        samples: how many samples were compared.
        stored: with the stored statistics.
        own: with the data's own statistics.
        difference: the root of the mean square of the difference of both.
        classes: how many there are; None if the outputs are not known to be scores of classes.
        better: the mode with the clearly higher accuracy; None if there is none, or no labels.
    """

    trained_with: TrainedWith
    reason: str
    samples: int
    stored: Outputs
    own: Outputs
    difference: float
    classes: int | None
    better: Mode | None


@dataclass(frozen=True, slots=True)
class ModeEvidence:
    """All that shows with which statistics a network was trained.

    Attributes:
        file: what the file shows.
        data: what the outputs show; None if they were not compared.
    """

    file: Evidence
    data: Modes | None

    @property
    def trained_with(self) -> TrainedWith:
        """What the evidence agrees on."""
        verdicts = {each.trained_with for each in self._all()} - {"unknown"}
        return verdicts.pop() if len(verdicts) == 1 else "unknown"

    @property
    def reasons(self) -> list[str]:
        """What decides; all of it if nothing does."""
        decided = [each.reason for each in self._all() if each.trained_with != "unknown"]
        return decided or [each.reason for each in self._all()]

    def _all(self) -> Iterator[Evidence | Modes]:
        yield self.file
        if self.data is not None:
            yield self.data


def mode_evidence(model: Model, data: Modes | None) -> ModeEvidence:
    """Return what the file of a model shows, beside what its outputs show."""
    return ModeEvidence(trained_with(model), data)


def doubt_of(model: Model, subject: Subject) -> str | None:
    """Return why the outputs cannot show how a model was trained; None if they may.

    Args:
        model: all of its layers.
        subject: the layers that are compared.
    """
    initial = sum(map(at_start, subject.layers.values()))
    if initial < len(subject.layers):
        only = f"only {initial} of {len(subject.layers)} layers hold the initial statistics"
        return only if initial else "the moving statistics were updated"
    others = [layer.name for layer in model.layers if layer.name not in subject.layers]
    return (
        f"the layer {others[0]} runs with its stored statistics in both modes" if others else None
    )


class Accuracy(NamedTuple):
    """The part of some samples that is classified as labelled."""

    part: float
    samples: int


class Again(NamedTuple):
    """The outputs for a sample from two passes, and the accuracy of the second."""

    first: Floats
    second: Floats
    accuracy: Accuracy | None


def run_again(
    scene: Scene, runner: Runner, sample: Sample, given: Statistics, track: Track
) -> Again | None:
    """Run a sample once more with other statistics; None if its outputs cannot be compared.

    Args:
        scene: the model and the data.
        runner: a session with the model.
        sample: a sample of the data, with the outputs from a first pass.
        given: the statistics that each layer uses, unless it uses its batch's.
        track: shows how far it is.
    """
    data = scene.data
    batches = sample.batches(data.batch_size, data.is_fixed)
    first = sample.outputs()
    if first is None:
        return None
    second: list[Floats] = []

    def keep(batch: Batch, answer: Array) -> None:
        rows = rows_of(answer, batch.size)
        if rows is not None:
            second.append(rows)

    reading = read(
        scene.subject,
        runner,
        batches,
        track,
        "comparing the modes",
        given=given,
        layers=(),
        with_accuracy=data.labels is not None,
        watch=keep,
    )
    accuracy = None
    if reading.accuracy is not None:
        accuracy = Accuracy(reading.accuracy, reading.samples)
    outputs = np.concatenate(second)
    return Again(first, outputs, accuracy) if outputs.shape == first.shape else None


def compare(
    stored: Floats,
    own: Floats,
    activation: Activation | None,
    accuracies: tuple[Accuracy, Accuracy] | None = None,
    doubt: str | None = None,
) -> Modes:
    """Compare the outputs of a model in both modes.

    Args:
        stored: [samples, positions, scores], with the stored statistics.
        own: the same with the data's own.
        activation: the function that the outputs are the result or the input of.
        accuracies: in both modes, if there are labels.
        doubt: why the outputs cannot show how the network was trained.
    """
    of_classes = _probabilities(stored, own, activation, has_labels=accuracies is not None)
    in_stored, in_own = (
        _outputs(rows, activation, of_classes, accuracies and accuracies[place].part)
        for place, rows in enumerate((stored, own))
    )
    classes = None if of_classes is None else int(of_classes(stored[:1]).shape[-1])
    found: TrainedWith = "unknown"
    reason = doubt or "the outputs are not known to be scores of classes and prove nothing"
    if doubt is None and accuracies is not None:
        found, reason = by_accuracy(accuracies, in_stored.information, in_own.information)
    elif doubt is None and in_stored.information is not None and in_own.information is not None:
        found, reason = by_information(in_stored.information, in_own.information, len(stored))
    better = None if accuracies is None else better_of(accuracies)
    with np.errstate(all="ignore"):
        difference = _root(np.square(stored - own))
    return Modes(found, reason, len(stored), in_stored, in_own, difference, classes, better)


def _outputs(
    rows: Floats,
    activation: Activation | None,
    of_classes: Callable[[Floats], Floats] | None,
    accuracy: float | None,
) -> Outputs:
    finite = rows[np.isfinite(rows)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (nan, nan)
    with np.errstate(all="ignore"):
        spread = _root(rows.var(axis=0))
    found = None if of_classes is None else information(of_classes(rows))
    return Outputs(low, high, spread, _saturated(rows, activation), found, accuracy)


def by_information(stored: float, own: float, samples: int) -> tuple[TrainedWith, str]:
    """Return what the mutual information of input and prediction in both modes shows, and why."""
    low, high = sorted((stored, own))
    figures = (
        f"mutual information {stored:.3g} nats with the stored statistics, {own:.3g} with the "
        f"data's own, over {samples} samples"
    )
    is_clear = high >= max(_LEAST_INFORMATION, _LEAST_RATIO * low)
    if not is_clear or samples < _LEAST_SAMPLES:
        return "unknown", f"the predictions do not show how the network was trained ({figures})"
    return _VERDICTS[stored > own], f"in one mode the predictions follow the input ({figures})"


def by_accuracy(
    accuracies: tuple[Accuracy, Accuracy], stored: float | None, own: float | None
) -> tuple[TrainedWith, str]:
    """Return what the accuracies in both modes show, and why.

    Other data than that of the training can have a higher accuracy in the wrong mode, so the
    mutual information has to agree.

    Args:
        accuracies: with the stored statistics, and with the data's own.
        stored: the mutual information with the stored statistics; None if it is not known.
        own: the same with the data's own.
    """
    figures = (
        f"accuracy {percent(accuracies[0].part)} with the stored statistics, "
        f"{percent(accuracies[1].part)} with the data's own"
    )
    better = better_of(accuracies)
    if better is None:
        return "unknown", f"the accuracies do not differ clearly ({figures})"
    if stored is not None and own is not None:
        low, high = sorted((stored, own))
        agrees = (better == "stored") == (stored > own)
        is_clear = high >= max(_LEAST_INFORMATION, _LEAST_RATIO * low)
        is_clear = is_clear or high >= max(_LEAST_WITH_LABELS, _LEAST_RATIO_WITH_LABELS * low)
        if agrees and is_clear and min(each.samples for each in accuracies) >= _LEAST_SAMPLES:
            return _VERDICTS[better == "stored"], figures
    return "unknown", f"the accuracies can have other causes than the training ({figures})"


def better_of(accuracies: tuple[Accuracy, Accuracy]) -> Mode | None:
    """Return the mode with the clearly higher accuracy; None if chance can explain the difference.

    Args:
        accuracies: with the stored statistics, and with the data's own.
    """
    stored, own = accuracies
    count = stored.samples + own.samples
    pooled = (stored.part * stored.samples + own.part * own.samples) / count
    error = sqrt(pooled * (1 - pooled) * (1 / stored.samples + 1 / own.samples))
    if abs(stored.part - own.part) <= _SIGNIFICANT * error:
        return None
    return "stored" if stored.part > own.part else "own"


_VERDICTS: Final[dict[bool, TrainedWith]] = {True: "stored-statistics", False: "batch-statistics"}


def percent(part: float) -> str:
    """`97.5 %`."""
    return f"{part:.1%}".replace("%", " %")


def information(probabilities: Floats) -> float:
    """Return the mutual information of input and prediction in nats.

    Args:
        probabilities: [..., classes].
    """
    rows = probabilities.reshape(-1, probabilities.shape[-1])
    return max(float(_entropy(rows.mean(axis=0)) - _entropy(rows).mean()), 0.0)


def _entropy(probabilities: Floats) -> Floats:
    logarithms = np.log(np.where(probabilities > 0, probabilities, 1))
    return np.asarray(-(probabilities * logarithms).sum(axis=-1))


def _probabilities(
    stored: Floats, own: Floats, activation: Activation | None, has_labels: bool
) -> Callable[[Floats], Floats] | None:
    """Return what makes probabilities of the outputs; None if they are no scores of classes."""
    both = (stored, own)
    if not all(np.isfinite(rows).all() for rows in both):
        return None
    has_classes, is_binary = stored.shape[-1] > 1, stored.shape[1:] == (1, 1)
    if has_classes and all(map(_are_probabilities, both)):
        return lambda rows: rows
    if has_classes and all(
        (rows <= _ROUNDED).all() and _are_probabilities(np.exp(rows)) for rows in both
    ):
        return np.exp
    if has_classes and (activation == "logits of softmax" or has_labels):
        return _softmax
    if is_binary and activation == "sigmoid":
        return lambda rows: np.concatenate([rows, 1 - rows], axis=-1)
    if is_binary and activation == "logits of sigmoid":
        return lambda rows: _softmax(np.concatenate([rows, np.zeros_like(rows)], axis=-1))
    return None


def _are_probabilities(rows: Floats) -> bool:
    return bool((rows >= 0).all() and (np.abs(rows.sum(axis=-1) - 1) < _ROUNDED).all())


def _softmax(rows: Floats) -> Floats:
    powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _root(squares: Floats) -> float:
    return float(np.sqrt(squares.mean()))


def _saturated(rows: Floats, activation: Activation | None) -> float | None:
    limits = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}.get(activation or "")
    if limits is None:
        return None
    low, high = limits
    margin = _LIMIT * (high - low)
    return float(((rows < low + margin) | (rows > high - margin)).mean())
