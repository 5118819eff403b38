"""How far a model's stored statistics are from those of real data.

What a channel of a layer holds is taken for a normal distribution: the stored mean and variance
are one, those of what enters the layer in inference are another. Their distance is the symmetric
divergence of Kullback and Leibler ("On information and sufficiency", 1951):
`J = ((r + 1 / r) / 2 - 1) + (mean - mean')^2 * (1 / v + 1 / v') / 2` with `r = v' / v`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from bnstat.checks.rule import at_start
from bnstat.estimate.modes import (
    Accuracy,
    ModeEvidence,
    Modes,
    Sample,
    compare,
    doubt_of,
    mode_evidence,
    run_again,
)
from bnstat.estimate.passes import Floats, Reading, Track, read, untracked
from bnstat.model import Array, as_float64

if TYPE_CHECKING:
    from bnstat.estimate.recalibrating import Scene


State = Literal["healthy", "shifted", "never-updated", "invalid"]

SHIFTED = 0.1
"""The divergence of a layer from which it counts as shifted: that of means which are 0.32
standard deviations apart, or of variances one of which is 1.56 times the other."""


@dataclass(frozen=True)
class LayerDrift:
    """How far the statistics of a layer are from the data's, channel by channel.

    Attributes:
        layer: its name.
        stored_mean, stored_variance: [channels], float64.
        mean, variance: [channels], float64, of what entered the layer.
        shift: [channels], `(mean - stored_mean)` in stored standard deviations.
        ratio: [channels], `variance / stored_variance`.
        divergence: [channels], J; infinite where a statistic is invalid, and the shift and the
            ratio are NaN there.
        state: what that means; `invalid` if a statistic of any channel, stored or measured, is
            not finite, or a stored variance is negative.
    """

    layer: str
    stored_mean: Floats
    stored_variance: Floats
    mean: Floats
    variance: Floats
    shift: Floats
    ratio: Floats
    divergence: Floats
    state: State

    @property
    def total(self) -> float:
        """One number for the layer: the mean divergence of its channels."""
        return float(np.mean(self.divergence))


@dataclass(frozen=True)
class Drift:
    """How far a model's statistics are from the data's.

    Attributes:
        layers: in the order of the network.
        left: layer -> why it was not measured.
        samples: how many samples of the data were read.
        accuracy: the part of them that was classified as labelled, where there are labels.
        evidence: what shows how the model was trained; None if nobody asked.
    """

    layers: tuple[LayerDrift, ...]
    left: Mapping[str, str]
    samples: int
    accuracy: float | None
    evidence: ModeEvidence | None = None

    @property
    def largest(self) -> float:
        """The divergence of the layer that is farthest off; 0 where none was measured."""
        return max((each.total for each in self.layers), default=0.0)

    @property
    def state(self) -> State:
        """The state of the model as a whole: the worst of its layers."""
        states = {each.state for each in self.layers}
        order: tuple[State, ...] = ("invalid", "never-updated", "shifted")
        return next((state for state in order if state in states), "healthy")


def measure_drift(scene: Scene, *, track: Track = untracked) -> Drift:
    """Measure how far a model's statistics are from those of data, in one pass of inference.

    If there are labels or layers with the initial statistics, a second pass runs up to
    `modes.MOST_SAMPLES` samples with their own statistics.

    Args:
        scene: the model and the data.
        track: shows how far it is.

    Raises:
        BnstatError: the model cannot be run on this data.
    """
    subject, data = scene.subject, scene.data
    stored = subject.stored()
    with_accuracy = data.labels is not None
    is_compared = with_accuracy or any(map(at_start, subject.layers.values()))
    sample = Sample() if is_compared and subject.is_comparable else None
    with subject.runner(by_batch=False, sample=True) as runner:
        reading = read(
            subject,
            runner,
            data,
            track,
            "measuring",
            given=stored,
            layers=list(subject.layers),
            with_accuracy=with_accuracy,
            watch=None if sample is None else sample.add,
        )
    left = dict(subject.left)
    layers = []
    for name in subject.layers:
        entering = reading.moments[name].whole
        if entering.count < 2:
            left[name] = "the data never reaches it"
        else:
            variance = entering.variance(subject.unbiased[name])
            layers.append(_compared(name, stored[name], entering.mean, variance))
    modes = None if sample is None else _in_both_modes(scene, sample, reading, track)
    evidence = mode_evidence(scene.model, modes)
    return Drift(tuple(layers), left, reading.samples, reading.accuracy, evidence)


def _in_both_modes(scene: Scene, sample: Sample, reading: Reading, track: Track) -> Modes | None:
    """Run a sample with its own statistics, and compare the outputs; None if they cannot be."""
    with scene.subject.runner(by_batch=True, sample=True) as runner:
        again = run_again(scene, runner, sample, {}, track)
    if again is None:
        return None
    accuracies = None
    if reading.accuracy is not None and again.accuracy is not None:
        accuracies = (Accuracy(reading.accuracy, reading.samples), again.accuracy)
    doubt = doubt_of(scene.model, scene.subject)
    return compare(again.first, again.second, scene.subject.activation, accuracies, doubt)


def _compared(name: str, stored: Mapping[str, Array], mean: Floats, variance: Floats) -> LayerDrift:
    old_mean = as_float64(stored["moving_mean"])
    old_variance = as_float64(stored["moving_variance"])
    invalid = ~np.isfinite(old_mean + old_variance + mean + variance) | (old_variance < 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shift = (mean - old_mean) / np.sqrt(old_variance)
        ratio = variance / old_variance
        divergence = (ratio + 1 / ratio) / 2 - 1
        divergence += (mean - old_mean) ** 2 * (1 / old_variance + 1 / variance) / 2
    same = (mean == old_mean) & (variance == old_variance)
    shift, ratio, divergence = (
        np.where(same, neutral, each)
        for neutral, each in ((0.0, shift), (1.0, ratio), (0.0, divergence))
    )
    shift, ratio = (np.where(invalid, np.nan, each) for each in (shift, ratio))
    divergence = np.where(invalid | np.isnan(divergence), np.inf, divergence)
    state: State = "shifted" if np.mean(divergence) > SHIFTED else "healthy"
    if invalid.any():
        state = "invalid"
    elif state == "shifted" and (old_mean == 0).all() and (old_variance == 1).all():
        state = "never-updated"
    return LayerDrift(name, old_mean, old_variance, mean, variance, shift, ratio, divergence, state)
