"""The differences between two models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Final, Literal

import numpy as np

from bnstat.compare.alignment import Match, Pair, align
from bnstat.compare.causes import Cause, are_alike, is_rewritten, settings_cause, value_causes
from bnstat.compare.effects import TOLERANCE, Effects
from bnstat.compare.folding import Folded, Unfolded, find_folded
from bnstat.display import Displayed
from bnstat.errors import BnstatError
from bnstat.model import ROLES, Model, Source, as_float64, different, squeezed

PairVerdict = Literal["same", "same-effect", "different"]
Presence = Literal["both", "old", "new"]
Remark = Literal["frozen", "frozen-statistics", "frozen-weights"]

MEANINGS: Final[Mapping[str, str]] = {
    "same": "same values",
    "same-effect": "same effect (scale and shift agree, the values do not)",
    "folded": "folded, and proven (the weights are the original's times the scale, the bias is "
    "the shift)",
    "different": "different",
}
"""Verdict -> its meaning. `folded` means that the other model's weights contain the layer."""

REMARKS: Final[Mapping[Remark, str]] = {
    "frozen": "nothing of this layer moved, while others did: it was frozen",
    "frozen-statistics": "the weights moved, the moving statistics did not: the layer ran in "
    "inference mode, or its updates never ran",
    "frozen-weights": "the moving statistics moved, gamma and beta did not: the weights were "
    "frozen, or the statistics were estimated anew",
}
"""Remark (which roles of a layer did not change) -> its text."""

_NOT_COMPARED: Final = "other weights were not compared"


