"""Compare a model's outputs in both modes of batch norm, to find the mode of its training.

In the mode "stored", layers normalize with the stored statistics; in the mode "own", with the
statistics of the data. If all layers hold the initial mean 0 and variance 1, the outputs of a
classifier can show which mode its training used. The measure is the mutual information of input and
prediction in nats: the entropy of the mean prediction minus the mean entropy of the predictions.
Training makes the information large in the mode that it uses; in the other mode, the network loses
most of it. Data unlike the training data can reverse this. Therefore, the limits below are stricter
than all observed reversals. With labels, the mode with the higher accuracy must also be the mode
with more information.

`tests/survey/predict_mode.py` measures how often the verdict is right. It runs 138 small
classifiers, half of them trained in each mode, on 6,878 sets of data. The predictions gave a
verdict for 773 sets. The accuracies gave a verdict for 467 of the 4,190 sets with labels. No
verdict was wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from typing import Final, Literal

import numpy as np

from bnstat.checks.rule import has_initial_statistics
from bnstat.checks.training_mode import Evidence, TrainedWith
from bnstat.estimate.data.batches import Batch, joined
from bnstat.estimate.passes import Accuracy, Floats, Runner, Statistics, Track, read
from bnstat.estimate.preparation import Setup
from bnstat.estimate.running.network import Activation, Network
from bnstat.model import Array, Model, as_float64

Mode = Literal["stored", "own"]
Conversion = Callable[[Floats], Floats]

MOST_SAMPLES: Final = 512

_MOST_BYTES: Final = 256 << 20  # of the drawn samples; one batch is kept even if it is larger
_MOST_NUMBERS: Final = 4096  # output values compared per sample; larger outputs use every n-th
_LIMIT: Final = 0.01  # outputs within this fraction of the range from either end are saturated
_SIGNIFICANT: Final = 4.0  # accuracies differ clearly by more than this number of standard errors
_LEAST_RATIO: Final = 6.0  # the smallest ratio of the information in the modes for a verdict
_LEAST_INFORMATION: Final = 0.65  # of the better mode, in nats; two classes have at most 0.69
_LEAST_WITH_LABELS: Final = 1.0
_LEAST_RATIO_WITH_LABELS: Final = 2.0
"""If the accuracies differ clearly, reaching either this pair of limits or the first suffices."""

_LEAST_SAMPLES: Final = 32
_ROUNDED: Final = 0.02  # the largest distance from 1 of a sum of probabilities in half precision

_VERDICTS: Final[dict[bool, TrainedWith]] = {True: "stored-statistics", False: "batch-statistics"}


class Sample:
    """Samples that are drawn at random during a pass in one mode, with the model's outputs.

    The samples are shuffled, because batches of one class, as in sorted data, are not typical.
    """

    def __init__(self, mode: Mode, most: int = MOST_SAMPLES) -> None:
        self.mode = mode
        self._most = most
        self._random = np.random.default_rng(0)
        self._seen = 0
        self._rows: list[tuple[Batch, Floats | None]] = []

    def add(self, batch: Batch, output: Array) -> None:
        """Draw samples from a batch, and keep each sample with the matching row of the output."""
        outputs = rows_of(output, batch.size)
        if not self._seen:
            size = sum(array.nbytes for array in batch.feeds.values()) // batch.size
            self._most = max(batch.size, min(self._most, _MOST_BYTES // max(size, 1)))
        for number in range(batch.size):
            place = self._seen if self._seen < self._most else self._random.integers(self._seen + 1)
            self._seen += 1
            if place < self._most:
                row = slice(number, number + 1)
                feeds = {name: array[row].copy() for name, array in batch.feeds.items()}
                labels = None if batch.labels is None else batch.labels[row]
                kept = None if outputs is None else outputs[row].copy()
                self._rows[place : place + 1] = [(Batch(feeds, labels, 1), kept)]

    def batches(self, size: int, is_fixed: bool) -> list[Batch]:
        """Shuffle all samples; return batches of up to `size` or, if `is_fixed`, exactly `size`."""
        self._random.shuffle(self._rows)
        count = len(self._rows)
        parts = count // size if is_fixed else -(-count // size)
        self._rows = self._rows[: parts * size]
        batches = []
        for places in np.array_split(np.arange(len(self._rows)), parts) if parts else []:
            samples = [self._rows[place][0] for place in places]
            labels = [each.labels for each in samples if each.labels is not None]
            feeds = joined([each.feeds for each in samples])
            batches.append(Batch(feeds, np.concatenate(labels) if labels else None, len(samples)))
        return batches

    def outputs(self) -> Floats | None:
        """Return all outputs, [samples, positions, scores]; None if they cannot be joined."""
        return _stacked([output for _, output in self._rows])


def _stacked(outputs: Sequence[Floats | None]) -> Floats | None:
    """Join outputs along the first axis; return None if an output is missing or shapes differ."""
    arrays = [each for each in outputs if each is not None]
    is_comparable = len(arrays) == len(outputs) and len({each.shape[1:] for each in arrays}) == 1
    return np.concatenate(arrays) if is_comparable else None


def rows_of(output: Array, samples: int) -> Floats | None:
    """Return an output as [samples, positions, scores]; if large, with only every n-th position.

    Return None if the output does not have one row for each sample, or is not numeric.
    """
    if not output.ndim or len(output) != samples or output.dtype.kind in "SUO":
        return None
    if output.ndim == 1:
        output = output[:, None]
    has_positions = output.ndim > 2 and output.shape[1] > 1
    if has_positions and _sums_to_1(output, 1) and not _sums_to_1(output, -1):
        output = np.moveaxis(output, 1, -1)
    width = output.shape[-1]
    rows = output.reshape(samples, -1, width)
    step = -(-rows.shape[1] * width // max(_MOST_NUMBERS, width))
    return as_float64(rows[:, :: max(step, 1)])


def _sums_to_1(array: Array, axis: int) -> bool:
    return bool((np.abs(as_float64(array).sum(axis) - 1) < _ROUNDED).all())


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a model in one mode.

    Attributes:
        spread: the root mean square of each output's standard deviation over the samples.
        saturated: the fraction of outputs at an end of the range of sigmoid or tanh.
        information: the mutual information of input and prediction in nats, if there are classes.
    """

    low: float
    high: float
    spread: float
    saturated: float | None = None
    information: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Modes:
    """The outputs of a model in both modes, and the training mode that the outputs show.

    `difference` is the root mean square of the difference between the outputs. `better` is the mode
    with the clearly higher accuracy, if there is one.
    """

    trained_with: TrainedWith
    reason: str
    samples: int
    stored: Outputs
    own: Outputs
    difference: float
    better: Mode | None


