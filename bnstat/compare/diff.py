"""What changed between two models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from bnstat.compare.alignment import Match, Pair, align
from bnstat.compare.causes import Cause, are_alike, is_rewritten, settings_cause, value_causes
from bnstat.compare.effects import TOLERANCE, Effects
from bnstat.compare.folding import Folded, find_folded
from bnstat.display import Displayed
from bnstat.errors import BnstatError
from bnstat.model import ROLES, Array, BatchNorm, Model, Source, as_float64, squeezed

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


Presence = Literal["both", "old", "new"]
Remark = Literal["frozen", "frozen-statistics", "frozen-weights"]

REMARKS: Final[Mapping[Remark, str]] = {
    "frozen": "nothing of this layer moved, while others did: it was frozen",
    "frozen-statistics": "the weights moved, the moving statistics did not: the layer ran in "
    "inference mode, or its updates never ran",
    "frozen-weights": "the moving statistics moved, gamma and beta did not: the weights were "
    "frozen, or the statistics were estimated anew",
}
"""What a pattern of movement says of a layer."""


@dataclass(frozen=True, slots=True)
class RoleChange:
    """What became of one role of a layer.

    Attributes:
        role: `gamma`, `beta`, `moving_mean` or `moving_variance`.
        presence: whether both models have it, or the old or the new one alone.
        shapes, dtypes: in the old and in the new model; None where it is missing.
        channels: the number of channels that could be compared.
        moved: how many of them differ by more than the tolerance.
        largest: the largest |new - old| (0 where nothing moved); None where nothing could be
            compared. A change to or from NaN or infinity is infinite.
        relative: the largest |new - old| / |old| over the channels that were not 0; None where
            there is none.
    """

    role: str
    presence: Presence
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    dtypes: tuple[str | None, str | None]
    channels: int = 0
    moved: int = 0
    largest: float | None = None
    relative: float | None = None

    @property
    def comparable(self) -> bool:
        """Whether both models have it, with the same shape (dimensions of 1 aside)."""
        return self.largest is not None

    @property
    def equal(self) -> bool:
        """Whether it is in both models, and equal within the tolerance."""
        return self.comparable and self.moved == 0


@dataclass(frozen=True, slots=True)
class SettingChange:
    """A setting that both files tell, and tell differently."""

    setting: str
    old: float
    new: float


@dataclass(frozen=True, slots=True)
class LayerChange:
    """A layer of both models.

    Attributes:
        old, new: the layer's name in each.
        match: how the two are known to be the same layer: `name`, `suffix` (one name is the end
            of the other), `position`, `values` or `effect`.
        roles: what became of each role that either has.
        settings: epsilon and momentum, where both files tell them and they differ.
        remark: what the pattern of movement says; see `REMARKS`.
        verdict: `same` values and settings, `same-effect` (scale and shift agree within the
            tolerance, though the values do not), or `different`.
        causes: why they differ, where arithmetic shows it.
        told: whether both models tell epsilon, or the old or the new one alone, or neither.
    """

    old: str
    new: str
    match: Match
    roles: tuple[RoleChange, ...]
    settings: tuple[SettingChange, ...]
    remark: Remark | None = None
    verdict: PairVerdict = "different"
    causes: tuple[Cause, ...] = ()
    told: Presence | None = None

    @property
    def equal(self) -> bool:
        """Whether the layer is the same in both models, within the tolerance."""
        return not self.settings and all(role.equal for role in self.roles)


@dataclass(frozen=True, slots=True)
class Difference(Displayed):
    """The answer of `diff`.

    Attributes:
        old, new: where the two models were read from.
        rtol, atol: the tolerance: `|new - old| <= atol + rtol * |old|` is no difference.
        tolerance: how far scales, shifts and folded weights may be apart, as a part of their
            size, and still be the same in effect.
        layers: those that both models have, in the order of the new one.
        removed, added: the names of those that only the old or only the new one has.
        folded: layers that one model has, and the other has in its weights, which is proven.
        misfolded: those of the removed and added that are in the other's weights by another
            scale or shift than theirs, with the causes.
        ties: names of layers of the new model that their place alone tells from another one.
    """

    old: Source
    new: Source
    rtol: float
    atol: float
    layers: tuple[LayerChange, ...]
    removed: tuple[str, ...]
    added: tuple[str, ...]
    tolerance: float = TOLERANCE
    folded: tuple[Folded, ...] = ()
    misfolded: tuple[Folded, ...] = ()
    ties: tuple[str, ...] = ()

    @property
    def equivalent(self) -> bool:
        """Return True if every layer is the same, the same in effect, or folded."""
        return not self.removed and not self.added and not self.different

    @property
    def verdict(self) -> PairVerdict:
        """The judgement on the two models as a whole, which every output shows."""
        return "same" if self.equal else "same-effect" if self.equivalent else "different"

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of layers by verdict, and of those that one model alone has."""
        verdicts = [layer.verdict for layer in self.layers]
        return {
            "same": verdicts.count("same"),
            "same-effect": verdicts.count("same-effect"),
            "folded": len(self.folded),
            "different": verdicts.count("different"),
            "removed": len(self.removed),
            "added": len(self.added),
        }

    @property
    def summary(self) -> str:
        """The judgement in one line: how many layers differ, or in which sense none does."""
        counts, total = self.counts, len(self.layers)
        tolerance = f"rtol {self.rtol:g} and atol {self.atol:g}" if self.rtol or self.atol else ""
        if self.verdict == "same":
            layers = "1 layer is" if total == 1 else f"{total:,} layers are"
            return f"no difference: {layers} equal" + (f" within {tolerance}" if tolerance else "")
        if self.verdict == "same-effect":
            within = f"within {self.tolerance:g}"
            if any(each.rounding for each in self.folded):
                within += " and the rounding of stored numbers"
            named = {"same": "the same", "same-effect": "the same in effect", "folded": "folded"}
            listed = [f"{counts[key]:,} {name}" for key, name in named.items() if counts[key]]
            return f"no difference in effect {within}: {', '.join(listed)}"
        parts = [f"{counts['different']:,} of {total:,} layers differ"]
        if tolerance:
            parts[0] += f" by more than {tolerance}"
        keys = ("folded", "removed", "added")
        return ", ".join([*parts, *(f"{counts[key]:,} {key}" for key in keys if counts[key])])

    @property
    def different(self) -> tuple[LayerChange, ...]:
        """The layers of both models that are not even the same in effect."""
        return tuple(layer for layer in self.layers if layer.verdict == "different")

    @property
    def equal(self) -> bool:
        """Whether the models have the same layers with the same values, within the tolerance."""
        missing = self.removed or self.added or self.folded
        return not missing and all(layer.equal for layer in self.layers)

    @property
    def changed(self) -> tuple[LayerChange, ...]:
        """The layers of both models that differ."""
        return tuple(layer for layer in self.layers if not layer.equal)

    @property
    def renamed(self) -> tuple[LayerChange, ...]:
        """The layers of both models that have another name in the new one."""
        return tuple(layer for layer in self.layers if layer.match != "name")


