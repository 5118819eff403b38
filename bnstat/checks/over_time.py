"""Rules that need more than one checkpoint: frozen, still drifting, diverging."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bnstat.checks.rule import Finding, Rule, Thresholds, count
from bnstat.run_history import History, Track

_INTERVALS: Final = 3
"""Drift and divergence are judged over the last three intervals between checkpoints."""


def _still_since(tracks: list[Track]) -> int:
    """Return the index of the last checkpoint in which a track moved or appeared.

    The change is NaN both where a layer appears and where a checkpoint lacks it. In the second
    case nothing moved.
    """
    moved = np.logical_or.reduce([(track.change != 0) & _is_there(track) for track in tracks])
    return int(np.flatnonzero(moved).max(initial=0))


def _is_there(track: Track) -> NDArray[np.bool_]:
    """Return for each checkpoint whether it has the layer."""
    return ~np.isnan(track.bad)


def _tracks_of(history: History, layer: str, roles: tuple[str, str]) -> list[Track]:
    held = (history.tracks.get((layer, role)) for role in roles)
    return [track for track in held if track is not None and _is_there(track)[-1]]


def _find_frozen(
    rule: Rule[History], history: History, thresholds: Thresholds
) -> Iterator[Finding]:
    last = len(history.checkpoints) - 1
    if last < 1:
        return
    since = {
        layer: tuple(
            _still_since(tracks) if tracks else None
            for tracks in (
                _tracks_of(history, layer, ("gamma", "beta")),
                _tracks_of(history, layer, ("moving_mean", "moving_variance")),
            )
        )
        for layer in history.layers
    }
    # A layer that the newest checkpoint lacks says nothing of the others.
    since = {layer: pair for layer, pair in since.items() if pair != (None, None)}
    if all(moment is None or moment < last for pair in since.values() for moment in pair):
        if since:
            yield rule.finding(
                f"no batch-norm variable changed in {history.checkpoints[last].name}: the weights "
                "of the checkpoint before were saved again, or all of the network's batch norm is "
                "frozen",
                severity="info",
            )
        return
    for layer, (weights, statistics) in since.items():
        if statistics is None:
            continue
        if statistics == last:
            if weights is not None and weights < last:
                yield rule.finding(
                    f"gamma and beta stand still {_stretch(history, weights)}, the moving "
                    "statistics move",
                    layer=layer,
                    severity="info",
                )
        elif weights is None or weights <= statistics:
            yield rule.finding(
                f"nothing moves {_stretch(history, statistics)}, while other layers do",
                layer=layer,
                severity="info",
            )
        elif _at_start(history, layer):
            yield rule.finding(
                "moving mean and variance are still the initial 0 and 1, though gamma or beta "
                "moved: the updates never ran, or the layer is trained in inference mode (bnstat "
                "check shows the evidence)",
                layer=layer,
                severity="warning",
            )
        else:
            yield rule.finding(
                f"moving mean and variance stand still {_stretch(history, statistics)}, though "
                "gamma or beta moved on",
                layer=layer,
                severity="warning",
            )


def _stretch(history: History, start: int) -> str:
    intervals = count(len(history.checkpoints) - 1 - start, "interval")
    return f"since {history.checkpoints[start].name} ({intervals})"


def _at_start(history: History, layer: str) -> bool:
    mean, variance = (
        history.tracks.get((layer, role)) for role in ("moving_mean", "moving_variance")
    )
    return (
        mean is not None
        and variance is not None
        and mean.min[-1] == mean.max[-1] == 0
        and variance.min[-1] == variance.max[-1] == 1
    )


FROZEN: Final[Rule[History]] = Rule(
    code="BN101",
    name="frozen",
    title="statistics do not change while weights do",
    severity="warning",
    what="From some checkpoint on, not one channel of the moving statistics changes. A warning "
    "where gamma or beta moves all the same; information where the whole layer does not change "
    "while others do, or where only gamma and beta do.",
    why="Weights that move under statistics that do not drift away from them: the network is "
    "trained for one normalization and used with another. If the layer runs in inference mode in "
    "training as well, nothing is wrong.",
    example="moving mean and variance stand still since model-1200 (4 intervals), though gamma or "
    "beta moved on.",
    mend={
        "TF1": "Run tf.GraphKeys.UPDATE_OPS with the training step. If the layer is to be "
        "frozen, freeze gamma and beta too.",
        "Keras 2": "layer.trainable = False freezes the whole layer and runs it in inference "
        "mode, from TensorFlow 2.0 on; before, the statistics kept moving. Call the model with "
        "training=True for the layers that are to learn.",
        "Keras 3": "As for Keras 2.",
    },
    confidence="Certain about the numbers; whether the layer was meant to be frozen only its "
    "author knows.",
    threshold="None: exact equality between neighbouring checkpoints.",
    find=_find_frozen,
)


def _find_drifting(
    rule: Rule[History], history: History, thresholds: Thresholds
) -> Iterator[Finding]:
    for track in _statistics(history):
        changes = track.change[-_INTERVALS:]
        turns = track.turn[-_INTERVALS + 1 :]
        if np.isnan(changes).any() or changes.min() <= thresholds.drift or not turns.mean() > 0.5:
            continue
        yield rule.finding(
            f"{track.role.replace('_', ' ')} still moves by {changes[-1]:.0%} between "
            "checkpoints, in the same direction",
            layer=track.layer,
            change=float(changes[-1]),
            turn=float(turns.mean()),
        )


def _statistics(history: History) -> Iterator[Track]:
    """The moving statistics' tracks, where there are enough checkpoints to judge them."""
    if len(history.checkpoints) > _INTERVALS:
        for (_, role), track in history.tracks.items():
            if role.startswith("moving"):
                yield track


