"""Find out from weights and graphs how a network with initial statistics was trained.

If a convolution or a dense layer adds a bias right before the normalization, the bias shows which
statistics normalized in training:

- Batch statistics: subtracting the mean also removes the bias (Ioffe and Szegedy 2015, section
  3.2). The gradient of the bias is 0 except for rounding, so the bias keeps its initial value.
- Stored statistics of 0 and 1: bias and beta get the same gradient, apart from the factor gamma, so
  the bias follows beta.

The optimizer's averages of both gradients take precedence, because they show the last steps
regardless of the initial values. If the mode changed, the weights show the mode in which most of
beta was learned. A bias with one number per position is summed over the positions.

A training graph shows directly which statistics each normalization uses, and which updates run.
Neither kind of evidence outranks the other: if they contradict each other, the result is "unknown".
`tests/survey/train_both_modes.py` measures how often the result is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from math import isfinite, sqrt
from typing import Final, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from bnstat.checks.rule import Numbers, has_initial_statistics, numbers_of, scale_of
from bnstat.errors import BnstatError
from bnstat.model import BatchNorm, Model, PrecedingBias, StatisticsUse, as_float64, fetch
from bnstat.text import count

TrainedWith = Literal["batch-statistics", "stored-statistics", "unknown"]

_FEWEST: Final = 16  # channels (minus one per layer, for the mean) for a correlation
_FOLLOWS: Final = 0.95  # the smallest correlation between beta and a bias that follows beta
_FOLLOWING_RATIO: Final = (0.1, 10.0)
"""The smallest and the largest ratio (size of bias / size of beta) of a bias that follows beta."""

_ROUNDING_RATIO: Final = 1e-3  # the largest size of a sum of rounding errors, relative to beta
_ROUNDING_CORRELATION: Final = 0.6
"""The largest |correlation| with beta of a bias that is a sum of rounding errors. A bias that is
small because of a tiny gamma has a larger correlation."""

_INFLATED_RATIO: Final = 0.2
"""`_ROUNDING_RATIO` for optimizers that divide each gradient by its size, such as Adam.

