"""What is true of a pair of layers: the same values, the same effect, or a difference and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from bnstat.compare.causes import Cause, are_alike, is_rewritten, settings_cause, value_causes
from bnstat.compare.effects import Effects
from bnstat.model import BatchNorm

PairVerdict = Literal["same", "same-effect", "different"]

MEANINGS: Final[Mapping[str, str]] = {
    "same": "same values",
    "same-effect": "same effect (scale and shift agree, the values do not)",
    "folded": "folded, and proven (the weights are the original's times the scale, the bias is "
    "the shift)",
    "different": "different",
}
"""What is said of two layers, for people; `folded` is said of a layer and the weights beside it."""


def judge(
    old: BatchNorm,
    new: BatchNorm,
    settings: Sequence[tuple[str, float, float]],
    are_equal: bool,
    effects: Effects,
) -> tuple[PairVerdict, tuple[Cause, ...]]:
    """What is true of two layers, and why they differ where that can be told.

    Args:
        old: the one.
        new: the other.
        settings: those that both tell, and tell differently: name, old and new value.
        are_equal: whether all of their values are equal within the tolerance of values.
        effects: tells what they amount to.
    """
    if are_equal and not settings:
        return "same", ()
    causes = tuple(settings_cause(*setting) for setting in settings)
    agreement = effects.agree(old, new)
    if _same_at_any_epsilon(old, new, effects) if agreement is None else agreement.all():
        # Where statistics are the same, how they are to move on is told differently.
        if are_equal and any(name == "momentum" for name, _, _ in settings):
            return "different", causes
        return "same-effect", ()
    if are_equal or are_alike(old, new, effects):
        return "different", causes
    found = value_causes(old, new, effects)
    # Of values that differ for no known reason, a setting is not the reason; nor where one
    # layer has no statistics of its own any more.
    if not found or is_rewritten(old) != is_rewritten(new):
        return "different", found
    return "different", found + causes


def settings_of(old: BatchNorm, new: BatchNorm, effects: Effects) -> list[tuple[str, float, float]]:
    """The settings that both tell, and tell differently."""
    told = [
        ("epsilon", effects.epsilon(old), effects.epsilon(new)),
        ("momentum", old.momentum, new.momentum),
    ]
    # A graph holds them as float32, a config as float64.
    return [
        (name, one, other)
        for name, one, other in told
        if one is not None and other is not None and not math.isclose(one, other, rel_tol=1e-6)
    ]


def _same_at_any_epsilon(old: BatchNorm, new: BatchNorm, effects: Effects) -> bool:
    """Whether they do the same whatever the epsilon is of which a file does not tell."""
    # Scale and shift agree at all epsilons where they do at two far apart.
    trials = [Effects(effects.tolerance, epsilon) for epsilon in (1e-12, 1.0)]
    masks = [trial.agree(old, new) for trial in trials]
    return all(mask is not None and mask.all() for mask in masks)
