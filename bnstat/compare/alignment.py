"""Pairing the layers of two models.

The steps are: equal names; one name ends with the other; equal values, or equal scale and shift;
equal positions, if all shapes agree; nearest values. Each step pairs only the layers that earlier
steps left without a counterpart.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Literal, TypeVar

import numpy as np

from bnstat.compare.effects import Effects, Floats, values_of
from bnstat.model import ROLES, BatchNorm, Model, as_float64, printable, squeezed

Match = Literal["name", "suffix", "position", "values", "effect"]

_FARTHEST = 0.25  # the largest distance (from 0 to 1) of layers that are paired by values
_MOST_COMPARED = 4_000_000  # pairs that are compared by value: 2,000 layers in each model
_MOST_PARTS = 16  # the number of trailing components of a name that are compared

_Parts = tuple[str, ...]
_Shapes = tuple[tuple[str, tuple[int, ...]], ...]
_Layers = Sequence[BatchNorm]
_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Pair:
    """A layer of the old model, the layer of the new model, and the criterion that paired them."""

    old: BatchNorm
    new: BatchNorm
    match: Match


@dataclass(frozen=True, slots=True)
class Alignment:
    """The pairs of layers of two models, and the layers without a counterpart.

    Attributes:
        pairs: the pairs in the order of the new model.
        ties: names of layers in the new model that were paired by position although another layer
            has the same values.
    """

    pairs: tuple[Pair, ...]
    removed: tuple[BatchNorm, ...]
    added: tuple[BatchNorm, ...]
    ties: tuple[str, ...] = ()


def align(old: Model, new: Model, effects: Effects | None = None) -> Alignment:
    """Pair the layers of two models; pass `effects` to pair layers of equal scale and shift too."""
    pairs = _by_name(old, new)
    by_place = partial(_by_position_or_values, effects=effects)
    for find in (_by_prefix, _by_suffix, by_place, _by_near_values):
        pairs += find(*_unpaired(old, new, pairs))
    removed, added = _unpaired(old, new, pairs)
    order = {layer.name: position for position, layer in enumerate(new)}
    placed = [pair.new for pair in pairs if pair.match == "position"]
    distinct = {layer.name for layer in _without_twins(placed).values()}
    return Alignment(
        tuple(sorted(pairs, key=lambda pair: order[pair.new.name])),
        tuple(removed),
        tuple(added),
        tuple(layer.name for layer in placed if layer.name not in distinct),
    )


def _by_name(old: Model, new: Model) -> list[Pair]:
    """Pair layers with equal names, unless the shapes show that the names were reassigned.

    Layers are numbered per process (Keras) or per sequence (PyTorch), so a changed network may
    reuse a name for another layer. Such layers are paired by position or by equal values.
    """
    others = dict(new.items())
    pairs = [Pair(layer, others[layer.name], "name") for layer in old if layer.name in others]
    if all(_shape(pair.old) == _shape(pair.new) for pair in pairs):
        return pairs
    equals = [
        Pair(pair.old, pair.new, "name") if pair.old.name == pair.new.name else pair
        for pair in _by_equal_values(old, new)
    ]
    paired = _layers_of(equals)
    named = [pair for pair in pairs if paired.isdisjoint((pair.old, pair.new))]
    return _by_position(old, new) or equals + named


def _layers_of(pairs: Iterable[Pair]) -> set[BatchNorm]:
    return {layer for pair in pairs for layer in (pair.old, pair.new)}


def _unpaired(old: _Layers, new: _Layers, pairs: Sequence[Pair]) -> tuple[_Layers, _Layers]:
    paired = _layers_of(pairs)
    olds, news = ([layer for layer in side if layer not in paired] for side in (old, new))
    return olds, news


def _by_prefix(olds: _Layers, news: _Layers) -> list[Pair]:
    """Pair layers of equal shape whose names differ by separators or by a common prefix.

    PyTorch's wrappers put `module.` before every name, so that suffixes are ambiguous: `module.bn1`
    and `module.layer1.0.bn1` both end with `bn1`. The most common prefix is tried first.
    """
    candidates: dict[tuple[int, _Parts], list[Pair]] = defaultdict(list)
    old_by_parts, new_by_parts = (
        _unique((_parts(layer.name), layer) for layer in layers) for layers in (olds, news)
    )
    both = [(new_by_parts, old_by_parts), (old_by_parts, new_by_parts)]
    for side, (layers, others) in enumerate(both):
        for parts, layer in layers.items():
            for start in range(min(len(parts), _MOST_PARTS)):
                if (other := others.get(parts[start:])) is not None:
                    old, new = (layer, other) if side else (other, layer)
                    candidates[side, parts[:start]].append(Pair(old, new, "suffix"))
    result: list[Pair] = []
    paired: set[BatchNorm] = set()
    for (_, prefix), pairs in sorted(candidates.items(), key=lambda item: -len(item[1])):
        free = [pair for pair in pairs if paired.isdisjoint((pair.old, pair.new))]
        same = [pair for pair in free if _shape(pair.old) == _shape(pair.new)]
        # One name that ends in another proves little, unless the names are equal.
        if 2 * len(same) > len(free) and (len(same) > 1 or not prefix):
            result += same
            paired |= _layers_of(same)
    return result


def _unique(keyed: Iterable[tuple[_Key, BatchNorm]]) -> dict[_Key, BatchNorm]:
    """Return a mapping of key -> layer without the keys that occur more than once."""
    keyed = list(keyed)
    counts = Counter(key for key, _ in keyed)
    return {key: layer for key, layer in keyed if counts[key] == 1}


def _parts(name: str) -> _Parts:
    """Split a name into components, separated by `/` (TensorFlow, Flax) or `.` (PyTorch, ONNX)."""
    return tuple(printable(name).replace("/", ".").split("."))


def _by_suffix(olds: _Layers, news: _Layers) -> list[Pair]:
    """Pair layers of equal shape if one name is a suffix of the other, and of no third name."""
    by_suffix, new_by_suffix = (
        _unique((suffix, layer) for layer in layers for suffix in _suffixes(layer.name))
        for layers in (olds, news)
    )
    shared = by_suffix.keys() & new_by_suffix.keys()
    pairs = []
    for layer in news:
        suffix = next((suffix for suffix in _suffixes(layer.name) if suffix in shared), None)
        if suffix is None:
            continue
        old = by_suffix[suffix]
        if suffix in (_parts(layer.name), _parts(old.name)) and _shape(old) == _shape(layer):
            pairs.append(Pair(old, layer, "suffix"))
    return pairs


def _suffixes(name: str) -> list[_Parts]:
    """Return the suffixes of a name as tuples of components, the whole name first."""
    parts = _parts(name)[-_MOST_PARTS:]
    return [parts[start:] for start in range(len(parts))]


def _shape(layer: BatchNorm) -> tuple[int, ...]:
    return squeezed(layer.shape)


def _by_position_or_values(olds: _Layers, news: _Layers, effects: Effects | None) -> list[Pair]:
    """Pair layers by equal values or effects, and the remaining layers by position."""
    placed, equals = _by_position(olds, news), _by_equal_values(olds, news)
    if effects is not None:
        equals += _by_effect(*_unpaired(olds, news, equals), effects)
    if {(pair.old, pair.new) for pair in equals} <= {(pair.old, pair.new) for pair in placed}:
        return placed
    return equals + _by_position(*_unpaired(olds, news, equals))


def _by_position(olds: _Layers, news: _Layers) -> list[Pair]:
    """Pair each layer with the layer at the same position; return no pairs if any shapes differ."""
    if [_shape(layer) for layer in olds] != [_shape(layer) for layer in news]:
        return []
    return [Pair(old, new, "position") for old, new in zip(olds, news, strict=True)]


def _by_equal_values(olds: _Layers, news: _Layers) -> list[Pair]:
    """Pair layers with equal values, if no other layer of either model has these values."""
    if not olds or not news:
        return []
    by_values = _without_twins(olds)
    named = _without_twins(news).items()
    return [Pair(by_values[key], new, "values") for key, new in named if key in by_values]


def _by_effect(olds: _Layers, news: _Layers, effects: Effects) -> list[Pair]:
    """Pair layers with equal effects, if no other layer of either model has the same effect."""
    pairs = [Pair(*each, "effect") for each in product(olds, news) if effects.are_equal(*each)]
    counts = Counter(layer for pair in pairs for layer in (pair.old, pair.new))
    return [pair for pair in pairs if counts[pair.old] == counts[pair.new] == 1]


def _without_twins(layers: Iterable[BatchNorm]) -> dict[bytes, BatchNorm]:
    """Map a hash of each layer's values to the layer; leave out layers with equal values."""
    return _unique((_fingerprint(layer), layer) for layer in layers)