A bias that was trained in inference mode after training with batch statistics can be as small.
"""

_CHANCE: Final = 2.5  # the largest correlation by chance, in standard deviations of chance
_SAME_GRADIENT: Final = 0.3  # the largest `Gradient.distance` after training in inference mode
_NO_GRADIENT: Final = 3e-3  # the largest `Gradient.ratio` of a gradient of rounding errors
_SUM_FOLLOWS: Final = 0.65  # the smallest correlation of position sums that follow beta
_FEWEST_OF_SUMS: Final = 64  # the minimum number of channels for a correlation of position sums


class Gradient(NamedTuple):
    """The gradient of a bias, compared with the gradient that inference mode would cause.

    `ratio` is |g| / |e|, and `distance` is |g - e| / |e|. Here, g is the gradient of the bias, and
    e is the gradient in inference mode: the gradient of beta times the scale of the layer.
    """

    ratio: float
    distance: float


class Pair(NamedTuple):
    """A layer's beta, and the bias right before the layer: one number per channel.

    `gradient` is None if the file stores no averages of gradients. `is_sum` is True if the bias has
    a number for each position, and was summed over the positions.
    """

    bias: Numbers
    beta: Numbers
    is_proven: bool = True
    gradient: Gradient | None = None
    is_sum: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence in weights and graphs of how a model was trained.

    Attributes:
        trained_with: the statistics that normalized during training.
        reason: the reason in one sentence, with the numbers.
        layers, channels: the number of layers and channels whose bias and beta were compared.
        ratio: standard deviation of the bias / standard deviation of beta (root mean square over
            the layers).
        correlation: the correlation of bias and beta over the channels (weighted mean over the
            layers).
        gradient_ratio: the largest `Gradient.ratio` of all layers.
        graph_layers: the number of layers in graphs.
        updates: the number of ops in graphs that update moving statistics.
        updates_run: the number of updates that run in a training step; None if no graph trains.
        layers_read: the number of layers whose statistics are read by ops other than updates.
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
        """True if training used batch statistics, and no graph reads the stored statistics."""
        return self.trained_with == "batch-statistics" and self.layers_read == 0


_cache: Final[WeakKeyDictionary[Model, Evidence]] = WeakKeyDictionary()


def trained_with(model: Model) -> Evidence:
    """Return the evidence in weights and graphs of how a model was trained.

    If any layers have the initial moving statistics, only those layers are judged. The result is
    cached for the lifetime of the model. Values that cannot be read are ignored.
    """
    if model not in _cache:
        _cache[model] = _by_weights_and_graph(model)
    return _cache[model]


def _by_weights_and_graph(model: Model) -> Evidence:
    try:
        by_weights = training_evidence(model)
    except BnstatError as error:
        by_weights = Evidence("unknown", f"the weights cannot be read: {error}")
    try:
        uses = model.statistics_uses()
    except BnstatError:
        return by_weights
    layers = [layer for layer in model.layers if has_initial_statistics(layer)] or model.layers
    shown = [uses[layer.name] for layer in layers if layer.name in uses]
    if not shown:
        return by_weights
    by_graph, reason = _by_graph(shown)
    reasons = [reason]
    answers = {by_weights.trained_with, by_graph} - {"unknown"}
    if len(shown) < len(layers):
        answers = {by_weights.trained_with}
        reasons.append(f"the graph shows {len(shown)} of {count(len(layers), 'layer')}")
    if by_weights.trained_with != "unknown":
        reasons.append(by_weights.reason)
    if len(answers) > 1:
        reasons.append("these contradict each other")
    runs = [use.updates_run for use in shown if use.updates_run is not None]
    return replace(
        by_weights,
        trained_with=answers.pop() if len(answers) == 1 else "unknown",
        reason="; ".join(reasons),
        graph_layers=len(shown),
        updates=sum(use.updates for use in shown),
        updates_run=sum(runs) if runs else None,
        layers_read=sum(use.is_read for use in shown),
    )


def _by_graph(uses: Sequence[StatisticsUse]) -> tuple[TrainedWith, str]:
    """Return how the layers were trained according to the graphs, and the reason.

    An input of the graph may select batch or stored statistics in each step. If such a graph does
    not update the moving statistics, batch statistics are assumed: training usually selects them.
    """
    modes = {use.mode for use in uses}
    updates = sum(use.updates for use in uses)
    updates_run = sum(use.updates_run or 0 for use in uses)
    unread = "" if any(use.is_read for use in uses) else ", and only the updates read them"
    if modes <= {None}:
        return "unknown", f"the graph in the file does not train{unread}"
    ran = f"the training op of the graph runs {updates_run} of {count(updates, 'update')}"
    ran += f" of the moving statistics{unread}"
    if modes == {"stored"}:
        return "stored-statistics", f"{ran}; training normalizes with the stored statistics"
    if modes == {"batch"}:
        return "batch-statistics", f"{ran}; training normalizes with the statistics of each batch"
    if modes <= {"batch", "fed"} and not updates_run:
        return "batch-statistics", f"{ran}; each step has to specify which statistics normalize"
    return "unknown", f"{ran}; the graph trains with either kind of statistics"


def training_evidence(model: Model) -> Evidence:
    """Return the evidence in a model's weights of how the model was trained.

    If any layers have the initial moving statistics, only these layers are judged. Otherwise, only
    stored gradients are judged: they show whether the last steps used the stored statistics, as in
    fine-tuning in inference mode.
    """
    biases = model.preceding_biases()
    usable = [layer for layer in model.layers if layer.name in biases and "beta" in layer.variables]
    chosen = [biases[layer.name] for layer in usable]
    slots = [slot for bias in chosen if bias.slots is not None for slot in bias.slots[:2]]
    fetch([*(bias.variable for bias in chosen), *slots])
    pairs = list(map(_pair, usable, chosen))
    if any(map(has_initial_statistics, model.layers)):
        return judge(list(compress(pairs, map(has_initial_statistics, usable))))
    if with_gradients := [pair for pair in pairs if pair.gradient is not None]:
        return judge(with_gradients, by_weights=False)
    reason = "the moving statistics were updated, and no gradients are stored to compare"
    return Evidence("unknown", reason)


def _pair(layer: BatchNorm, bias: PrecedingBias) -> Pair:
    beta = numbers_of(layer, "beta")
    assert beta is not None
    values = as_float64(bias.variable.read()).ravel()
    if values.size != beta.size:
        total = values.reshape(-1, beta.size).sum(axis=0)
        return Pair(total, beta, bias.is_proven, is_sum=True)
    gradient = None
    if bias.slots is not None:
        of_bias, of_beta = (as_float64(slot.read()).ravel() for slot in bias.slots[:2])
        gradient = compare_gradients(of_bias, of_beta, bias.slots.are_squared, scale_of(layer))
    return Pair(values, beta, bias.is_proven, gradient)


def compare_gradients(
    of_bias: Numbers, of_beta: Numbers, are_squared: bool, scale: Numbers | None
) -> Gradient | None:
    """Compare the gradient of a bias with the gradient that inference mode would cause.

    `of_bias` and `of_beta` are the optimizer's averages of gradients, or of squared gradients.
    `scale` is the factor of each channel in inference mode (None for 1). Return None if a gradient
    is 0 or not finite.
    """
    with np.errstate(all="ignore"):
        if are_squared:
            of_bias, of_beta = np.sqrt(of_bias), np.sqrt(of_beta)
            scale = None if scale is None else np.abs(scale)
        expected = of_beta if scale is None else of_beta * scale
        vectors = of_bias, expected, of_bias - expected
        sizes = [float(np.linalg.norm(vector)) for vector in vectors]
    if not all(map(isfinite, sizes)) or not sizes[0] or not sizes[1]:
        return None
    return Gradient(sizes[0] / sizes[1], sizes[2] / sizes[1])


class _Comparison:
    """Ratio and correlation of bias and beta, over the pairs whose bias and beta both vary."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = [
            pair
            for pair in pairs
            if all(np.isfinite(each).all() and np.ptp(each) > 0 for each in (pair.bias, pair.beta))
        ]
        sizes = [pair.beta.size for pair in self.pairs]
        self.channels = sum(sizes)
        self.is_proven = all(pair.is_proven for pair in self.pairs)
        ratios, correlations = [], []
        for pair in self.pairs:
            bias, beta = pair.bias - pair.bias.mean(), pair.beta - pair.beta.mean()
            norms = np.linalg.norm(bias), np.linalg.norm(beta)
            with np.errstate(all="ignore"):
                ratios.append(norms[0] / norms[1])
                correlations.append(bias @ beta / (norms[0] * norms[1]))
        if self.pairs:
            self.ratio = float(np.sqrt(np.mean(np.square(ratios))))
            self.correlation = float(np.average(correlations, weights=sizes))

    def evidence(self, trained_with: TrainedWith, subject: str = "") -> Evidence:
        """Return an `Evidence` with these numbers; `subject` precedes them in the reason."""
        gradients = [pair.gradient.ratio for pair in self.pairs if pair.gradient is not None]
        numbers = (
            f"{subject}size {self.ratio:.2g} of beta's, correlation {self.correlation:.2f}, over "
            f"{count(self.channels, 'channel')} of {count(len(self.pairs), 'layer')}"
        )
        if gradients:
            numbers += f"; gradient {max(gradients):.2g} of that in inference mode"
        return Evidence(
            trained_with=trained_with,
            reason=f"{_MEANING[trained_with]} ({numbers})",
            layers=len(self.pairs),
            channels=self.channels,
            ratio=self.ratio,
            correlation=self.correlation,
            gradient_ratio=max(gradients, default=None),
        )


