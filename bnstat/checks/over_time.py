"""Rules about the history of a run: frozen, drifting, diverging or negative statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from bnstat.checks.rule import (
    SMALLEST_DEFAULT_EPSILON,
    Finding,
    Numbers,
    Rule,
    Severity,
    Thresholds,
    as_rule,
)
from bnstat.model import ROLES
from bnstat.run_history import History, Track
from bnstat.text import count

_INTERVALS: Final = 3


def _last_change(history: History, layer: str, roles: Sequence[str]) -> int | None:
    """Return the index of the last checkpoint in which one of the roles changed or appeared.

    Return None if no role has a finite channel in the newest checkpoint.
    `Track.change` is NaN both where a layer appears and where a checkpoint lacks the layer; only an
    appearance counts as a change.
    """
    changed = None
    for role in roles:
        track = history.tracks.get((layer, role))
        if track is None:
            continue
        is_known = ~np.isnan(track.min)
        if is_known[-1]:
            indices = np.flatnonzero((track.change != 0) & is_known)
            changed = max(changed or 0, int(indices.max(initial=0)))
    return changed


@as_rule("BN101", "frozen", "warning", "statistics do not change while weights do")
def _frozen(rule: Rule[History], history: History, _: Thresholds) -> Iterator[Finding]:
    last = len(history.checkpoints) - 1
    if last < 1:
        return
    changes = {
        layer: (_last_change(history, layer, ROLES[:2]), _last_change(history, layer, ROLES[2:]))
        for layer in history.layers
    }
    # A layer that is missing or not finite in the newest checkpoint shows nothing.
    changes = {layer: pair for layer, pair in changes.items() if pair != (None, None)}
    if all(change is None or change < last for pair in changes.values() for change in pair):
        if changes:
            yield rule.finding(
                f"no batch-norm variable changed in {history.checkpoints[last].name}: the weights "
                "of the previous checkpoint were saved again, or all batch norm is frozen",
                severity="info",
            )
        return

    def since(index: int) -> str:
        return f"since {history.checkpoints[index].name} ({count(last - index, 'interval')})"

    for layer, (weights, statistics) in changes.items():
        if statistics is None:
            continue
        severity: Severity = "info"
        if statistics == last:
            if weights is None or weights == last:
                continue
            message = f"gamma and beta have not changed {since(weights)}, but the statistics have"
        elif weights is None or weights <= statistics:
            message = f"nothing has changed {since(statistics)}, but other layers have"
        elif _at_start(history, layer):
            severity = "warning"
            message = (
                "moving mean and variance are still the initial 0 and 1, although gamma or beta "
                "changed: the updates never ran, or the layer is trained in inference mode; "
                "bnstat check shows the evidence"
            )
        else:
            severity = "warning"
            ago = since(statistics)
            message = f"moving mean and variance have not changed {ago}, although gamma or beta has"
        yield rule.finding(message, layer=layer, severity=severity)


def _at_start(history: History, layer: str) -> bool:
    tracks = [history.tracks.get((layer, role)) for role in ROLES[2:]]
    ends = [(track.min[-1], track.max[-1]) for track in tracks if track is not None]
    return ends == [(0, 0), (1, 1)]


def _statistics(history: History) -> Iterator[Track]:
    """Yield the track of each moving mean and variance, if there are at least 4 checkpoints."""
    if len(history.checkpoints) > _INTERVALS:
        for (_, role), track in history.tracks.items():
            if role.startswith("moving"):
                yield track


@as_rule("BN102", "still-drifting", "info", "statistics have not settled")
def _drifting(rule: Rule[History], history: History, thresholds: Thresholds) -> Iterator[Finding]:
    for track in _statistics(history):
        changes = track.change[-_INTERVALS:]
        turn = track.turn[-_INTERVALS + 1 :].mean()
        if changes.min() > thresholds.drift and turn > 0.5:
            change = float(changes[-1])
            changing = f"{track.role.replace('_', ' ')} still changes by {change:.0%}"
            message = f"{changing} between checkpoints, in the same direction"
            yield rule.finding(message, track.layer, change=change, turn=float(turn))


@as_rule("BN103", "diverging", "error", "statistics grow without limit, or broke")
def _diverging(rule: Rule[History], history: History, thresholds: Thresholds) -> Iterator[Finding]:
    broken: dict[tuple[str, int], list[str]] = {}
    for track in history.tracks.values():
        indices = np.flatnonzero(track.bad > 0)
        if indices.size and indices[0] > 0:
            role = track.role.replace("_", " ")
            broken.setdefault((track.layer, int(indices[0])), []).append(role)
    for (layer, index), roles in broken.items():
        first = history.checkpoints[index].name
        what = f"{', '.join(roles[:-1])} and {roles[-1]} are" if roles[1:] else f"{roles[0]} is"
        yield rule.finding(f"{what} not finite from {first} on", layer=layer)
    for track in _statistics(history):
        if track.role != "moving_variance" or track.bad[-1] > 0:
            continue
        recent = track.mean[-_INTERVALS - 1 :]
        with np.errstate(all="ignore"):
            growth = np.where(recent[:-1] > 0, recent[1:] / recent[:-1], np.nan)
        if growth.min() >= thresholds.growth and not _slows_down(history, growth):
            rate, last = float(growth.min()), float(track.mean[-1])
            by = f"by a factor of {rate:.2g} or more between checkpoints, to {last:.3g}"
            message = f"mean moving variance grows {by}, and does not slow down"
            yield rule.finding(message, track.layer, severity="warning", growth=rate, variance=last)


def _slows_down(history: History, growth: Numbers) -> bool:
    """Return True if the growth per step (or per checkpoint, if steps are unknown) falls."""
    steps = [checkpoint.step for checkpoint in history.checkpoints[-_INTERVALS - 1 :]]
    stored = [step for step in steps if step is not None]
    lengths = np.diff(stored) if len(stored) == len(steps) else np.ones(_INTERVALS)
    if (lengths <= 0).any():
        lengths = np.ones(_INTERVALS)
    rates = np.log(growth) / lengths
    return bool((rates[1:] < 0.8 * rates[:-1]).any())


@as_rule("BN104", "became-negative", "error", "a moving variance fell below 0 in the run")
def _became_negative(rule: Rule[History], history: History, _: Thresholds) -> Iterator[Finding]:
    for track in history.tracks.values():
        negative = np.flatnonzero(track.min < 0)
        if track.role != "moving_variance" or not negative.size:
            continue
        first = history.checkpoints[negative[0]].name
        when = f"from {first} on"
        if (track.min[negative[0] :] >= 0).any():
            when = f"in {count(negative.size, 'checkpoint')}, first in {first}"
        least = float(track.min[negative].min())
        message = f"moving variance is negative {when}, down to {least:.3g}"
        severity: Severity = "error" if least <= -SMALLEST_DEFAULT_EPSILON else "warning"
        yield rule.finding(message, track.layer, severity=severity, least=least)
