"""Recalibration: new statistics, estimated from data.

By default, all layers are estimated in one pass, in which each layer normalizes with batch
statistics, as in PreciseBN. A second pass, in inference, measures the residual. With `exact`, the
layers are estimated in waves from the input to the output.
Source: Wu and Johnson, "Rethinking 'Batch' in BatchNorm" (2021), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from bnstat.checks.rule import has_initial_statistics
from bnstat.checks.training_mode import trained_with
from bnstat.errors import BnstatError
from bnstat.estimate import passes
from bnstat.estimate.data import Settings
from bnstat.estimate.data.batches import Data
from bnstat.estimate.drift import not_trainable, refuse_nothing
from bnstat.estimate.modes import ModeEvidence, Sample, percent, run_again
from bnstat.estimate.passes import ActivationCache, Halves, Moments, Runner, Statistics, Track
from bnstat.estimate.preparation import Setup, set_up
from bnstat.estimate.running.network import UNREACHED
from bnstat.estimate.running.normalizations import MEAN, VARIANCE
from bnstat.model import Array, as_float64

_MOST_ROUNDS = 20  # passes for a wave whose new statistics change the inputs of the same wave
_SETTLED = 1e-6  # a wave ends when a pass changes no statistic by more (in deviations)

FAR = 0.05
"""Reports mention residuals larger than this, in standard deviations."""


@dataclass(frozen=True)
class Mended:
    """A layer and its new statistics. Each distance is the largest over all channels.

    Attributes:
        mean, variance: [channels], in the dtypes of the model.
        moved: the distance between new and old statistics, in new standard deviations.
        ratio: new variance / old variance, at the channel with the ratio farthest from 1.
        error: half the distance between the means of two halves of the data, in standard
            deviations; None for a single batch.
        remains: the distance between the new statistics and the statistics of the layer's input
            in a run with the new statistics, in standard deviations.
    """

    layer: str
    mean: Array
    variance: Array
    moved: float
    ratio: float
    error: float | None
    remains: float


@dataclass(frozen=True)
class Recalibration:
    """The result of a recalibration.

    Attributes:
        layers: the layers that were recalibrated, in the order of the network.
        left: layer that was not recalibrated -> the reason.
        samples, batches: the numbers of samples and batches.
        waves: the number of waves; 1 without `exact`.
        exact: True if the statistics were estimated in waves.
        accuracy: the accuracy before and after the recalibration; None without labels.
        evidence: the evidence of how the model was trained.
        is_initial: True if a layer held the initial statistics.
        not_trainable: the recalibrated layers that the model stores as not trainable.
    """

    layers: tuple[Mended, ...]
    left: Mapping[str, str]
    samples: int
    batches: int
    waves: int
    exact: bool
    accuracy: tuple[float, float] | None
    evidence: ModeEvidence
    is_initial: bool
    not_trainable: tuple[str, ...] = ()

    @property
    def objection(self) -> str | None:
        """The reason why the model should keep its statistics; None if there is no reason."""
        if self.is_initial and self.evidence.trained_with == "stored-statistics":
            reasons = "; ".join(self.evidence.reasons)
            return f"was trained in inference mode, with the statistics that it stores: {reasons}"
        if self.accuracy is not None and self.accuracy[1] < self.accuracy[0]:
            before, after = map(percent, self.accuracy)
            return f"would lose accuracy with the new statistics: {before} before, {after} after"
        return None

    @property
    def values(self) -> dict[str, dict[str, Array]]:
        """Layer -> role -> new statistics, [channels]."""
        return {each.layer: {MEAN: each.mean, VARIANCE: each.variance} for each in self.layers}


def recalibrate(
    model: Any,
    data: Any,
    output: str | PathLike[str] | None = None,
    *,
    exact: bool = False,
    in_place: bool = False,
    force: bool = False,
    track: Track = passes.untracked,
    **settings: Any,
) -> Recalibration:
    """Estimate the moving statistics of a model from data, and store them in the model.

    This runs the model, in inference. A model in memory is changed in place. For a model on disk, a
    copy is written as by `bnstat.apply`; with neither `output` nor `in_place`, nothing is written.

    Args:
        model: a path as for `load`, or a model of Keras, tf-keras, a `tf.Module`, or a
            `tf.compat.v1.Session`.
        data: a path (`.npz`, `.npy`, a folder of `tf.data.Dataset.save`, a TFRecord of
            `tf.Example`, a folder of images), or `module:function`. Data in memory can be arrays
            by input name, a pair `(x, y)`, a dataset or other iterable of batches, or a function
            that returns one of these.
        output: the path of the copy.
        exact: estimate in waves from the input to the output, so that each layer sees the new
            statistics of the layers before it. By default, all layers are estimated in one pass, in
            which each layer normalizes with batch statistics; this is less exact.
        in_place: replace the original by the copy.
        force: change the model even if training used the stored statistics, or if the new
            statistics lower the accuracy.
        track: a function that takes the batches and the name of the task, yields the batches, and
            shows the progress.
        **settings: as in `Settings`: `samples`, `batch_size`, `layers`, `labels`,
            `signature`, `inputs`, `outputs`, `feeds`, `imports`, `trust`, `images`,
            `checkpoint`, `step`, `patterns`, `include_shadows`.

    Raises:
        NotFoundError: model or data do not exist, or the data lacks an input.
        UnsupportedError: the model cannot be run, or needs `trust`; or no layer can be
            recalibrated.
        BnstatError: the data does not fit the model, the copy cannot be written, or the model
            should keep its statistics (see `force`).
    """
    from bnstat.mending.apply import apply
    from bnstat.mending.layout import planned

    chosen = Settings(**settings)
    setup = set_up(model, data, chosen)
    source, live = setup.model.source, setup.live
    is_written = output is not None or in_place
    if live is None and is_written:
        planned(source, output, in_place)  # raises now what the copy would raise after the run
    result = estimate(setup, exact=exact, track=track)
    refuse_nothing(setup, result.layers, result.left, "recalibrated")
    if result.objection and not force and (live is not None or is_written):
        hint = "keep the model as it is, or recalibrate it with --force (in Python force=True)"
        raise BnstatError(source.path, result.objection, hint)
    values = result.values
    for name, roles in values.items():
        for role, array in roles.items():
            variable = setup.model[name].variables[role]
            roles[role] = array.reshape(variable.shape)
            if live is not None:
                live.variables[variable.key].assign(roles[role])
    if live is None and is_written:
        apply(
            model,
            values,
            output,
            checkpoint=chosen.checkpoint,
            step=chosen.step,
            patterns=chosen.patterns,
            include_shadows=chosen.include_shadows,
            in_place=in_place,
        )
    return result


def estimate(
    setup: Setup, *, exact: bool = False, track: Track = passes.untracked
) -> Recalibration:
    """Estimate the statistics of a network's layers, without changing the model."""
    network, data = setup.network, setup.data
    has_labels = data.labels is not None
    old = network.stored()
    is_initial = any(map(has_initial_statistics, network.layers.values()))
    sample = Sample("own") if is_initial and network.is_comparable else None
    names = list(network.layers)
    waves = network.waves() if exact else [names]
    if not exact:
        with Runner(network, by_batch=True) as runner:
            batches = track(data, "estimating")
            moments = passes.read(runner, batches, statistics={}, layers=names).moments
    with Runner(network, by_batch=False, exact=exact) as runner:
        before = None
        if has_labels:
            batches = track(data, "accuracy before")
            before = passes.read(runner, batches, statistics=old, with_accuracy=True).accuracy
        if exact:
            moments = _in_waves(runner, data, track, waves)
        new = _new_statistics(moments, old)
        batches = track(data, "verifying")
        watch = None if sample is None else sample.add
        last = passes.read(
            runner, batches, statistics=new, layers=names, with_accuracy=has_labels, watch=watch
        )
        modes = None
        if sample is not None:
            modes = run_again(setup, runner, sample, track, old, (last.accuracy, before))
    accuracy = (before.part, last.accuracy.part) if before and last.accuracy else None
    left = dict(network.left)
    layers = []
    for name in names:
        if _is_usable(moments[name]):
            entering = last.moments[name].whole
            layers.append(_mended(name, old[name], new[name], moments[name], entering))
        else:
            is_reached = moments[name].whole.count > 1
            left[name] = "its input is NaN or infinite" if is_reached else UNREACHED
    counts = last.samples, last.batches, len(waves)
    evidence = ModeEvidence(trained_with(setup.model), modes)
    frozen = not_trainable(network, left)
    return Recalibration(
        tuple(layers), left, *counts, exact, accuracy, evidence, is_initial, frozen
    )