def _fingerprint(layer: BatchNorm) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for role in ROLES:
        if (array := layer.array(role)) is not None:
            digest.update(f"{role} {array.size} ".encode())
            digest.update(as_float64(array).tobytes())
    return digest.digest()


def _by_near_values(olds: _Layers, news: _Layers) -> list[Pair]:
    """Pair layers of equal roles and shapes that are mutual nearest neighbours by value."""
    pairs = []
    new_groups = _by_shapes(news)
    for shapes, own_olds in _by_shapes(olds).items():
        own_news = new_groups.get(shapes, [])
        if not own_news or len(own_olds) * len(own_news) > _MOST_COMPARED:
            continue
        distances = np.mean([_distances(own_olds, own_news, role) for role, _ in shapes], axis=0)
        for row, column in enumerate(distances.argmin(axis=1).tolist()):
            is_near = distances[row, column] <= _FARTHEST
            if is_near and distances[:, column].argmin() == row:
                pairs.append(Pair(own_olds[row], own_news[column], "values"))
    return pairs


def _by_shapes(layers: _Layers) -> Mapping[_Shapes, list[BatchNorm]]:
    groups = defaultdict(list)
    for layer in layers:
        roles = [role for role in ROLES if role in layer.variables]
        shapes = tuple((role, squeezed(layer.variables[role].shape)) for role in roles)
        if shapes:
            groups[shapes].append(layer)
    return groups


def _distances(olds: _Layers, news: _Layers, role: str) -> Floats:
    """Return distances |a - b| / (|a| + |b|) of a role's values: row = old layer, column = new."""
    a, b = (np.stack([values_of(layer, role) for layer in layers]) for layers in (olds, news))
    with np.errstate(all="ignore"):
        squares_a, squares_b = (a * a).sum(axis=1)[:, np.newaxis], (b * b).sum(axis=1)
        gap = np.sqrt(np.maximum(squares_a + squares_b - 2 * a @ b.T, 0))
        distances = gap / (np.sqrt(squares_a) + np.sqrt(squares_b))
    return np.where((squares_a == 0) & (squares_b == 0), 0, np.nan_to_num(distances, nan=1.0))