def diff(
    old: Model,
    new: Model,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    tolerance: float = TOLERANCE,
    epsilon: float | None = None,
) -> Difference:
    """Compare two models, whatever their formats.

    Numbers of different dtypes are compared by value. NaN equals NaN; where both models store
    the same dtype, only the NaN of the same bits. Positive and negative zero are equal.

    Args:
        old: the model from which relative changes are counted.
        new: the other one.
        rtol: relative tolerance, of the old value.
        atol: absolute tolerance. Both are 0 by default: exact.
        tolerance: how far scales, shifts and folded weights may be apart, as a part of their
            size, and still be the same in effect.
        epsilon: of the layers whose file does not tell it.

    Raises:
        BnstatError: a tolerance is negative or no number, or an array cannot be read.
    """
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (math.isfinite(value) and value >= 0):
            raise BnstatError(name, f"a tolerance is a number from 0 on, not {value:g}")
    effects = Effects(tolerance, epsilon)
    alignment = align(old, new, effects)
    compared = [(pair, _compare_roles(pair, rtol, atol)) for pair in alignment.pairs]
    any_moved = any(role.moved for _, roles in compared for role in roles)
    changes = [
        (pair, _layer_change(pair, roles, _remark(roles) if any_moved else None, effects))
        for pair, roles in compared
    ]
    any_alone = bool(alignment.removed or alignment.added)
    doubtful = [
        pair
        for pair, change in changes
        if change.verdict == "different" and not _is_sure(pair, any_alone)
    ]
    olds, news = [pair.old for pair in doubtful], [pair.new for pair in doubtful]
    found = [
        *find_folded(alignment.removed, old, new, "old", effects, olds),
        *find_folded(alignment.added, new, old, "new", effects, news),
    ]
    folded = [each for each in found if not each.causes]
    proven = {(each.side, each.layer) for each in folded}
    apart = [
        pair
        for pair in doubtful
        if ("old", pair.old.name) in proven or ("new", pair.new.name) in proven
    ]
    removed = (*alignment.removed, *(pair.old for pair in apart))
    added = (*alignment.added, *(pair.new for pair in apart))
    return Difference(
        old.source,
        new.source,
        rtol,
        atol,
        tuple(change for pair, change in changes if pair not in apart),
        tuple(each.name for each in removed if ("old", each.name) not in proven),
        tuple(each.name for each in added if ("new", each.name) not in proven),
        tolerance,
        tuple(folded),
        tuple(each for each in found if each.causes),
        alignment.ties,
    )