def _in_waves(
    runner: Runner, data: Data, track: Track, waves: Sequence[Sequence[str]]
) -> dict[str, Halves]:
    network, cache = runner.network, ActivationCache()
    moments: dict[str, Halves] = {}
    statistics: Statistics = network.stored()
    for number, (wave, cut) in enumerate(zip(waves, runner.cuts(waves), strict=True), 1):
        what = f"wave {number} of {len(waves)}"
        cache.begin_wave(cut)
        inputs = [each.x for each in network.normalizations if each.layer in wave]
        feeds_itself = any(not network.dependencies.marks(x).isdisjoint(wave) for x in inputs)
        for _ in range(_MOST_ROUNDS if feeds_itself else 1):
            batches = track(data, what)
            reading = passes.read(runner, batches, statistics=statistics, layers=wave, cache=cache)
            moments |= reading.moments
            old, statistics = statistics, _new_statistics(reading.moments, statistics)
            if all(_largest_distance(old[name], statistics[name]) <= _SETTLED for name in wave):
                break
    return moments


def _new_statistics(moments: Mapping[str, Halves], old: Statistics) -> Statistics:
    """Return a copy of `old` in which layers with usable moments have their new statistics."""
    new = dict(old)
    for name, halves in moments.items():
        if _is_usable(halves):
            values = {MEAN: halves.whole.mean, VARIANCE: halves.whole.variance}
            new[name] = {role: values[role].astype(old[name][role].dtype) for role in values}
    return new