DRIFTING: Final[Rule[History]] = Rule(
    code="BN102",
    name="still-drifting",
    title="statistics have not settled",
    severity="info",
    what="In each of the last three intervals between checkpoints a moving statistic moved by "
    "more than the threshold, and on in the same direction: it has not settled. The movement is "
    "the root mean square over the channels, in units of the root mean moving variance for the "
    "mean, and of its own root mean square for the variance.",
    why="The training ended, or was looked at, while the activations still changed: the moving "
    "averages trail behind them by 1 / (1 - momentum) steps.",
    example="moving mean still moves by 24% between checkpoints, in the same direction.",
    mend={
        "TF1": "Train on, with a falling learning rate; or end with some hundred steps at a "
        "learning rate of 0, so that the averages catch up.",
        "Keras 2": "As for TF1.",
        "Keras 3": "As for TF1.",
    },
    confidence="Medium: early in a training every network drifts.",
    threshold="`drift`, 0.1 by default: a tenth of a standard deviation of the activations. "
    "Movements count as in the same direction where the cosine between one and the next is above "
    "0.5 on average; values that scatter about a fixed point have -0.5.",
    find=_find_drifting,
)


def _find_diverging(
    rule: Rule[History], history: History, thresholds: Thresholds
) -> Iterator[Finding]:
    for track in history.tracks.values():
        broken = np.flatnonzero(track.bad > 0)
        if broken.size and broken[0] > 0:
            first = history.checkpoints[broken[0]].name
            yield rule.finding(
                f"{track.role.replace('_', ' ')} is not finite from {first} on", layer=track.layer
            )
    for track in _statistics(history):
        if track.role != "moving_variance" or track.bad[-1] > 0:
            continue
        growth = _growth(track)
        if growth.min() >= thresholds.growth and _does_not_slow(history, growth):
            yield rule.finding(
                f"mean moving variance grows by a factor of {growth.min():.2g} or more "
                f"between checkpoints, to {track.mean[-1]:.3g}, and does not slow down",
                layer=track.layer,
                severity="warning",
                growth=float(growth.min()),
                variance=float(track.mean[-1]),
            )


def _growth(track: Track) -> NDArray[np.float64]:
    """The factors between the layer's mean variances over the last intervals; NaN if none."""
    recent = track.mean[-_INTERVALS - 1 :]
    with np.errstate(all="ignore"):
        return np.where(recent[:-1] > 0, recent[1:] / recent[:-1], np.nan)


def _does_not_slow(history: History, growth: NDArray[np.float64]) -> bool:
    """Whether the growth per step (per checkpoint, where steps are unknown) does not fall."""
    steps = [checkpoint.step for checkpoint in history.checkpoints[-_INTERVALS - 1 :]]
    known = [step for step in steps if step is not None]
    lengths = np.diff(known) if len(known) == len(steps) else np.ones(_INTERVALS)
    if (lengths <= 0).any():
        lengths = np.ones(_INTERVALS)
    rates = np.log(growth) / lengths
    return bool((rates[1:] >= 0.8 * rates[:-1]).all())


DIVERGING: Final[Rule[History]] = Rule(
    code="BN103",
    name="diverging",
    title="statistics grow without end, or broke",
    severity="error",
    what="A variable of the layer became NaN or infinite during the run (an error), or its "
    "mean variance grew by more than the threshold in each of the last three intervals, without "
    "slowing down (a warning).",
    why="The activations before the layer grow exponentially. Normalization hides it from the "
    "loss until numbers overflow.",
    example="mean moving variance grows by a factor of 3.1 or more between checkpoints, to "
    "4.2e+06, and does not slow down.",
    mend={
        "TF1": "Lower the learning rate, add weight decay to the layer before (batch norm makes "
        "its scale free, so nothing else holds it), clip gradients.",
        "Keras 2": "As for TF1.",
        "Keras 3": "As for TF1.",
    },
    confidence="High for NaN; medium for growth: statistics that warm up from the initial 1 grow "
    "as well, but slow down.",
    threshold="`growth`, 1.5 by default, between neighbouring checkpoints; the rate per step may "
    "not fall by more than a fifth from one interval to the next. Statistics that warm up from 1 "
    "to any value fall faster than that.",
    find=_find_diverging,
)