def _is_sure(pair: Pair, any_alone: bool) -> bool:
    """Whether two layers are the same one, whatever their values: by their name.

    PyTorch numbers the layers of a sequence: where one has fewer, others have their numbers.
    """
    is_number = pair.new.name.rpartition(".")[2].isdecimal()
    return pair.match == "name" and not (any_alone and is_number)


def _layer_change(
    pair: Pair, roles: tuple[RoleChange, ...], remark: Remark | None, effects: Effects
) -> LayerChange:
    settings = settings_of(pair.old, pair.new, effects)
    are_equal = all(role.equal for role in roles)
    verdict, causes = judge(pair.old, pair.new, settings, are_equal, effects)
    told = (effects.epsilon(pair.old) is not None, effects.epsilon(pair.new) is not None)
    return LayerChange(
        pair.old.name,
        pair.new.name,
        pair.match,
        roles,
        tuple(SettingChange(*setting) for setting in settings),
        remark,
        verdict,
        causes,
        _TOLD[told],
    )


_TOLD: Final[Mapping[tuple[bool, bool], Presence | None]] = {
    (True, True): "both",
    (True, False): "old",
    (False, True): "new",
    (False, False): None,
}


def _compare_roles(pair: Pair, rtol: float, atol: float) -> tuple[RoleChange, ...]:
    either = [role for role in ROLES if role in {*pair.old.variables, *pair.new.variables}]
    return tuple(_compare_role(role, pair.old, pair.new, rtol, atol) for role in either)


def _compare_role(
    role: str, old: BatchNorm, new: BatchNorm, rtol: float, atol: float
) -> RoleChange:
    a, b = old.array(role), new.array(role)
    presence: Presence = "new" if a is None else "old" if b is None else "both"
    shapes = (None if a is None else a.shape, None if b is None else b.shape)
    dtypes = (None if a is None else str(a.dtype), None if b is None else str(b.dtype))
    if a is None or b is None or squeezed(a.shape) != squeezed(b.shape):
        return RoleChange(role, presence, shapes, dtypes)
    before, after = as_float64(a).ravel(), as_float64(b).ravel()
    with np.errstate(all="ignore"):
        distance = np.abs(after - before)
        distance[(before == after) | _same_nan(a.ravel(), b.ravel())] = 0
        distance[np.isnan(distance)] = np.inf
        moved = distance > atol + rtol * np.abs(before)
        moved |= np.isinf(distance)
        relative = (distance / np.abs(before))[(before != 0) & np.isfinite(before)]
    return RoleChange(
        role,
        presence,
        shapes,
        dtypes,
        channels=before.size,
        moved=int(moved.sum()),
        largest=float(distance.max(initial=0)),
        relative=float(relative.max()) if relative.size else None,
    )


def _same_nan(a: Array, b: Array) -> NDArray[np.bool_]:
    both = np.isnan(as_float64(a)) & np.isnan(as_float64(b))
    if a.dtype == b.dtype and both.any():
        width = a.dtype.itemsize
        bits_a = np.ascontiguousarray(a).view(np.uint8).reshape(-1, width)
        bits_b = np.ascontiguousarray(b).view(np.uint8).reshape(-1, width)
        both &= (bits_a == bits_b).all(axis=1)
    return both


def _remark(roles: tuple[RoleChange, ...]) -> Remark | None:
    """What it says of a layer which of its roles moved, in a network where something did."""
    comparable = {role.role: role.moved > 0 for role in roles if role.comparable}
    weights = [comparable[role] for role in ("gamma", "beta") if role in comparable]
    statistics = [
        comparable[role] for role in ("moving_mean", "moving_variance") if role in comparable
    ]
    if not statistics:
        return None
    if not any(weights) and not any(statistics):
        return "frozen"
    if not any(statistics):
        return "frozen-statistics"
    if weights and not any(weights):
        return "frozen-weights"
    return None
