"""How a network with initial moving statistics was trained, as its weights and graphs show it.

A moving mean of 0 and a moving variance of 1 after training have two causes: the layers
normalized with the statistics of each batch and the updates of the moving statistics never ran,
or the layers ran in inference mode in training as well. Where a convolution or a dense layer adds
a bias right before the normalization, the weights tell the two apart:

- batch statistics: the mean is subtracted, the bias with it (Ioffe and Szegedy 2015, section
  3.2). The gradient of the bias is 0 but for rounding, so the bias stays what it was;
- stored statistics of 0 and 1: the bias is added to the same sum as beta, but for gamma. Both
  get the same gradient, so the bias follows beta.

If the file stores the optimizer's averages of both gradients, these are compared as well, and
decide: they show the last steps, whatever the training started from. The weights show the part of
the training that made most of beta. A network that changed its mode shortly before the end shows
the mode before.

The bias of a dense layer whose output is reshaped has a number for each position. Its sum over
the positions is compared in the same way.

`tests/survey/train_both_modes.py` measures how often this is right.

A training graph beside the weights shows the same directly: which statistics each normalization
takes, and which updates of the moving statistics run in a training step. Neither kind of evidence
outranks the other. If they contradict each other, the verdict is "unknown".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from typing import Final, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from bnstat.checks.rule import LARGEST_DEFAULT_EPSILON, at_start, count, numbers_of, statistics_of
from bnstat.errors import BnstatError
from bnstat.model import BatchNorm, Model, PrecedingBias, StatisticsUse, Variable, as_float64, fetch

TrainedWith = Literal["batch-statistics", "stored-statistics", "unknown"]

_FEWEST: Final = 16
"""Channels, without one of each layer for the mean, below which a correlation may be chance."""

_FOLLOWS: Final = 0.95
"""The least correlation with beta of a bias that follows it."""

_FOLLOWING_RATIO: Final = (0.1, 10.0)
"""The sizes, as multiples of beta's, of a bias that follows beta."""

_ROUNDING_RATIO: Final = 1e-3
"""The largest size, as a multiple of beta's, of a bias that is the sum of rounding errors."""

_ROUNDING_CORRELATION: Final = 0.6
"""The largest correlation of such a bias, of either sign; a tiny gamma makes a bias small, too."""

_INFLATED_RATIO: Final = 0.2
"""The largest size of a bias that is the sum of rounding errors which Adam divided by their size.

A bias that was trained in inference mode after a training on batch statistics can be as small.
"""

_CHANCE: Final = 2.5
"""The largest correlation of such a bias, in standard deviations of one by chance."""

_SAME_GRADIENT: Final = 0.3
"""The largest distance of a gradient from the one that inference mode gives, as a part of it."""

_NO_GRADIENT: Final = 3e-3
"""The largest size of a gradient that is rounding errors alone, as a part of it, too."""


_SUM_FOLLOWS: Final = 0.65
"""The least correlation with beta of a bias's sum over the positions, if it follows beta."""

_FEWEST_OF_SUMS: Final = 64
"""Channels below which this correlation may be chance."""


class Gradient(NamedTuple):
    """The gradient of a bias beside the one that inference mode gives it.

    Attributes:
        ratio: its size, as a multiple of the other's.
        distance: the size of their difference, as a multiple of the other's.
    """

    ratio: float
    distance: float