_MEANING: Final = {
    "batch-statistics": "the bias before the normalization did not follow beta, because it had no "
    "gradient: training normalized with the statistics of the batch",
    "stored-statistics": "the bias before the normalization followed beta: training used the "
    "stored statistics",
    "unknown": "the bias before the normalization does not show how the network was trained",
}


def judge(pairs: Sequence[Pair], by_weights: bool = True) -> Evidence:
    """Return the evidence of how a model was trained, from one pair of bias and beta per layer.

    Pass `by_weights=False` for layers with updated statistics: only their gradients are evidence.
    """
    vectors = [pair for pair in pairs if not pair.is_sum]
    comparison = _Comparison(vectors)
    if not vectors:
        evidence = Evidence("unknown", "no bias is added right before a layer with a beta")
    elif not comparison.pairs:
        evidence = Evidence("unknown", "beta or the bias before the layers was not trained")
    else:
        answer = _by_gradients(comparison)
        if answer == "unknown" and by_weights:
            answer = _by_weights(comparison)
        evidence = comparison.evidence(answer)
    if evidence.trained_with == "unknown":
        sums = _Comparison([pair for pair in pairs if pair.is_sum])
        answer = _by_sums(sums)
        if answer != "unknown":
            return sums.evidence(answer, "its sum over the positions: ")
    return evidence


def _by_gradients(comparison: _Comparison) -> TrainedWith:
    gradients = [pair.gradient for pair in comparison.pairs if pair.gradient is not None]
    if gradients and all(gradient.ratio <= _NO_GRADIENT for gradient in gradients):
        return "batch-statistics"
    is_same = gradients and all(gradient.distance <= _SAME_GRADIENT for gradient in gradients)
    return "stored-statistics" if is_same and comparison.is_proven else "unknown"


def _by_weights(comparison: _Comparison) -> TrainedWith:
    freedom = comparison.channels - len(comparison.pairs)
    if freedom < _FEWEST:
        return "unknown"
    ratio, correlation = comparison.ratio, comparison.correlation
    least, most = _FOLLOWING_RATIO
    if correlation >= _FOLLOWS and least <= ratio <= most:
        return "stored-statistics"
    if ratio <= _ROUNDING_RATIO and abs(correlation) <= _ROUNDING_CORRELATION:
        return "batch-statistics"
    is_chance = abs(correlation) <= _CHANCE / sqrt(freedom)
    if comparison.is_proven and ratio <= _INFLATED_RATIO and is_chance:
        return "batch-statistics"
    return "unknown"


def _by_sums(comparison: _Comparison) -> TrainedWith:
    """Judge a model by the correlation of each beta with its bias, summed over the positions.

    With the stored statistics, the gradient of beta is the bias's gradient summed over positions,
    apart from the factor gamma. With batch statistics, the sum of the bias's gradient is 0. An
    optimizer that divides each gradient by its size weakens this correlation for stored statistics,
    and makes it negative for batch statistics. In 10 trainings of small generators with Adam,
    RMSprop and SGD, correlations were -0.62 to 1.00 (stored) and -0.66 to 0.23 (batch).
    """
    if comparison.channels < _FEWEST_OF_SUMS or not comparison.is_proven:
        return "unknown"
    ratio, correlation = comparison.ratio, comparison.correlation
    if correlation >= _SUM_FOLLOWS and ratio >= _FOLLOWING_RATIO[0]:
        return "stored-statistics"
    if ratio <= _ROUNDING_RATIO and abs(correlation) <= _ROUNDING_CORRELATION:
        return "batch-statistics"
    return "unknown"
