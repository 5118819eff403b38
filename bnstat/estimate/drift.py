"""The distance between a model's stored statistics and the statistics of real data.

The values of a channel are modelled as a normal distribution, once with the stored mean and
variance, once with the measured ones. The distance of the two distributions is the symmetric
divergence of Kullback and Leibler ("On information and sufficiency", 1951):
`J = ((r + 1 / r) / 2 - 1) + (mean - mean')^2 * (1 / v + 1 / v') / 2` with `r = v' / v`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bnstat.checks.rule import has_initial_statistics
from bnstat.checks.training_mode import trained_with
from bnstat.errors import UnsupportedError
from bnstat.estimate.data import Settings
from bnstat.estimate.modes import ModeEvidence, Sample, run_again
from bnstat.estimate.passes import Floats, Moments, Runner, Track, read, untracked
from bnstat.estimate.preparation import Setup, set_up
from bnstat.estimate.running.network import UNREACHED, Network
from bnstat.estimate.running.normalizations import MEAN, VARIANCE
from bnstat.model import Array, as_float64

State = Literal["healthy", "shifted", "never-updated", "invalid"]

_WORST_FIRST: tuple[State, ...] = ("invalid", "never-updated", "shifted")

SHIFTED = 0.1
"""Layers with a larger divergence count as shifted. Means that are 0.32 standard deviations apart
have this divergence, and variances with a ratio of 1.56."""


@dataclass(frozen=True)
class LayerDrift:
    """The distance between a layer's stored statistics and the statistics of its input, [channels].

    Attributes:
        shift: `(mean - stored_mean)` in stored standard deviations.
        ratio: `variance / stored_variance`.
        divergence: the symmetric divergence J. If a statistic of a channel is invalid, J is
            infinite, and shift and ratio are NaN.
        state: `invalid` if a statistic of any channel is not finite or a stored variance is
            negative; `healthy` if the mean divergence is at most `SHIFTED`; `never-updated` if the
            layer has the initial statistics; otherwise `shifted`.
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
        """The divergence, averaged over the channels."""
        return float(np.mean(self.divergence))


@dataclass(frozen=True)
class Drift:
    """The distance between a model's stored statistics and the statistics of data.

    Attributes:
        layers: in the order of the network.
        left: layer that was not measured -> the reason.
        samples: the number of samples.
        accuracy: the fraction of samples that were classified as labelled; None without labels.
        evidence: the evidence of how the model was trained; None if not examined.
        batches: the number of batches.
        not_trainable: the measured layers that the model stores as not trainable.
    """

    layers: tuple[LayerDrift, ...]
    left: Mapping[str, str]
    samples: int
    accuracy: float | None
    evidence: ModeEvidence | None = None
    batches: int = 1
    not_trainable: tuple[str, ...] = ()

    @property
    def largest(self) -> float:
        """The largest mean divergence of a layer; 0 if no layer was measured."""
        return max((each.total for each in self.layers), default=0.0)

    @property
    def state(self) -> State:
        """The most serious state of any layer; `healthy` if no layer was measured."""
        states = {each.state for each in self.layers}
        return next((state for state in _WORST_FIRST if state in states), "healthy")


def drift(model: Any, data: Any, *, track: Track = untracked, **settings: Any) -> Drift:
    """Measure how far the stored statistics of a model are from the statistics of data.

    This runs the model once, unchanged, in inference. If there are labels, or if a layer holds the
    initial mean 0 and variance 1, up to 512 samples run once more, normalized by batch statistics.
    The comparison can show which statistics the training used.

    `recalibrate` documents the arguments, the settings and the errors.
    """
    setup = set_up(model, data, Settings(**settings))
    network = setup.network
    names, stored = list(network.layers), network.stored()
    has_labels = setup.data.labels is not None
    is_compared = has_labels or any(map(has_initial_statistics, network.layers.values()))
    sample = Sample("stored") if is_compared and network.is_comparable else None
    with Runner(network, by_batch=False) as runner:
        batches = track(setup.data, "measuring")
        watch = None if sample is None else sample.add
        reading = read(
            runner, batches, statistics=stored, layers=names, with_accuracy=has_labels, watch=watch
        )
    left = dict(network.left)
    layers = []
    for name in names:
        entering = reading.moments[name].whole
        if entering.count < 2:
            left[name] = UNREACHED
        else:
            layers.append(_layer_drift(name, stored[name], entering))
    modes = None
    if sample is not None:
        with Runner(network, by_batch=True) as runner:
            modes = run_again(setup, runner, sample, track, {}, (reading.accuracy, None))
    refuse_nothing(setup, layers, left, "measured")
    accuracy = reading.accuracy and reading.accuracy.part
    evidence = ModeEvidence(trained_with(setup.model), modes)
    frozen = not_trainable(network, left)
    return Drift(tuple(layers), left, reading.samples, accuracy, evidence, reading.batches, frozen)


def not_trainable(network: Network, left: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the layers stored as not trainable, without the layers in `left`."""
    frozen = [name for name, layer in network.layers.items() if layer.trainable is False]
    return tuple(name for name in frozen if name not in left)


def refuse_nothing(setup: Setup, layers: Sequence[Any], left: Mapping[str, str], what: str) -> None:
    """Raise `UnsupportedError` with the first reason in `left` if `layers` is empty."""
    if not layers:
        name, reason = next(iter(left.items()))
        what = f"none of its layers can be {what}: {name}: {reason}"
        raise UnsupportedError(setup.model.source.path, what)


def _layer_drift(name: str, stored: Mapping[str, Array], entering: Moments) -> LayerDrift:
    mean, variance = entering.mean, entering.variance
    old_mean, old_variance = as_float64(stored[MEAN]), as_float64(stored[VARIANCE])
    invalid = ~np.isfinite(old_mean + old_variance + mean + variance) | (old_variance < 0)
    same = (mean == old_mean) & (variance == old_variance)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shift = np.where(same, 0.0, (mean - old_mean) / np.sqrt(old_variance))
        ratio = np.where(same, 1.0, variance / old_variance)
        divergence = (ratio + 1 / ratio) / 2 - 1
        divergence += (mean - old_mean) ** 2 * (1 / old_variance + 1 / variance) / 2
    divergence = np.where(same, 0.0, divergence)
    divergence = np.where(invalid | np.isnan(divergence), np.inf, divergence)
    shift, ratio = (np.where(invalid, np.nan, each) for each in (shift, ratio))
    state: State = "shifted" if np.mean(divergence) > SHIFTED else "healthy"
    if invalid.any():
        state = "invalid"
    elif state == "shifted" and (old_mean == 0).all() and (old_variance == 1).all():
        state = "never-updated"
    return LayerDrift(name, old_mean, old_variance, mean, variance, shift, ratio, divergence, state)
