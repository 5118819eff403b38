"""The causes of differences between two layers, as far as arithmetic shows them.

A layer that a converter rewrote to mean 0 and variance 1 has only scale and shift. The original
mean and variance are computed from scale and shift, and the other layer's gamma, beta and epsilon.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, islice
from typing import Final

import numpy as np

from bnstat.compare.effects import Effects, Mask, Values, close, values_of, values_of_roles, within
from bnstat.model import ROLES, BatchNorm, as_float64

_EXACT: Final = 2e-7  # the largest relative change when a value is rounded to float32 again
_IMPLIED: Final = 2e-5  # the largest relative rounding error of an implied mean or variance
_FEW: Final = 10  # up to one channel in 10 may differ; beyond that, the whole layer differs
_FEWEST_SAMPLES: Final = 8  # with fewer samples, N/(N-1) is a factor that has other causes too
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Cause:
    """Why two layers differ: `kind` is a fixed identifier, `text` a message with numbers."""

    kind: str
    text: str


def settings_cause(setting: str, old: float, new: float) -> Cause:
    """Return a cause that states the old and the new value of epsilon or momentum."""
    if setting == "epsilon":
        return Cause("epsilon", f"epsilon {old:g} -> {new:g}")
    text = f"momentum {old:g} -> {new:g}"
    if close(np.array([old + new]), np.ones(1), 1e-6).all():
        meaning = "one is the share of the old value, the other the share of the new"
        return Cause("momentum-meaning", f"{text}: {meaning}")
    return Cause("momentum", text)


def are_alike(old: BatchNorm, new: BatchNorm, effects: Effects) -> bool:
    """Return True if the values of two layers are equal within `effects.tolerance`."""
    values = _values_of_both(old, new)
    return values is not None and _are_same_except(*values, effects.tolerance)


def is_rewritten(layer: BatchNorm) -> bool:
    """Return True if all means are 0 and all variances are 1, as after some converters."""
    mean, variance = values_of(layer, "moving_mean"), values_of(layer, "moving_variance")
    return bool((mean == 0).all() and (variance == 1).all())


def value_causes(old: BatchNorm, new: BatchNorm, effects: Effects) -> tuple[Cause, ...]:
    """Return a tuple with one cause that explains all differing values, or an empty tuple."""
    values = _values_of_both(old, new)
    if values is None:
        return ()
    olds, news = values
    if (quantized := _quantized(old, new, olds, news)) is not None:
        return (quantized,)
    tolerance = max(_EXACT, effects.tolerance)
    is_new = is_rewritten(new)
    if is_rewritten(old) != is_new:
        # A converter that rewrites a layer changes gamma and beta as well.
        if _are_same_except(olds, news, tolerance, "moving_mean", "moving_variance"):
            side = "new" if is_new else "old"
            reason = "they were not ported, or were never updated"
            text = f"the {side} statistics are the initial 0 and 1: {reason}"
            return (Cause("initial-statistics", text),)
        # Both use the epsilon of the layer that still has its statistics.
        epsilon = effects.epsilon(old if is_new else new)
        rewritten = effects.of(new if is_new else old)
        if epsilon is None or rewritten is None:
            return (Cause("epsilon-unknown", "epsilon is missing in a file (pass --epsilon)"),)
        original = olds if is_new else news
        with np.errstate(all="ignore"):
            implied = {
                **original,
                "moving_mean": (original["beta"] - rewritten.shift) / rewritten.scale,
                "moving_variance": (original["gamma"] / rewritten.scale) ** 2 - epsilon,
            }
        olds, news = (olds, implied) if is_new else (implied, news)
        tolerance = max(_IMPLIED, effects.tolerance)
        if (cause := _other_epsilon(olds, news, epsilon, tolerance)) is not None:
            return (cause,)
    finders = [_swapped, _rounded, _order, _channels]
    if _are_same_except(olds, news, tolerance, "moving_variance"):
        finders += [_rescaled, _deviation]
    causes = (find(olds, news, tolerance) for find in finders)
    return tuple(islice(filter(None, causes), 1))


def _values_of_both(old: BatchNorm, new: BatchNorm) -> tuple[Values, Values] | None:
    """Return role -> values for each layer; None if a layer is incomplete or the sizes differ."""
    olds, news = values_of_roles(old), values_of_roles(new)
    if olds is None or news is None or olds["gamma"].size != news["gamma"].size:
        return None
    return olds, news


def _other_epsilon(old: Values, new: Values, epsilon: float, tolerance: float) -> Cause | None:
    """Return a cause if all variances differ by one constant, as after a change of epsilon."""
    if not _are_same_except(old, new, tolerance, "moving_variance"):
        return None
    offsets = new["moving_variance"] - old["moving_variance"]
    size = np.abs(old["moving_variance"]) + epsilon
    # The smallest variance gives the most digits.
    offset = float(offsets[np.argmin(size)])
    if not within(offsets, np.full_like(offsets, offset), tolerance * size).all():
        return None
    if (np.abs(offsets) <= tolerance * size).all() or epsilon + offset < -tolerance:
        return None
    used = max(epsilon + offset, 0.0)
    return Cause("epsilon", f"the scale results from epsilon {used:.2g}, not {epsilon:g}")


def _swapped(old: Values, new: Values, tolerance: float) -> Cause | None:
    for first, second in combinations(ROLES, 2):
        if (
            close(old[first], new[second], tolerance).all()
            and close(old[second], new[first], tolerance).all()
            and _are_same_except(old, new, tolerance, first, second)
        ):
            names = f"{first} and {second}".replace("_", " ")
            return Cause("swapped", f"{names} are swapped")
    return None


def _rescaled(old: Values, new: Values, tolerance: float) -> Cause | None:
    """Return a cause if all variances changed by one factor, such as N/(N-1)."""
    variance = old["moving_variance"]
    if variance.size < 2 or not (variance > 0).all():
        return None
    ratios = new["moving_variance"] / variance
    ratio = float(np.median(ratios))
    if not close(ratios, np.full_like(ratios, ratio), 4 * tolerance).all() or ratio <= 0:
        return None
    larger = ratio if ratio > 1 else 1 / ratio
    if larger - 1 <= 4 * tolerance:
        return None
    samples = larger / (larger - 1)
    doubt = 4 * tolerance * samples * samples
    if samples > _FEWEST_SAMPLES - 0.5 and abs(samples - round(samples)) <= max(doubt, 1e-4):
        about = "about " if doubt > 0.5 else ""
        change = "biased -> unbiased" if ratio > 1 else "unbiased -> biased"
        text = f"the variance differs by N/(N-1), N = {about}{round(samples)}: {change}"
        return Cause("unbiased-variance", text)
    return Cause("rescaled-variance", f"the variance is multiplied by {ratio:.6g}")


def _deviation(old: Values, new: Values, tolerance: float) -> Cause | None:
    a, b = old["moving_variance"], new["moving_variance"]
    with np.errstate(all="ignore"):
        if close(np.sqrt(a), b, tolerance).all():
            return Cause("deviation", "the variance became the standard deviation")
        if close(a, np.sqrt(b), tolerance).all():
            return Cause("deviation", "the standard deviation became the variance")
    return None


def _quantized(old: BatchNorm, new: BatchNorm, olds: Values, news: Values) -> Cause | None:
    """Return a cause if the values agree within half a quantization step; None otherwise."""
    steps = {
        role: [
            as_float64(step).ravel()
            for layer in (old, new)
            if role in layer.variables and (step := layer.variables[role].step()) is not None
        ]
        for role in ROLES
    }
    if not any(steps.values()):
        return None
    for role in ROLES:
        size = np.maximum(np.abs(olds[role]), np.abs(news[role]))
        distance = sum(steps[role], np.zeros(1)) * (0.5 + _EXACT) + _EXACT * size
        if not within(olds[role], news[role], distance).all():
            return None
    return Cause("rounded", "rounded to the steps of quantized numbers")


def _rounded(old: Values, new: Values, _: float) -> Cause | None:
    import ml_dtypes

    for dtype in (np.float16, ml_dtypes.bfloat16):
        name = np.dtype(dtype).name
        for exact, other, text in (
            (old, new, f"rounded to {name}"),
            (new, old, f"the old one is rounded to {name}"),
        ):
            with np.errstate(all="ignore"):
                rounded = {role: as_float64(exact[role].astype(dtype)) for role in ROLES}
            if all((rounded[role] == other[role]).all() for role in ROLES):
                return Cause("rounded", text)
    return None


def _order(old: Values, new: Values, _: float) -> Cause | None:
    olds, news = (np.stack([values[role] for role in ROLES]) for values in (old, new))
    same = (olds[:, np.lexsort(olds)] == news[:, np.lexsort(news)]).all()
    return Cause("order", "the channels are in another order") if same else None


def _channels(old: Values, new: Values, tolerance: float) -> Cause | None:
    moved = ~np.all([_same(old, new, role, tolerance) for role in ROLES], axis=0)
    count, size = int(moved.sum()), moved.size
    if not 0 < count <= max(1, size // _FEW) or count == size:
        return None
    channels = np.flatnonzero(moved)
    listed = ", ".join(map(str, channels[:_SHOWN])) + (", ..." if count > _SHOWN else "")
    roles = [role for role in ROLES if not _same(old, new, role, tolerance).all()]
    if count == 1 and len(roles) == 1:
        a, b = old[roles[0]][channels[0]], new[roles[0]][channels[0]]
        listed += f" ({roles[0].replace('_', ' ')} {a:.6g} -> {b:.6g})"
    noun = "channel" if count == 1 else "channels"
    return Cause("channels", f"{count} of {size} channels differ: {noun} {listed}")


def _same(old: Values, new: Values, role: str, tolerance: float) -> Mask:
    """Return a mask of the channels whose values of a role are equal within the relative tolerance.

    Means are compared relative to the sum of the mean and the standard deviation.
    """
    size = np.maximum(np.abs(old[role]), np.abs(new[role]))
    if role == "moving_mean":
        size = size + np.sqrt(np.maximum(old["moving_variance"], 0))
    same = within(old[role], new[role], tolerance * size)
    return np.asarray(same | (np.isnan(old[role]) & np.isnan(new[role])))


def _are_same_except(old: Values, new: Values, tolerance: float, *roles: str) -> bool:
    return all(_same(old, new, role, tolerance).all() for role in ROLES if role not in roles)
