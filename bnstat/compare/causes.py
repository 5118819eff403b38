"""Why two layers that should be the same are not, where arithmetic shows it.

A layer that a converter rewrote to mean 0 and variance 1 has scale and shift alone. It is compared
by the mean and variance that it would have, were gamma, beta and epsilon those of the other one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal

import numpy as np

from bnstat.compare.effects import Effects, Floats, close, values_of, within
from bnstat.model import ROLES, BatchNorm, as_float64

Kind = Literal[
    "epsilon",
    "epsilon-unknown",
    "momentum",
    "momentum-meaning",
    "swapped",
    "unbiased-variance",
    "rescaled-variance",
    "deviation",
    "rounded",
    "order",
    "channels",
]
"""What a cause is, for programs."""

_EXACT: Final = 2e-7
"""What rounding a float32 anew may change, as a part of it."""

_IMPLIED: Final = 2e-5
"""The same of a mean and variance that are computed back from scale and shift."""

_FEW: Final = 10
"""One channel in so many may be another before it is the layer that is another."""

_FEWEST_SAMPLES: Final = 8
"""Of fewer samples, N/(N-1) is a factor such as 2 or 4/3, which has other reasons as well."""

_SHOWN: Final = 3

Values = Mapping[str, Floats]
"""Role -> values; 1 for a missing gamma, 0 for a missing beta."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why two layers differ: what it is, and the same with its numbers for people."""

    kind: Kind
    text: str


def settings_cause(setting: str, old: float, new: float) -> Cause:
    """Why two layers differ that say something different of themselves."""
    if setting == "epsilon":
        return Cause("epsilon", f"epsilon {old:g} -> {new:g}")
    if close(np.array([old + new]), np.ones(1), 1e-6).all():
        return Cause(
            "momentum-meaning",
            f"momentum {old:g} -> {new:g}: the share that is kept in one, that is taken in the "
            "other",
        )
    return Cause("momentum", f"momentum {old:g} -> {new:g}")


def are_alike(old: BatchNorm, new: BatchNorm, effects: Effects) -> bool:
    """Whether the values of two layers are the same within the tolerance of effects."""
    olds, news = _values(old), _values(new)
    if olds is None or news is None or olds["gamma"].size != news["gamma"].size:
        return False
    return _all_but(olds, news, effects.tolerance)


def is_rewritten(layer: BatchNorm) -> bool:
    """Whether a layer is at mean 0 and variance 1, so that it has scale and shift alone."""
    mean, variance = values_of(layer, "moving_mean"), values_of(layer, "moving_variance")
    return bool((mean == 0).all() and (variance == 1).all())


def value_causes(old: BatchNorm, new: BatchNorm, effects: Effects) -> tuple[Cause, ...]:
    """Why the values of two layers differ; the first that explains all of it."""
    olds, news = _values(old), _values(new)
    if olds is None or news is None or olds["gamma"].size != news["gamma"].size:
        return ()
    if (quantized := _quantized(old, new, olds, news)) is not None:
        return (quantized,)
    tolerance = max(_EXACT, effects.tolerance)
    is_new = is_rewritten(new)
    if is_rewritten(old) != is_new:
        # In each, epsilon is that of the layer that still has its statistics.
        epsilon = effects.epsilon(old if is_new else new)
        rewritten = effects.of(new if is_new else old)
        if epsilon is None or rewritten is None:
            return (Cause("epsilon-unknown", "a file does not tell epsilon (--epsilon)"),)
        told = olds if is_new else news
        implied = _implied(rewritten.scale, rewritten.shift, told, epsilon)
        olds, news = (olds, implied) if is_new else (implied, news)
        tolerance = max(_IMPLIED, effects.tolerance)
        found = _other_epsilon(olds, news, epsilon, tolerance)
        if found is not None:
            return (found,)
    for explain in _EXPLANATIONS:
        found = explain(olds, news, tolerance)
        if found is not None:
            return (found,)
    return ()


def _values(layer: BatchNorm) -> Values | None:
    held = {role: values_of(layer, role) for role in ROLES if role in layer.variables}
    sizes = {array.size for array in held.values()}
    if "moving_mean" not in held or "moving_variance" not in held or len(sizes) != 1:
        return None
    size = sizes.pop()
    return {"gamma": np.ones(size), "beta": np.zeros(size), **held}


def _implied(scale: Floats, shift: Floats, told: Values, epsilon: float) -> Values:
    """The values of a layer of that scale and shift, with the gamma and beta of another."""
    with np.errstate(all="ignore"):
        mean = (told["beta"] - shift) / scale
        variance = (told["gamma"] / scale) ** 2 - epsilon
    return {**told, "moving_mean": mean, "moving_variance": variance}


def _other_epsilon(old: Values, new: Values, epsilon: float, tolerance: float) -> Cause | None:
    """Whether a variance that was computed back is off by a constant."""
    if not _all_but(old, new, tolerance, "moving_variance"):
        return None
    off = new["moving_variance"] - old["moving_variance"]
    size = np.abs(old["moving_variance"]) + epsilon
    # The least of the variances tells it best.
    shown = float(off[np.argmin(size)])
    if not within(off, np.full_like(off, shown), tolerance * size).all():
        return None
    if (np.abs(off) <= tolerance * size).all() or epsilon + shown < -tolerance:
        return None
    used = max(epsilon + shown, 0.0)
    return Cause("epsilon", f"the scale is that of epsilon {used:.2g}, not {epsilon:g}")