@dataclass(frozen=True, slots=True)
class ModeEvidence:
    """Evidence of how a network was trained: the file and, if both modes ran, the outputs."""

    file: Evidence
    data: Modes | None

    @property
    def trained_with(self) -> TrainedWith:
        """The statistics that training used; `unknown` without a verdict, or if verdicts differ."""
        verdicts = {each.trained_with for each in self._all} - {"unknown"}
        return verdicts.pop() if len(verdicts) == 1 else "unknown"

    @property
    def reasons(self) -> list[str]:
        """The reasons for the mode in which training ran, or why this mode is unknown."""
        decisive = [each.reason for each in self._all if each.trained_with != "unknown"]
        return decisive or [each.reason for each in self._all]

    @property
    def _all(self) -> list[Evidence | Modes]:
        return [self.file] if self.data is None else [self.file, self.data]


def doubt_of(model: Model, network: Network) -> str | None:
    """Return the reason why the outputs cannot show how a model was trained; None if they can."""
    initial = sum(map(has_initial_statistics, network.layers.values()))
    if initial < len(network.layers):
        only = f"only {initial} of {len(network.layers)} layers hold the initial statistics"
        return only if initial else "the moving statistics were updated"
    for layer in model.layers:
        if layer.name not in network.layers:
            return f"the layer {layer.name} runs with its stored statistics in both modes"
    return None


def run_again(
    setup: Setup,
    runner: Runner,
    sample: Sample,
    track: Track,
    statistics: Statistics,
    accuracies: tuple[Accuracy | None, Accuracy | None],
) -> Modes | None:
    """Run a sample in the other mode, and compare the outputs; None if their shapes differ.

    `accuracies` belong to the sample's mode and the other mode. If the second accuracy is missing,
    the accuracy over the sample replaces it.
    """
    data = setup.data
    batches = sample.batches(data.batch_size, data.is_fixed)
    before = sample.outputs()
    if before is None:
        return None
    outputs: list[Floats | None] = []
    reading = read(
        runner,
        track(batches, "comparing the modes"),
        statistics=statistics,
        with_accuracy=data.labels is not None,
        watch=lambda batch, output: outputs.append(rows_of(output, batch.size)),
    )
    after = _stacked(outputs)
    if after is None or after.shape != before.shape:
        return None
    stored, own = accuracies[0], accuracies[1] or reading.accuracy
    if sample.mode == "own":
        before, after, stored, own = after, before, own, stored
    both = None if stored is None or own is None else (stored, own)
    doubt = doubt_of(setup.model, setup.network)
    return compare(before, after, setup.network.activation, both, doubt)


def compare(
    stored: Floats,
    own: Floats,
    activation: Activation | None,
    accuracies: tuple[Accuracy, Accuracy] | None = None,
    doubt: str | None = None,
) -> Modes:
    """Compare the outputs of a model in both modes, [samples, positions, scores].

    `doubt` is a reason why the outputs cannot show how the network was trained.
    """
    of_classes = _probabilities(stored, own, activation, has_labels=accuracies is not None)
    in_stored, in_own = (
        _outputs(rows, activation, of_classes, accuracies and accuracies[place].part)
        for place, rows in enumerate((stored, own))
    )
    verdict: TrainedWith = "unknown"
    reason = doubt or "the outputs may not be scores of classes, so they prove nothing"
    if doubt is None and accuracies is not None:
        verdict, reason = by_accuracy(accuracies, in_stored.information, in_own.information)
    elif doubt is None and in_stored.information is not None and in_own.information is not None:
        verdict, reason = by_information(in_stored.information, in_own.information, len(stored))
    better = None if accuracies is None else _better_of(accuracies)
    with np.errstate(all="ignore"):
        difference = float(np.sqrt(np.square(stored - own).mean()))
    return Modes(verdict, reason, len(stored), in_stored, in_own, difference, better)


