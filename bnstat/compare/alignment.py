"""Which layer of one model is which of another.

By name first. What is left has other names: another container's, with another framework's
prefix, or those of renamed layers. Two of them are the same layer where one name ends in the
other, whatever separates its parts; else by their place among the layers left over, as long as all
shapes agree there; else, or where equal values lie elsewhere, by the values, or by the scale and
shift that these amount to.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bnstat.compare.effects import Effects
from bnstat.model import ROLES, BatchNorm, Model, as_float64, printable, squeezed

Match = Literal["name", "suffix", "position", "values", "effect"]

_FARTHEST = 0.25
"""Layers whose values are farther apart than this, of at most 1, are not the same layer."""

_MOST_COMPARED = 4_000_000
"""So many pairs of layers are compared by value at most: 2,000 on both sides."""

_MOST_PARTS = 16
"""The last parts of a name that are compared."""

Floats = NDArray[np.float64]
Kind = tuple[tuple[str, tuple[int, ...]], ...]
"""The roles of a layer, each with its shape."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A layer of the old model and the same layer of the new one, and how that is known."""

    old: BatchNorm
    new: BatchNorm
    match: Match


@dataclass(frozen=True, slots=True)
class Alignment:
    """All layers of two models.

    Attributes:
        pairs: in the order of the new model.
        removed: layers of the old model alone.
        added: layers of the new model alone.
        ties: names of layers in the new model that their place alone tells from another one of
            the very same values.
    """

    pairs: tuple[Pair, ...]
    removed: tuple[BatchNorm, ...]
    added: tuple[BatchNorm, ...]
    ties: tuple[str, ...] = ()


def align(old: Model, new: Model, effects: Effects | None = None) -> Alignment:
    """Find out which layer of `old` is which of `new`.

    Args:
        old: the one model.
        new: the other.
        effects: tells what layers amount to; left out, they are not paired by that.
    """
    pairs = _by_name(old, new)
    by_place = partial(_by_position_or_values, effects=effects)
    for find in (_by_prefix, _by_suffix, by_place, _by_near_values):
        pairs += find(*_unpaired(old, new, pairs))
    removed, added = _unpaired(old, new, pairs)
    order = {layer.name: place for place, layer in enumerate(new)}
    return Alignment(
        tuple(sorted(pairs, key=lambda pair: order[pair.new.name])),
        tuple(removed),
        tuple(added),
        _ties(pairs),
    )