def _is_usable(halves: Halves) -> bool:
    whole = halves.whole
    return whole.count > 1 and bool(np.isfinite(whole.mean + whole.squares).all())


def _mended(
    name: str, old: Mapping[str, Array], new: Mapping[str, Array], halves: Halves, entering: Moments
) -> Mended:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = as_float64(new[VARIANCE]) / as_float64(old[VARIANCE])
        farthest = np.nan_to_num(np.abs(np.log(ratios)), nan=0.0, posinf=np.inf)
    last = {MEAN: entering.mean, VARIANCE: entering.variance}
    ratio = float(ratios[int(np.argmax(farthest))])
    moved = _largest_distance(old, new)
    remains = _largest_distance(last, new) if entering.count else 0.0
    return Mended(name, new[MEAN], new[VARIANCE], moved, ratio, halves.error, remains)


def _largest_distance(first: Mapping[str, Array], second: Mapping[str, Array]) -> float:
    """Return the largest difference in mean or standard deviation, in deviations of `second`."""
    means = [as_float64(each[MEAN]) for each in (first, second)]
    deviations = [np.sqrt(np.maximum(as_float64(each[VARIANCE]), 0)) for each in (first, second)]
    gaps = [np.abs(one - other) for one, other in (means, deviations)]
    distances = [passes.in_deviations(gap, deviations[1]) for gap in gaps]
    return float(np.max(distances, initial=0.0))