def _outputs(
    rows: Floats, activation: Activation | None, of_classes: Conversion | None, part: float | None
) -> Outputs:
    finite = rows[np.isfinite(rows)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (nan, nan)
    with np.errstate(all="ignore"):
        spread = float(np.sqrt(rows.var(axis=0).mean()))
    saturated = None
    if activation in ("sigmoid", "tanh"):
        least = 0.0 if activation == "sigmoid" else -1.0
        margin = _LIMIT * (1 - least)
        saturated = float(((rows < least + margin) | (rows > 1 - margin)).mean())
    mutual = None if of_classes is None else information(of_classes(rows))
    return Outputs(low, high, spread, saturated, mutual, part)


def by_information(stored: float, own: float, samples: int) -> tuple[TrainedWith, str]:
    """Return (training mode, reason) by the information in each mode; `unknown` if not clear."""
    figures = (
        f"mutual information {stored:.3g} nats with the stored statistics, {own:.3g} with the "
        f"data's own, over {samples} samples"
    )
    if not _is_clear(stored, own, _LEAST_INFORMATION, _LEAST_RATIO) or samples < _LEAST_SAMPLES:
        return "unknown", f"the predictions do not show how the network was trained ({figures})"
    return _VERDICTS[stored > own], f"in one mode the predictions follow the input ({figures})"


def by_accuracy(
    accuracies: tuple[Accuracy, Accuracy], stored: float | None, own: float | None
) -> tuple[TrainedWith, str]:
    """Return (training mode, reason) by the accuracies, if the information in each mode agrees."""
    figures = (
        f"accuracy {percent(accuracies[0].part)} with the stored statistics, "
        f"{percent(accuracies[1].part)} with the data's own"
    )
    better = _better_of(accuracies)
    if better is None:
        return "unknown", f"the accuracies do not differ clearly ({figures})"
    if stored is not None and own is not None:
        agrees = (better == "stored") == (stored > own)
        is_clear = _is_clear(stored, own, _LEAST_INFORMATION, _LEAST_RATIO)
        is_clear = is_clear or _is_clear(stored, own, _LEAST_WITH_LABELS, _LEAST_RATIO_WITH_LABELS)
        if agrees and is_clear and min(each.samples for each in accuracies) >= _LEAST_SAMPLES:
            return _VERDICTS[better == "stored"], figures
    return "unknown", f"the accuracies can have other causes than the training mode ({figures})"


def _is_clear(stored: float, own: float, least: float, ratio: float) -> bool:
    low, high = sorted((stored, own))
    return high >= max(least, ratio * low)


def _better_of(accuracies: tuple[Accuracy, Accuracy]) -> Mode | None:
    """Return the mode with the clearly higher accuracy; None if the difference may be chance."""
    stored, own = accuracies
    count = stored.samples + own.samples
    pooled = (stored.part * stored.samples + own.part * own.samples) / count
    error = sqrt(pooled * (1 - pooled) * (1 / stored.samples + 1 / own.samples))
    if abs(stored.part - own.part) <= _SIGNIFICANT * error:
        return None
    return "stored" if stored.part > own.part else "own"


def percent(part: float) -> str:
    """Return a fraction as a percentage, such as `97.5 %`."""
    return f"{part:.1%}".replace("%", " %")


def information(probabilities: Floats) -> float:
    """Return the mutual information of input and prediction in nats, from [..., classes]."""
    rows = probabilities.reshape(-1, probabilities.shape[-1])
    return max(float(_entropy(rows.mean(axis=0)) - _entropy(rows).mean()), 0.0)


def _entropy(probabilities: Floats) -> Floats:
    logarithms = np.log(np.where(probabilities > 0, probabilities, 1))
    return np.asarray(-(probabilities * logarithms).sum(axis=-1))


def _probabilities(
    stored: Floats, own: Floats, activation: Activation | None, has_labels: bool
) -> Conversion | None:
    """Return a function that converts outputs to class probabilities; None for other outputs."""
    both = np.concatenate([stored, own])
    if not np.isfinite(both).all():
        return None
    has_classes, is_binary = stored.shape[-1] > 1, stored.shape[1:] == (1, 1)
    if has_classes and (both >= 0).all() and _sums_to_1(both, -1):
        return lambda rows: rows
    if has_classes and (both <= _ROUNDED).all() and _sums_to_1(np.exp(both), -1):
        return np.exp
    if has_classes and (activation == "logits of softmax" or has_labels):
        return _softmax
    if is_binary and activation == "sigmoid":
        return lambda rows: np.concatenate([rows, 1 - rows], axis=-1)
    if is_binary and activation == "logits of sigmoid":
        return lambda rows: _softmax(np.concatenate([rows, np.zeros_like(rows)], axis=-1))
    return None


def _softmax(rows: Floats) -> Floats:
    powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