def _ties(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """The layers paired by position that have a twin among those."""
    placed = [pair.new for pair in pairs if pair.match == "position"]
    alone = {layer.name for layer in _only_ones(placed).values()}
    return tuple(layer.name for layer in placed if layer.name not in alone)


def _by_name(old: Model, new: Model) -> list[Pair]:
    """Pairs of the same name, but where shapes show that names were dealt out anew.

    Keras numbers the layers of a process: the same network built a second time has some of the
    first one's names, on other layers. PyTorch numbers those of a sequence: without some, others
    have their names. Then layers are paired by position, else those first that have equal values.
    """
    others = dict(new.items())
    pairs = [Pair(layer, others[layer.name], "name") for layer in old if layer.name in others]
    if all(_shape(pair.old) == _shape(pair.new) for pair in pairs):
        return pairs
    equals = [
        Pair(pair.old, pair.new, "name") if pair.old.name == pair.new.name else pair
        for pair in _by_equal_values(old, new)
    ]
    olds, news = ({layer.name for layer in side} for side in _unpaired(old, new, equals))
    named = [pair for pair in pairs if pair.old.name in olds and pair.new.name in news]
    return _by_position(old, new) or equals + named


def _unpaired(
    old: Iterable[BatchNorm], new: Iterable[BatchNorm], pairs: Sequence[Pair]
) -> tuple[list[BatchNorm], list[BatchNorm]]:
    olds, news = {pair.old.name for pair in pairs}, {pair.new.name for pair in pairs}
    return (
        [layer for layer in old if layer.name not in olds],
        [layer for layer in new if layer.name not in news],
    )


def _by_prefix(left: Sequence[BatchNorm], right: Sequence[BatchNorm]) -> list[Pair]:
    """Pairs of one shape whose names differ by the separators, or by one prefix of all of them.

    PyTorch's wrappers put `module.` before every name, so that no name is the end of a single
    other one: `module.bn1` and `module.layer1.0.bn1` both end in `bn1`. The prefix that the most
    names share is tried first.
    """
    candidates: dict[Hashable, list[Pair]] = defaultdict(list)
    olds, news = _by_parts(left), _by_parts(right)
    for parts, new in news.items():
        for start in range(min(len(parts), _MOST_PARTS)):
            if (old := olds.get(parts[start:])) is not None:
                candidates["new", parts[:start]].append(Pair(old, new, "suffix"))
    for parts, old in olds.items():
        for start in range(1, min(len(parts), _MOST_PARTS)):
            if (other := news.get(parts[start:])) is not None:
                candidates["old", parts[:start]].append(Pair(old, other, "suffix"))
    result: list[Pair] = []
    paired: set[tuple[str, str]] = set()
    for key, pairs in sorted(candidates.items(), key=lambda item: -len(item[1])):
        free = [
            pair
            for pair in pairs
            if not paired.intersection((("old", pair.old.name), ("new", pair.new.name)))
        ]
        same = [pair for pair in free if _shape(pair.old) == _shape(pair.new)]
        # A single name that ends another one proves little, unless it is the whole of it.
        if 2 * len(same) > len(free) and (len(same) > 1 or key == ("new", ())):
            result += same
            for pair in same:
                paired.update((("old", pair.old.name), ("new", pair.new.name)))
    return result


def _by_parts(layers: Sequence[BatchNorm]) -> dict[tuple[str, ...], BatchNorm]:
    """The layers by the parts of their names, without those that share all parts."""
    times = Counter(_parts(layer.name) for layer in layers)
    parts = ((_parts(layer.name), layer) for layer in layers)
    return {key: layer for key, layer in parts if times[key] == 1}


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a name: TensorFlow and Flax separate them by `/`, PyTorch and ONNX by `.`."""
    return tuple(printable(name).replace("/", ".").split("."))


def _by_suffix(left: Sequence[BatchNorm], right: Sequence[BatchNorm]) -> list[Pair]:
    """Pairs of one shape of which one name is the end of the other, and of no second one."""
    suffixes = Counter(suffix for layer in left for suffix in _suffixes(layer.name))
    others = Counter(suffix for layer in right for suffix in _suffixes(layer.name))
    by_suffix = {suffix: layer for layer in left for suffix in _suffixes(layer.name)}
    pairs = []
    for layer in right:
        for suffix in _suffixes(layer.name):
            if suffixes[suffix] == others[suffix] == 1:
                old = by_suffix[suffix]
                whole = (_parts(layer.name), _parts(old.name))
                if suffix in whole and _shape(old) == _shape(layer):
                    pairs.append(Pair(old, layer, "suffix"))
                break
    return pairs


def _suffixes(name: str) -> list[tuple[str, ...]]:
    """`a/b/c`, `b/c`, `c`, as parts."""
    parts = _parts(name)[-_MOST_PARTS:]
    return [parts[start:] for start in range(len(parts))]


def _shape(layer: BatchNorm) -> tuple[int, ...]:
    return squeezed(layer.shape)


def _by_position_or_values(
    left: Sequence[BatchNorm], right: Sequence[BatchNorm], effects: Effects | None
) -> list[Pair]:
    """By position, unless layers equal in values or effect lie elsewhere: those first."""
    places, equals = _by_position(left, right), _by_equal_values(left, right)
    if effects is not None:
        equals += _by_effect(*_unpaired(left, right, equals), effects)
    if set(_names(equals)) <= set(_names(places)):
        return places
    return equals + _by_position(*_unpaired(left, right, equals))


def _names(pairs: Iterable[Pair]) -> list[tuple[str, str]]:
    return [(pair.old.name, pair.new.name) for pair in pairs]


def _by_position(left: Sequence[BatchNorm], right: Sequence[BatchNorm]) -> list[Pair]:
    """The layers left over in their order, where they are as many and of the same shapes."""
    if [_shape(layer) for layer in left] != [_shape(layer) for layer in right]:
        return []
    return [Pair(old, new, "position") for old, new in zip(left, right, strict=True)]


def _by_equal_values(left: Sequence[BatchNorm], right: Sequence[BatchNorm]) -> list[Pair]:
    """Layers all of whose values are equal, and equal to no other layer's."""
    if not left or not right:
        return []
    olds, news = _only_ones(left), _only_ones(right)
    return [Pair(olds[key], news[key], "values") for key in news if key in olds]


def _by_effect(
    left: Sequence[BatchNorm], right: Sequence[BatchNorm], effects: Effects
) -> list[Pair]:
    """Layers of the same scale and shift, and of no other layer's."""
    agreeing = [(old, new) for old in left for new in effects.agreeing(old, right)]
    olds = Counter(old.name for old, _ in agreeing)
    news = Counter(new.name for _, new in agreeing)
    return [
        Pair(old, new, "effect") for old, new in agreeing if olds[old.name] == news[new.name] == 1
    ]


def _only_ones(layers: Sequence[BatchNorm]) -> dict[Hashable, BatchNorm]:
    keys = [_fingerprint(layer) for layer in layers]
    times = Counter(keys)
    return {key: layer for key, layer in zip(keys, layers, strict=True) if times[key] == 1}


def _fingerprint(layer: BatchNorm) -> Hashable:
    digest = hashlib.blake2b(digest_size=16)
    for role in ROLES:
        if (array := layer.array(role)) is not None:
            digest.update(f"{role} {array.size} ".encode())
            digest.update(as_float64(array).tobytes())
    return digest.digest()


def _by_near_values(left: Sequence[BatchNorm], right: Sequence[BatchNorm]) -> list[Pair]:
    """Layers of one shape each of which is the other's nearest, and near."""
    pairs = []
    lefts, rights = _by_kind(left), _by_kind(right)
    for kind, olds in lefts.items():
        news = rights.get(kind, [])
        if not news or len(olds) * len(news) > _MOST_COMPARED:
            continue
        distances = np.mean([_distances(olds, news, role) for role, _ in kind], axis=0)
        for row, column in enumerate(distances.argmin(axis=1).tolist()):
            near = distances[row, column] <= _FARTHEST
            if near and distances[:, column].argmin() == row:
                pairs.append(Pair(olds[row], news[column], "values"))
    return pairs


def _by_kind(layers: Sequence[BatchNorm]) -> dict[Kind, list[BatchNorm]]:
    """The layers by what they have to share for their values to be compared."""
    kinds: dict[Kind, list[BatchNorm]] = defaultdict(list)
    for layer in layers:
        held = [(role, layer.variables[role]) for role in ROLES if role in layer.variables]
        if held:
            kinds[tuple((role, squeezed(variable.shape)) for role, variable in held)].append(layer)
    return kinds


def _distances(olds: Sequence[BatchNorm], news: Sequence[BatchNorm], role: str) -> Floats:
    """|a - b| / (|a| + |b|) of a role for each old and each new layer: from 0, the same, to 1."""
    a, b = _rows(olds, role), _rows(news, role)
    with np.errstate(all="ignore"):
        squares_a, squares_b = (a * a).sum(axis=1)[:, np.newaxis], (b * b).sum(axis=1)
        gap = np.sqrt(np.maximum(squares_a + squares_b - 2 * a @ b.T, 0))
        distances = gap / (np.sqrt(squares_a) + np.sqrt(squares_b))
    return np.where((squares_a == 0) & (squares_b == 0), 0, np.nan_to_num(distances, nan=1.0))


def _rows(layers: Sequence[BatchNorm], role: str) -> Floats:
    """The values of a role, a row for each layer."""
    arrays = (layer.array(role) for layer in layers)
    return np.stack([as_float64(array).ravel() for array in arrays if array is not None])