@dataclass(frozen=True, slots=True)
class RoleChange:
    """The change of one role of a layer.

    Attributes:
        shapes, dtypes: pairs for the old and the new model; None where the role is missing.
        channels: the number of channels that could be compared.
        moved: the number of channels that differ by more than the tolerance.
        largest: the largest |new - old| (0 if nothing moved); None if nothing could be compared. A
            change to or from NaN or infinity is infinite.
        relative: the largest |new - old| / |old| over the channels whose old value is finite and
            not 0; None if there is no such channel.
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
        """True if both models have the role, with equal shapes (except for dimensions of 1)."""
        return self.largest is not None

    @property
    def equal(self) -> bool:
        return self.comparable and self.moved == 0


@dataclass(frozen=True, slots=True)
class SettingChange:
    """A setting (epsilon or momentum) that both files store with different values."""

    setting: str
    old: float
    new: float


@dataclass(frozen=True, slots=True)
class LayerChange:
    """A layer of both models.

    Attributes:
        old, new: the layer's name in the old and the new model.
        match: the criterion for pairing; `suffix` if one name ends with the other.
        settings: changes of epsilon and momentum, if stored in both files.
        remark: a key in `REMARKS` if the layer looks frozen, while others moved; None otherwise.
        verdict: `same-effect` if only the values differ, and scale and shift agree.
        epsilons: the epsilon of the old and of the new layer; None if unknown.
    """

    old: str
    new: str
    match: Match
    roles: tuple[RoleChange, ...]
    settings: tuple[SettingChange, ...]
    remark: Remark | None = None
    verdict: PairVerdict = "different"
    causes: tuple[Cause, ...] = ()
    epsilons: tuple[float | None, float | None] = (None, None)

    @property
    def epsilon_presence(self) -> Presence | None:
        """The model whose epsilon is known: `old`, `new` or `both`; None if no epsilon is known."""
        old, new = self.epsilons
        if old is None:
            return None if new is None else "new"
        return "old" if new is None else "both"

    @property
    def equal(self) -> bool:
        """True if the settings are equal, and all values are equal within the tolerance."""
        return not self.settings and all(role.equal for role in self.roles)


@dataclass(frozen=True, slots=True)
class Difference(Displayed):
    """The result of `diff`.

    Attributes:
        old, new: the sources of the two models.
        rtol, atol: the tolerance: `|new - old| <= atol + rtol * |old|` counts as equal.
        tolerance: the largest difference of scales, shifts and folded weights, relative to their
            size, that counts as the same effect.
        layers: the layers of both models, in the order of the new model.
        removed, added: the names of the layers of only the old or only the new model.
        folded: layers of one model that are proven to be folded into the other model's weights.
        misfolded: layers of `removed` and `added` that were folded with a wrong scale or shift.
        ties: names of layers of the new model that were paired by position alone, because another
            layer has the same values.
        unfolded: layers of `removed` and `added` that may be folded, but are not proven to be.
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
    unfolded: tuple[Unfolded, ...] = ()

    @property
    def equivalent(self) -> bool:
        """True if every layer is the same, the same in effect, or folded."""
        return not self.removed and not self.added and not self.different

    @property
    def verdict(self) -> PairVerdict:
        return "same" if self.equal else "same-effect" if self.equivalent else "different"

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of layers for each verdict, and for `folded`, `removed` and `added`."""
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
        """The verdict in one line, with the number of layers that differ."""
        counts, total = self.counts, len(self.layers)
        tolerance = f"rtol {self.rtol:g} and atol {self.atol:g}" if self.rtol or self.atol else ""
        if self.verdict == "same":
            layers = "1 batch-norm layer is" if total == 1 else f"{total:,} batch-norm layers are"
            within = f" within {tolerance}" if tolerance else ""
            return f"no difference: {layers} equal{within}; {_NOT_COMPARED}"
        if self.verdict == "same-effect":
            within = f"within {self.tolerance:g}"
            if any(folded.rounding for folded in self.folded):
                within += " and the rounding of stored numbers"
            named = {"same": "the same", "same-effect": "the same in effect", "folded": "folded"}
            listed = [f"{counts[key]:,} {name}" for key, name in named.items() if counts[key]]
            return f"no difference in effect {within}: {', '.join(listed)}; {_NOT_COMPARED}"
        parts = [f"{counts['different']:,} of {total:,} layers differ"]
        if tolerance:
            parts[0] += f" by more than {tolerance}"
        keys = ("folded", "removed", "added")
        return ", ".join([*parts, *(f"{counts[key]:,} {key}" for key in keys if counts[key])])

    @property
    def different(self) -> tuple[LayerChange, ...]:
        """The layers of both models that differ in effect."""
        return tuple(layer for layer in self.layers if layer.verdict == "different")

    @property
    def equal(self) -> bool:
        """True if the models have the same layers with the same values, within the tolerance."""
        missing = self.removed or self.added or self.folded
        return not missing and all(layer.equal for layer in self.layers)

    @property
    def changed(self) -> tuple[LayerChange, ...]:
        """The layers of both models whose settings or values differ, even if the effect agrees."""
        return tuple(layer for layer in self.layers if not layer.equal)

    @property
    def renamed(self) -> tuple[LayerChange, ...]:
        """The layers of both models whose names differ."""
        return tuple(layer for layer in self.layers if layer.match != "name")


def diff(
    old: Model | str | PathLike[str] | object,
    new: Model | str | PathLike[str] | object,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    tolerance: float = TOLERANCE,
    epsilon: float | None = None,
) -> Difference:
    """Compare two models of any formats.

    Numbers of different dtypes are compared by value. Two NaN are equal if the dtypes differ or the
    bits are equal. Positive and negative zero are equal.

    Args:
        old: the model to which relative changes refer, or a path or another object that `load`
            accepts.
        new: the other model, as for `old`.
        rtol: relative tolerance, as a multiple of |old|.
        atol: absolute tolerance. By default, both tolerances are 0, and values must be equal.
        tolerance: the largest difference of scales, shifts and folded weights, relative to their
            size, that counts as the same effect.
        epsilon: the epsilon of layers whose file does not store one.

    Raises:
        BnstatError: a tolerance is negative or not a number, or a model or an array cannot be
            read.
    """
    from bnstat.loading import loaded

    numbers = {"rtol": rtol, "atol": atol, "tolerance": tolerance, "epsilon": epsilon}
    for name, value in numbers.items():
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise BnstatError(name, f"must be a number of at least 0, not {value:g}")
    old, new = loaded(old), loaded(new)
    effects = Effects(tolerance, epsilon)
    alignment = align(old, new, effects)
    changes = [(pair, _layer_change(pair, rtol, atol, effects)) for pair in alignment.pairs]
    differing = [(pair, change) for pair, change in changes if change.verdict == "different"]
    unexplained = [change for _, change in differing if not change.causes]
    # Without such a change, nothing shows that the layers that did not move were frozen.
    has_moved = any(role.moved for change in unexplained for role in change.roles)
    if old.source.format == new.source.format and has_moved:
        changes = [(pair, replace(change, remark=_remark(change))) for pair, change in changes]
    # PyTorch numbers the layers of a sequence. If one model has fewer layers, later layers have
    # other numbers, so a number as a name does not show that two layers correspond.
    any_alone = bool(alignment.removed or alignment.added)
    doubtful = [
        pair
        for pair, _ in differing
        if pair.match != "name" or (any_alone and pair.new.name.split(".")[-1].isdecimal())
    ]
    olds, news = [pair.old for pair in doubtful], [pair.new for pair in doubtful]
    old_folded, old_unfolded = find_folded(alignment.removed, olds, old, new, "old", effects)
    new_folded, new_unfolded = find_folded(alignment.added, news, new, old, "new", effects)
    candidates = [*old_folded, *new_folded]
    folded = [each for each in candidates if not each.causes]
    proven = {(each.side, each.layer) for each in folded}
    sides = [(pair, {("old", pair.old.name), ("new", pair.new.name)}) for pair in doubtful]
    separated = [pair for pair, names in sides if names & proven]
    removed = (*alignment.removed, *(pair.old for pair in separated))
    added = (*alignment.added, *(pair.new for pair in separated))
    return Difference(
        old.source,
        new.source,
        rtol,
        atol,
        tuple(change for pair, change in changes if pair not in separated),
        tuple(layer.name for layer in removed if ("old", layer.name) not in proven),
        tuple(layer.name for layer in added if ("new", layer.name) not in proven),
        tolerance,
        tuple(folded),
        tuple(each for each in candidates if each.causes),
        alignment.ties,
        (*old_unfolded, *new_unfolded),
    )


def _layer_change(pair: Pair, rtol: float, atol: float, effects: Effects) -> LayerChange:
    old, new = pair.old, pair.new
    either = [role for role in ROLES if role in old.variables or role in new.variables]
    roles = tuple(_compare_role(role, pair, rtol, atol) for role in either)
    epsilons = effects.epsilon(old), effects.epsilon(new)
    stored = {"epsilon": epsilons, "momentum": (old.momentum, new.momentum)}
    # A graph stores settings as float32, a configuration as float64.
    settings = tuple(
        SettingChange(name, before, after)
        for name, (before, after) in stored.items()
        if before is not None
        and after is not None
        and not math.isclose(before, after, rel_tol=1e-6)
    )
    change = LayerChange(old.name, new.name, pair.match, roles, settings, epsilons=epsilons)
    verdict, causes = _judge(pair, change, effects)
    return replace(change, verdict=verdict, causes=causes)


def _judge(
    pair: Pair, change: LayerChange, effects: Effects
) -> tuple[PairVerdict, tuple[Cause, ...]]:
    if change.equal:
        return "same", ()
    old, new = pair.old, pair.new
    are_equal = all(role.equal for role in change.roles)
    causes = tuple(settings_cause(each.setting, each.old, each.new) for each in change.settings)
    have_same_effect = effects.are_equal(old, new)
    if effects.of(old) is None or effects.of(new) is None:
        # If an epsilon is unknown, effects agree at all epsilons if they do at two far apart.
        trials = (Effects(effects.tolerance, epsilon) for epsilon in (1e-12, 1.0))
        have_same_effect = all(trial.are_equal(old, new) for trial in trials)
    if have_same_effect:
        # With equal statistics, the momentum decides how they will move on.
        if are_equal and any(each.setting == "momentum" for each in change.settings):
            return "different", causes
        return "same-effect", ()
    if are_equal or are_alike(old, new, effects):
        return "different", causes
    value_reasons = value_causes(old, new, effects)
    # A setting is not the cause of values that differ for no known reason, nor if one layer does
    # not have its own statistics any more.
    if not value_reasons or is_rewritten(old) != is_rewritten(new):
        return "different", value_reasons
    return "different", value_reasons + causes


def _compare_role(role: str, pair: Pair, rtol: float, atol: float) -> RoleChange:
    a, b = pair.old.array(role), pair.new.array(role)
    presence: Presence = "new" if a is None else "old" if b is None else "both"
    shapes = (None if a is None else a.shape, None if b is None else b.shape)
    dtypes = (None if a is None else str(a.dtype), None if b is None else str(b.dtype))
    change = RoleChange(role, presence, shapes, dtypes)
    if a is None or b is None or squeezed(a.shape) != squeezed(b.shape):
        return change
    before, after = as_float64(a).ravel(), as_float64(b).ravel()
    with np.errstate(all="ignore"):
        distance = np.abs(after - before)
        is_nan = np.isnan(before) & np.isnan(after)
        if a.dtype == b.dtype and is_nan.any():
            is_nan &= ~different(a.ravel(), b.ravel())
        distance[(before == after) | is_nan] = 0
        distance[np.isnan(distance)] = np.inf
        moved = distance > atol + rtol * np.abs(before)
        moved |= np.isinf(distance)
        relative = (distance / np.abs(before))[(before != 0) & np.isfinite(before)]
    return replace(
        change,
        channels=before.size,
        moved=int(moved.sum()),
        largest=float(distance.max(initial=0)),
        relative=float(relative.max()) if relative.size else None,
    )


def _remark(change: LayerChange) -> Remark | None:
    if change.causes:
        return None
    moved = {role.role: role.moved > 0 for role in change.roles if role.comparable}
    weights = [moved[role] for role in ("gamma", "beta") if role in moved]
    statistics = [moved[role] for role in ("moving_mean", "moving_variance") if role in moved]
    if not statistics:
        return None
    if not any(statistics):
        return "frozen-statistics" if any(weights) else "frozen"
    return "frozen-weights" if weights and not any(weights) else None