class Pair(NamedTuple):
    """A layer's beta, and the bias right before the layer.

    Attributes:
        bias, beta: a number for each channel; of a bias with a number for each position, the sum.
        is_proven: as that of `PrecedingBias`.
        gradient: that of the bias, by the optimizer's averages; None if these show nothing.
        is_sum: True if the bias is such a sum.
    """

    bias: NDArray[np.float64]
    beta: NDArray[np.float64]
    is_proven: bool = True
    gradient: Gradient | None = None
    is_sum: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the weights and the graphs of a model show of how it was trained.

    Attributes:
        trained_with: the statistics that normalized in training.
        reason: one sentence that says why, with the numbers.
        layers: how many layers were compared with the bias before them.
        channels: how many channels these have.
        ratio: the size of the bias as a multiple of beta's, both without their mean: the root of
            the mean square over the layers. None if there is nothing to compare.
        correlation: of bias and beta over the channels; the mean of the layers' correlations, by
            their numbers of channels. None if there is nothing to compare.
        gradient_ratio: the size of the bias's gradient as a multiple of the one that inference
            mode gives it: the layers' largest. None if the file does not store what it takes.
        graph_layers: how many layers a graph shows.
        updates: how many ops of the graph update the moving statistics of these layers.
        updates_run: how many of these ops run in a training step. None if no graph trains.
        layers_read: of how many of these layers anything but the updates reads the statistics.
    """

    trained_with: TrainedWith
    reason: str
    layers: int = 0
    channels: int = 0
    ratio: float | None = None
    correlation: float | None = None
    gradient_ratio: float | None = None
    graph_layers: int = 0
    updates: int = 0
    updates_run: int | None = None
    layers_read: int | None = None

    @property
    def is_unused(self) -> bool:
        """True if training used batch statistics, and no graph reads the stored ones."""
        return self.trained_with == "batch-statistics" and self.layers_read == 0


_known: Final[WeakKeyDictionary[Model, Evidence]] = WeakKeyDictionary()


def trained_with(model: Model) -> Evidence:
    """Return what the weights and the graphs of a model show together of how it was trained.

    If layers have the initial moving statistics, these layers count, otherwise all. The result is
    kept for as long as the model is. What cannot be read shows nothing.
    """
    if model not in _known:
        _known[model] = _combined(model)
    return _known[model]


def _combined(model: Model) -> Evidence:
    try:
        by_weights = training_evidence(model)
    except BnstatError as error:
        by_weights = Evidence("unknown", f"the weights cannot be read: {error}")
    try:
        uses = model.statistics_uses()
    except BnstatError:
        return by_weights
    initial = [layer for layer in model.layers if at_start(layer)] or model.layers
    shown = [uses[layer.name] for layer in initial if layer.name in uses]
    if not shown:
        return by_weights
    by_graph, reason = _by_graph(shown)
    verdicts = {by_weights.trained_with, by_graph} - {"unknown"}
    reasons = [reason]
    if len(shown) < len(initial):
        verdicts = {by_weights.trained_with}
        reasons.append(f"the graph shows {len(shown)} of {count(len(initial), 'layer')}")
    if by_weights.trained_with != "unknown":
        reasons.append(by_weights.reason)
    if len(verdicts) > 1:
        reasons.append("these contradict each other")
    runs = [use.updates_run for use in shown if use.updates_run is not None]
    return replace(
        by_weights,
        trained_with=verdicts.pop() if len(verdicts) == 1 else "unknown",
        reason="; ".join(reasons),
        graph_layers=len(shown),
        updates=sum(use.updates for use in shown),
        updates_run=sum(runs) if runs else None,
        layers_read=sum(use.is_read for use in shown),
    )


def _by_graph(uses: Sequence[StatisticsUse]) -> tuple[TrainedWith, str]:
    """Return how the layers were trained as their graphs show it, and one sentence that says why.

    A graph that has to be told in each step which statistics to use shows the mode of training
    only if no update runs: nobody trains with the stored statistics by repeating it each time.
    """
    modes = {use.mode for use in uses}
    updates = sum(use.updates for use in uses)
    updates_run = sum(use.updates_run or 0 for use in uses)
    unread = "" if any(use.is_read for use in uses) else ", and nothing but the updates reads them"
    if modes <= {None}:
        return "unknown", f"the graph in the file does not train{unread}"
    ran = f"the training op of the graph runs {updates_run} of {count(updates, 'update')}"
    of = f"{ran} of the moving statistics{unread}"
    if modes == {"stored"}:
        return "stored-statistics", f"{of}; training normalizes with the stored statistics"
    if modes == {"batch"}:
        return "batch-statistics", f"{of}; training normalizes with the statistics of each batch"
    if modes <= {"batch", "fed"} and not updates_run:
        return "batch-statistics", f"{of}; each step has to specify which statistics normalize"
    return "unknown", f"{of}; the graph trains with either kind of statistics"


def training_evidence(model: Model) -> Evidence:
    """Return what the weights show of how a model was trained.

    If layers have the initial moving statistics, these layers count. Otherwise all count of which
    the file stores the optimizer's averages: their weights show nothing, their gradients show
    whether the last steps used the stored statistics, as fine-tuning in inference mode does.

    Raises:
        DamagedError, NotFoundError: as `Variable.read`.
    """
    biases = model.preceding_biases()
    usable = [each for each in model.layers if each.name in biases and "beta" in each.variables]
    fetch(variable for layer in usable for variable in _variables(biases[layer.name]))
    pairs = [_pair(layer, biases[layer.name]) for layer in usable]
    if any(map(at_start, model.layers)):
        return judge([pair for pair, layer in zip(pairs, usable, strict=True) if at_start(layer)])
    with_gradients = [pair for pair in pairs if pair.gradient is not None]
    if not with_gradients:
        return Evidence(
            "unknown", "the moving statistics were updated, and no gradients are stored to compare"
        )
    return judge(with_gradients, by_weights=False)


def _variables(bias: PrecedingBias) -> Iterator[Variable]:
    yield bias.variable
    if bias.slots is not None:
        yield from (bias.slots.of_bias, bias.slots.of_beta)


def _pair(layer: BatchNorm, bias: PrecedingBias) -> Pair:
    """Read what is compared of a layer that has a beta."""
    beta = numbers_of(layer, "beta")
    assert beta is not None
    values = as_float64(bias.variable.read()).ravel()
    if values.size != beta.size:
        total = values.reshape(-1, beta.size).sum(axis=0)
        return Pair(total, beta, bias.is_proven, is_sum=True)
    gradient = None
    if bias.slots is not None:
        of_bias, of_beta = (
            as_float64(each.read()).ravel() for each in (bias.slots.of_bias, bias.slots.of_beta)
        )
        gradient = compare_gradients(of_bias, of_beta, bias.slots.are_squared, _scale(layer))
    return Pair(values, beta, bias.is_proven, gradient)


def _scale(layer: BatchNorm) -> NDArray[np.float64] | None:
    """What the layer multiplies each channel by in inference; None if it may be anything."""
    statistics = statistics_of(layer)
    if statistics is None:
        return None
    gamma = numbers_of(layer, "gamma")
    epsilon = LARGEST_DEFAULT_EPSILON if layer.epsilon is None else layer.epsilon
    with np.errstate(all="ignore"):
        return (1.0 if gamma is None else gamma) / np.sqrt(statistics[1] + epsilon)


def compare_gradients(
    of_bias: NDArray[np.float64],
    of_beta: NDArray[np.float64],
    are_squared: bool,
    scale: NDArray[np.float64] | None,
) -> Gradient | None:
    """Compare the gradient of a bias with the one that inference mode gives it.

    Args:
        of_bias: the optimizer's average of the gradients of the bias.
        of_beta: the same of beta.
        are_squared: True if these are averages of squared gradients.
        scale: what the layer multiplies each channel by in inference mode; None for 1.
    """
    with np.errstate(all="ignore"):
        if are_squared:
            of_bias, of_beta = np.sqrt(of_bias), np.sqrt(of_beta)
            scale = None if scale is None else np.abs(scale)
        expected = of_beta if scale is None else of_beta * scale
        sizes = [float(np.linalg.norm(each)) for each in (of_bias, expected, of_bias - expected)]
    if not all(map(isfinite, sizes)) or not sizes[0] or not sizes[1]:
        return None
    return Gradient(sizes[0] / sizes[1], sizes[2] / sizes[1])


def judge(pairs: Sequence[Pair], by_weights: bool = True) -> Evidence:
    """Return what the pairs of one model show together.

    Args:
        pairs: the pairs.
        by_weights: True if the layers' statistics are the initial 0 and 1, so that the weights
            count as well as the gradients.
    """
    if not pairs:
        return Evidence("unknown", "no bias is added right before a layer with a beta")
    if any(pair.is_sum for pair in pairs):
        found = judge([pair for pair in pairs if not pair.is_sum], by_weights)
        sums = [pair for pair in pairs if pair.is_sum]
        return found if found.trained_with != "unknown" else _by_sums(sums, found)
    used = [pair for pair in pairs if _moved(pair.bias) and _moved(pair.beta)]
    if not used:
        return Evidence("unknown", "the beta of the layers or the bias before them was not trained")
    sizes = [pair.beta.size for pair in used]
    ratios, correlations = zip(*map(_compared, used), strict=True)
    ratio = float(np.sqrt(np.mean(np.square(ratios))))
    correlation = float(np.average(correlations, weights=sizes))
    gradients = [pair.gradient for pair in used if pair.gradient is not None]
    largest = max((gradient.ratio for gradient in gradients), default=None)
    is_proven = all(pair.is_proven for pair in used)
    verdict = _by_gradients(gradients, is_proven)
    if verdict == "unknown" and by_weights:
        verdict = _by_weights(sum(sizes) - len(sizes), ratio, correlation, is_proven)
    measured = [
        f"size {ratio:.2g} of beta's, correlation {correlation:.2f}, "
        f"over {count(sum(sizes), 'channel')} of {count(len(sizes), 'layer')}"
    ]
    if largest is not None:
        measured.append(f"gradient {largest:.2g} of that in inference mode")
    return Evidence(
        trained_with=verdict,
        reason=f"{_MEANING[verdict]} ({'; '.join(measured)})",
        layers=len(sizes),
        channels=sum(sizes),
        ratio=ratio,
        correlation=correlation,
        gradient_ratio=largest,
    )


def _by_sums(pairs: Sequence[Pair], otherwise: Evidence) -> Evidence:
    """Return what biases with a number for each position show, or otherwise other evidence.

    With the stored statistics, the gradient of beta is the sum of the gradients of such a bias
    over the positions, but for gamma. With batch statistics, that sum is 0. An optimizer that
    divides each gradient by its size weakens the correlation in the first case, and makes it
    negative in the second. In 10 trainings of small generators with Adam, RMSprop and SGD, the
    correlations were -0.62 to 1.00 in the first case, and -0.66 to 0.23 in the second.
    """
    used = [pair for pair in pairs if _moved(pair.bias) and _moved(pair.beta)]
    channels = sum(pair.beta.size for pair in used)
    if not used or channels < _FEWEST_OF_SUMS or not all(pair.is_proven for pair in used):
        return otherwise
    ratios, correlations = zip(*map(_compared, used), strict=True)
    ratio = float(np.sqrt(np.mean(np.square(ratios))))
    correlation = float(np.average(correlations, weights=[pair.beta.size for pair in used]))
    verdict: TrainedWith
    if correlation >= _SUM_FOLLOWS and ratio >= _FOLLOWING_RATIO[0]:
        verdict = "stored-statistics"
    elif ratio <= _ROUNDING_RATIO and abs(correlation) <= _ROUNDING_CORRELATION:
        verdict = "batch-statistics"
    else:
        return otherwise
    return Evidence(
        trained_with=verdict,
        reason=f"{_MEANING[verdict]} (its sum over the positions: size {ratio:.2g} of beta's, "
        f"correlation {correlation:.2f}, over {count(channels, 'channel')} of "
        f"{count(len(used), 'layer')})",
        layers=len(used),
        channels=channels,
        ratio=ratio,
        correlation=correlation,
    )


_MEANING: Final = {
    "batch-statistics": "the bias before the normalization did not follow beta, as it had no "
    "gradient: training normalized with the statistics of the batch",
    "stored-statistics": "the bias before the normalization followed beta: training used the "
    "stored statistics",
    "unknown": "the bias before the normalization does not show how the network was trained",
}


def _by_gradients(gradients: Sequence[Gradient], is_proven: bool) -> TrainedWith:
    if gradients and all(gradient.ratio <= _NO_GRADIENT for gradient in gradients):
        return "batch-statistics"
    is_same = gradients and all(gradient.distance <= _SAME_GRADIENT for gradient in gradients)
    return "stored-statistics" if is_same and is_proven else "unknown"


def _by_weights(freedom: int, ratio: float, correlation: float, is_proven: bool) -> TrainedWith:
    """The verdict by the sizes and the correlation over channels with so much freedom."""
    if freedom < _FEWEST:
        return "unknown"
    least, most = _FOLLOWING_RATIO
    if correlation >= _FOLLOWS and least <= ratio <= most:
        return "stored-statistics"
    if ratio <= _ROUNDING_RATIO and abs(correlation) <= _ROUNDING_CORRELATION:
        return "batch-statistics"
    if is_proven and ratio <= _INFLATED_RATIO and abs(correlation) <= _CHANCE / sqrt(freedom):
        return "batch-statistics"
    return "unknown"


def _moved(values: NDArray[np.float64]) -> bool:
    """Return True if the numbers are finite and differ, as those of trained variables do."""
    return bool(np.isfinite(values).all() and np.ptp(values) > 0)


def _compared(pair: Pair) -> tuple[float, float]:
    """The ratio of the sizes of bias and beta, and their correlation."""
    bias, beta = (values - values.mean() for values in (pair.bias, pair.beta))
    sizes = np.linalg.norm(bias), np.linalg.norm(beta)
    with np.errstate(all="ignore"):
        return float(sizes[0] / sizes[1]), float(bias @ beta / (sizes[0] * sizes[1]))