def _swapped(old: Values, new: Values, tolerance: float) -> Cause | None:
    for one, other in combinations(ROLES, 2):
        if (
            close(old[one], new[other], tolerance).all()
            and close(old[other], new[one], tolerance).all()
            and _all_but(old, new, tolerance, one, other)
        ):
            names = f"{one} and {other}".replace("_", " ")
            return Cause("swapped", f"{names} are swapped")
    return None


def _unbiased(old: Values, new: Values, tolerance: float) -> Cause | None:
    """A variance that is a multiple of the other: of N/(N-1), or of anything."""
    if not _all_but(old, new, tolerance, "moving_variance"):
        return None
    variance = old["moving_variance"]
    if not (variance > 0).all() or variance.size < 2:
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
        turned = "biased -> unbiased" if ratio > 1 else "unbiased -> biased"
        return Cause(
            "unbiased-variance",
            f"the variance differs by N/(N-1), N = {about}{round(samples)}: {turned}",
        )
    return Cause("rescaled-variance", f"the variance is multiplied by {ratio:.6g}")


def _deviation(old: Values, new: Values, tolerance: float) -> Cause | None:
    if not _all_but(old, new, tolerance, "moving_variance"):
        return None
    a, b = old["moving_variance"], new["moving_variance"]
    with np.errstate(all="ignore"):
        if close(np.sqrt(a), b, tolerance).all():
            return Cause("deviation", "the variance became the standard deviation")
        if close(a, np.sqrt(b), tolerance).all():
            return Cause("deviation", "the standard deviation became the variance")
    return None


def _quantized(old: BatchNorm, new: BatchNorm, olds: Values, news: Values) -> Cause | None:
    """Whether all that differs are numbers that one file has quantized, by half a step at most."""
    steps = {
        role: [step for step in map(_step, (old, new), (role, role)) if step is not None]
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


def _step(layer: BatchNorm, role: str) -> Floats | None:
    step = layer.variables[role].step() if role in layer.variables else None
    return None if step is None else as_float64(step).ravel()


def _rounded(old: Values, new: Values, tolerance: float) -> Cause | None:
    del tolerance
    import ml_dtypes

    for dtype in (np.float16, ml_dtypes.bfloat16):
        with np.errstate(all="ignore"):
            rounded = {role: old[role].astype(dtype).astype(np.float64) for role in ROLES}
            if all((rounded[role] == new[role]).all() for role in ROLES):
                return Cause("rounded", f"rounded to {np.dtype(dtype).name}")
            rounded = {role: new[role].astype(dtype).astype(np.float64) for role in ROLES}
            if all((rounded[role] == old[role]).all() for role in ROLES):
                return Cause("rounded", f"the old one is rounded to {np.dtype(dtype).name}")
    return None


def _order(old: Values, new: Values, tolerance: float) -> Cause | None:
    del tolerance
    olds, news = (np.stack([values[role] for role in ROLES]) for values in (old, new))
    same = (olds[:, np.lexsort(olds)] == news[:, np.lexsort(news)]).all()
    return Cause("order", "the channels are in another order") if same else None


def _channels(old: Values, new: Values, tolerance: float) -> Cause | None:
    moved = ~np.all([_same(old, new, role, tolerance) for role in ROLES], axis=0)
    count, size = int(moved.sum()), moved.size
    if not 0 < count <= max(1, size // _FEW) or count == size:
        return None
    places = np.flatnonzero(moved)
    listed = ", ".join(map(str, places[:_SHOWN])) + (", ..." if count > _SHOWN else "")
    roles = [role for role in ROLES if not _same(old, new, role, tolerance).all()]
    if count == 1 and len(roles) == 1:
        a, b = old[roles[0]][places[0]], new[roles[0]][places[0]]
        listed += f" ({roles[0].replace('_', ' ')} {a:.6g} -> {b:.6g})"
    what = "channel" if count == 1 else "channels"
    return Cause("channels", f"{count} of {size} channels differ: {what} {listed}")


def _same(old: Values, new: Values, role: str, tolerance: float) -> Floats:
    """Where a role is the same: relative to its own size, a mean to its deviation as well."""
    size = np.maximum(np.abs(old[role]), np.abs(new[role]))
    if role == "moving_mean":
        with np.errstate(invalid="ignore"):
            size = size + np.sqrt(np.maximum(old["moving_variance"], 0))
    same = within(old[role], new[role], tolerance * size)
    return np.asarray(same | (np.isnan(old[role]) & np.isnan(new[role])))


def _all_but(old: Values, new: Values, tolerance: float, *roles: str) -> bool:
    kept = [role for role in ROLES if role not in roles]
    return all(_same(old, new, role, tolerance).all() for role in kept)


Explanation = Callable[[Values, Values, float], Cause | None]

_EXPLANATIONS: Final[tuple[Explanation, ...]] = (
    _swapped,
    _rounded,
    _order,
    _channels,
    _unbiased,
    _deviation,
)
