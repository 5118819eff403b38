"""Find batch norm by the names of variables, if the structure of the network is not stored.

A moving variance is recognized by the ending of its name; each scheme has one ending. The scope of
the variable and the scheme give the names of the layer's other variables.

`ExponentialMovingAverage` keeps copies of variables as `NAME/ExponentialMovingAverage`. The copy is
a shadow if the file also stores the variable. Otherwise, bnstat reads the copy as the variable.

If a name already exists, tch-rs appends the number of variables so far: `running_mean__16` is the
17th variable. A layer creates its variables in a row (`weight`, `bias`, `running_mean`,
`running_var`; in older versions, the statistics first). The variables of a layer therefore have
consecutive numbers. A variable without a number fills one of the gaps in the numbering.

Source: tch-rs, src/nn/var_store.rs (`Path::add`), src/nn/batch_norm.rs.

Some names of layers are recorded only in the scopes of a graph. In Keras 3, if the layer `blk` has
a list `self.norms` of layers, every gamma is called `blk/gamma`. The graph contains the path
`blk/batch_normalization_1` of a layer, but changed to `functional_1/blk_1/batch_normalization_1_1`.
Tracing puts the model's name in front. TensorFlow numbers each component, because Keras opens a
layer's scope twice: to build and to call the layer. bnstat finds the start of the path by the names
of the variables (`blk/...`), and the added numbers by repeating TensorFlow's numbering. Keras 2
leaves nested models out of the names of variables, but the graph contains them.

Sources: keras/src/layers/layer.py (`Layer.__call__`), `Graph.unique_name` in
tensorflow/python/framework/ops.py.
"""

from __future__ import annotations

import re
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from bnstat.discovery.merge import Sighting, common_scope
from bnstat.discovery.schemes import SCHEMES, Scheme, describe_lookalike
from bnstat.formats.contents import Contents
from bnstat.model import squeezed

NAMED_FOR_ITS_ROLE = re.compile(r"(?:^|[/._])(?:gamma|beta)(?::0)?$")
"""Matches a name that ends in `gamma` or `beta`. Such a variable keeps its role even if its shape
differs from the statistics, so that the mismatch is reported."""

BATCH_NORM_SCOPE = re.compile(
    r"(^|[/_.])(batch_?norm(alization)?|bn)(_?v\d)?[_\d]*$", re.IGNORECASE
)
"""A scope named after batch norm: `BatchNorm_1`, `conv2_bn`, `tpu_batch_normalization`."""

_OF_DATA = re.compile(
    r"obs|reward|return|action|state_?norm|input|target|value|rms|normali[sz]er|running|data",
    re.IGNORECASE,
)
"""Words in scopes of data statistics, which are not batch norm."""

_SHADOW_WORD = "/ExponentialMovingAverage"
_SHADOW = re.compile(rf"{_SHADOW_WORD}(_\d+)?$")

_AVERAGED = "read from exponential moving averages, because the file lacks the variables themselves"

_VARIANCE_ENDINGS = tuple(dict.fromkeys(scheme.variance for scheme in SCHEMES))
_STARTS = (
    *_VARIANCE_ENDINGS,
    "/gamma",
    "/beta",
    *(_SHADOW_WORD + number for number in ("", *(f"_{n}" for n in range(100)))),
)
"""Endings of variable names that show a layer, complete or incomplete."""


class VariableNames:
    """The names of a file's variables that may belong to batch norm.

    Attributes:
        keys: name of a variable -> key.
        shadows: name of a variable -> key of its shadow.
        averages: keys of the shadows that replace variables, because only the shadows are stored.
    """

    def __init__(self, contents: Contents, complete: bool = True) -> None:
        """Collect the names that fit a naming scheme or, if `complete`, all names."""
        self.contents = contents
        self.keys: dict[str, str] = {}
        self.shadows: dict[str, str] = {}
        if complete or contents.search is None:
            self._collect((key, contents.name_of(key)) for key in contents.variables)
        else:
            self._collect(contents.search(_STARTS).items())
            self._collect(contents.search(self._companions()).items())
        if any("__" in name for name in self.keys):
            self.keys = with_scopes(self.keys, lambda key: contents.variables[key].shape)
        averages = {name: key for name, key in self.shadows.items() if name not in self.keys}
        self.keys.update(averages)
        self.averages = frozenset(averages.values())

    def _collect(self, names: Iterable[tuple[str, str]]) -> None:
        for key, name in names:
            if "/.OPTIMIZER_SLOT/" in key or key.startswith("optimizer_weights/"):
                continue
            if _SHADOW_WORD in name and (match := _SHADOW.search(name)):
                self.shadows.setdefault(name[: match.start()], key)
            else:
                self.keys.setdefault(name, key)

    def _companions(self) -> set[str]:
        """Return all possible names of variables in the layers whose moving variance was found."""
        names = set(self.shadows)
        for variance in {*self.ending_with(_VARIANCE_ENDINGS), *self.shadows}:
            for scheme, scope in _readings(variance):
                endings = (scheme.mean, *scheme.gamma, *scheme.beta, *scheme.extra, _count(scheme))
                for owner in _owners(scope, scheme, averaged=True):
                    names |= {_join(owner, ending) for ending in endings}
        return names

    def ending_with(self, endings: tuple[str, ...]) -> Iterator[str]:
        """Yield the names with one of these endings; `gamma` alone counts as ending in `/gamma`."""
        complete = {ending[1:] for ending in endings}
        for name in self.keys:
            if name.endswith(endings) or name in complete:
                yield name

    def find(
        self, scope: str, endings: Iterable[str], shape: tuple[int, ...] | None = None
    ) -> str | None:
        """Return the key of the first variable with one of the endings and the shape, or None."""
        for ending in endings:
            key = self.keys.get(_join(scope, ending))
            if key is not None and (
                shape is None
                or NAMED_FOR_ITS_ROLE.search(ending)
                or squeezed(self.contents.variables[key].shape) == squeezed(shape)
            ):
                return key
        return None


def from_names(names: VariableNames, include_shadows: bool) -> list[Sighting]:
    """Return the layers that variable names show; `include_shadows` adds their shadow copies."""
    layers: list[Sighting] = []
    for name in names.ending_with(_VARIANCE_ENDINGS):
        candidates = (_sighting(names, name, *reading) for reading in _readings(name))
        layers += islice(filter(None, candidates), 1)
    averages = names.averages
    moving = {layer.name for layer in layers if layer.roles["moving_variance"] not in averages}
    name_of = {key: name for name, key in names.keys.items()} if include_shadows else {}
    sightings = []
    for layer in layers:
        # A layer of averages is a shadow copy if a layer of this name has moving statistics.
        is_copy = layer.roles["moving_variance"] in averages and layer.name in moving
        if include_shadows:
            shadows = {
                role: shadow
                for role, key in layer.roles.items()
                if (shadow := names.shadows.get(name_of[key])) is not None and shadow != key
            }
            sightings.append(replace(layer, name=layer.name + _SHADOW_WORD * is_copy))
            sightings += [Sighting("name", layer.name + _SHADOW_WORD, shadows)] if shadows else []
        elif not is_copy:
            sightings.append(layer)
    return sightings


def without_statistics(names: VariableNames, taken: set[str]) -> list[Sighting]:
    """Return the layers named after batch norm that lack statistics; ignore the keys in `taken`."""
    scopes: dict[str, dict[str, str]] = {}
    for name in names.ending_with(("/gamma", "/beta")):
        scope, _, role = name.rpartition("/")
        key = names.keys[name]
        if key in taken or not BATCH_NORM_SCOPE.search(scope):
            continue
        if describe_lookalike(key, name) is None:
            scopes.setdefault(scope, {})[role] = key
    return [Sighting("name", scope, roles) for scope, roles in scopes.items()]


def by_patterns(names: VariableNames, patterns: Sequence[tuple[str, str]]) -> list[Sighting]:
    """Return the layers found by the user's (role, regular expression) pairs.

    A variable has the role of the first expression that matches anywhere in its name. The layer's
    name is the match of the group `layer` or, without this group, of the first group. For an
    expression without groups, it is the variable's name without the matched part.
    """
    layers: dict[str, dict[str, str]] = {}
    compiled = [(role, re.compile(pattern)) for role, pattern in patterns]
    for name, key in names.keys.items():
        for role, pattern in compiled:
            if (match := pattern.search(name)) is None:
                continue
            if "layer" in pattern.groupindex:
                layer = match["layer"]
            elif pattern.groups:
                layer = match[1]
            else:
                layer = name[: match.start()] + name[match.end() :]
            layers.setdefault((layer or "").strip("/."), {}).setdefault(role, key)
            break
    return [Sighting("name", layer, roles) for layer, roles in layers.items()]


def _readings(variance: str) -> list[tuple[Scheme, str]]:
    """Return (scheme, scope of the layer) for each scheme that fits a moving variance's name."""
    name = f"/{variance}"
    return [
        (scheme, name.removesuffix(scheme.variance)[1:])
        for scheme in SCHEMES
        if name.endswith(scheme.variance)
    ]


def _join(scope: str, ending: str) -> str:
    return scope + ending if scope else ending[1:]


def _count(scheme: Scheme) -> str:
    """Return `/count` or `.count`: a variable with this ending shows statistics of data."""
    # Of Keras's `Normalization`, or of observations and rewards in reinforcement learning.
    return scheme.variance[0] + "count"


def _sighting(names: VariableNames, variance: str, scheme: Scheme, scope: str) -> Sighting | None:
    """Return the layer whose moving variance is named `variance`; None if `scheme` does not fit."""
    mean = names.find(scope, (scheme.mean,))
    if mean is None:
        return None
    roles = {"moving_mean": mean, "moving_variance": names.keys[variance]}
    shape = names.contents.variables[mean].shape
    for owner in _owners(scope, scheme, averaged=roles["moving_variance"] in names.averages):
        gamma, beta = (names.find(owner, own, shape) for own in (scheme.gamma, scheme.beta))
        if gamma is None and names.find(owner, scheme.gamma) is not None:
            # It is another layer's kernel, and the bias is that layer's too.
            break
        if gamma or beta:
            roles |= {"gamma": gamma} if gamma else {}
            roles |= {"beta": beta} if beta else {}
            break
    is_counted = names.find(scope, (_count(scheme),)) is not None
    if is_counted and (len(roles) == 2 or not scheme.surely):
        return None
    if not scheme.surely and not _is_surely_batch_norm(names, scheme, scope, owner, roles):
        return None
    extra = {ending[1:]: key for ending in scheme.extra if (key := names.find(scope, (ending,)))}
    for branch in (branch for branches in scheme.trees for branch in branches):
        owner = owner.removeprefix(branch + scheme.variance[0])
    has_average = not names.averages.isdisjoint(roles.values())
    return Sighting("name", owner, roles, extra=extra, notes=(_AVERAGED,) if has_average else ())


def _owners(scope: str, scheme: Scheme, averaged: bool) -> list[str]:
    """Return the scopes that may contain gamma and beta, the most likely first.

    TensorFlow 1 repeats the whole scope for variables that an `ExponentialMovingAverage` makes
    (`bn/bn/moments/...`). Flax and Haiku keep the parameters for `batch_stats/bn` in `params/bn`.
    """
    owners = [scope]
    parts = scope.split("/")
    half = len(parts) // 2
    if averaged and parts[:half] == parts[half:]:
        owners.append("/".join(parts[:half]))
    separator = scheme.variance[0]
    parts = scope.split(separator)
    for statistics, parameters in scheme.trees:
        owners += [
            separator.join([*parts[:position], parameters, *parts[position + 1 :]])
            for position, part in enumerate(parts)
            if part == statistics
        ]
    return owners


def _is_surely_batch_norm(
    names: VariableNames, scheme: Scheme, scope: str, owner: str, roles: Mapping[str, str]
) -> bool:
    """Return True if variables with ordinary names (`mean`, `variance`) belong to a batch norm.

    All variables must have one shape, and include gamma or beta or have a scope named after batch
    norm. In Flax's `batch_stats`, vectors of one shape suffice, unless `_OF_DATA` matches.
    """
    shapes = {names.contents.variables[key].shape for key in roles.values()}
    if len(shapes) != 1:
        return False
    if len(roles) > 2 or BATCH_NORM_SCOPE.search(owner):
        return True
    parts = scope.split(scheme.variance[0])[:-1]
    is_in_tree = any(statistics in parts for statistics, _ in scheme.trees)
    return is_in_tree and len(*shapes) == 1 and not _OF_DATA.search(scope)


_NUMBERED_NAME: Final = re.compile(
    r"(?P<scope>(?:.*\.)?)(?P<leaf>\w+?)__(?P<number>\d{1,9})", re.DOTALL
)
_MEAN, _VARIANCE = "running_mean", "running_var"

_ORDERS: Final = (
    {"weight": 0, "bias": 1, _MEAN: 2, _VARIANCE: 3},
    {_MEAN: 0, _VARIANCE: 1, "weight": 2, "bias": 3},
)
"""For current tch-rs, then for older versions: variable -> index in a layer's order of creation."""


def with_scopes(
    keys: Mapping[str, str], shape_of: Callable[[str], tuple[int, ...]]
) -> dict[str, str]:
    """Return name -> key, with tch-rs's numbers moved from the variables to their scopes.

    `features.running_mean__16` is renamed to `features__16.running_mean`.
    """
    matches = [_NUMBERED_NAME.fullmatch(name) for name in keys if "__" in name]
    leaves: dict[str, set[tuple[str, int]]] = {}
    for match in matches:
        if match is not None and match["leaf"] in _ORDERS[0]:
            leaves.setdefault(match["scope"], set()).add((match["leaf"], int(match["number"])))
    numbers = {number for numbered in leaves.values() for _, number in numbered}

    def layer_at(scope: str, start: int, order: Mapping[str, int]) -> dict[str, str]:
        """Return leaf (`weight`) -> name, for the layer whose first variable has this number."""
        names = {}
        for leaf, number in zip(order, range(start, start + len(order)), strict=True):
            if (numbered := f"{scope}{leaf}__{number}") in keys:
                names[leaf] = numbered
            elif f"{scope}{leaf}" in keys and number not in numbers and 0 <= number < len(keys):
                names[leaf] = f"{scope}{leaf}"
        shapes = {leaf: shape_of(keys[name]) for leaf, name in names.items()}
        if not {_MEAN, _VARIANCE} <= shapes.keys():
            return {}
        return {leaf: name for leaf, name in names.items() if shapes[leaf] == shapes[_MEAN]}

    def layers_in(order: Mapping[str, int]) -> dict[str, dict[str, str]]:
        layers = {}
        taken: set[str] = set()
        for scope, numbered in leaves.items():
            starts = sorted({number - order[leaf] for leaf, number in numbered})
            candidates = [(start, layer_at(scope, start, order)) for start in starts]
            # A layer with more numbers is more certain than one that takes what is left.
            candidates.sort(key=lambda pair: -sum("__" in name for name in pair[1].values()))
            for start, names in candidates:
                if names and taken.isdisjoint(names.values()):
                    taken.update(names.values())
                    layers[f"{scope.removesuffix('.')}__{start + order[_MEAN]}"] = names
        return layers

    def count(layers: Mapping[str, Mapping[str, str]]) -> int:
        """Count the variables of `layers`, and of other layers whose names all lack numbers."""
        taken = {name for names in layers.values() for name in names.values()}
        plain = ({f"{scope}{leaf}" for leaf in _ORDERS[0]} for scope in leaves)
        unnumbered = (names for names in plain if names <= keys.keys() and names.isdisjoint(taken))
        return len(taken) + sum(map(len, unnumbered))

    renamed = {
        name: f"{scope}.{leaf}"
        for scope, names in max(map(layers_in, _ORDERS), key=count).items()
        for leaf, name in names.items()
    }
    return {renamed.get(name, name): key for name, key in keys.items()}


_NUMBERED_SCOPE = re.compile(r"(.+)_\d+")

_DEEPEST = 64  # components of a scope; scopes in networks have some ten
_MOST_SIBLINGS = 10_000  # names in one scope; each layer in the scope adds some three

Scope = tuple[str, ...]
"""The components of a scope; empty if unknown."""


def name_by_scopes(layers: Sequence[Sighting], contents: Contents) -> None:
    """Derive layer names from graph scopes and full variable names; add them to the sightings."""
    scopes = [_components(*layer.names.get("graphs", ())[:1]) for layer in layers]
    if not any(scopes):
        return
    keys = {key for layer in layers for key in layer.roles.values()}
    full_names = {node.key: node.full_name for node in contents.objects if node.key in keys}
    own_scopes = [
        _components(common_scope(full_names.get(key, "") for key in layer.roles.values()))
        for layer in layers
    ]
    uses = Counter(own_scopes)
    opened = sorted(
        zip(layers, scopes, strict=True), key=lambda pair: pair[0].positions.get("graphs", 0)
    )
    names = _authors_names(scope for _, scope in opened if scope)
    starts = [_start(scope, own) for scope, own in zip(scopes, own_scopes, strict=True)]
    first = min((start for start in starts if start is not None), default=0)
    for layer, scope, own, start in zip(layers, scopes, own_scopes, starts, strict=True):
        if start is None:
            continue
        end = start + len(own)
        is_numbered = scope[start:end] != own
        is_end = end == len(scope)
        if uses[own] == 1 and (is_end or not is_numbered):
            continue
        parts = [
            (names[scope[: position + 1]] if is_numbered else None) or scope[position]
            for position in range(len(scope))
        ]
        before = parts[first:start] if is_end else []
        layer.names["scopes"] = ["/".join([*before, *own, *parts[end:]])]


def _components(scope: str = "") -> Scope:
    parts = tuple(scope.split("/", _DEEPEST)) if scope else ()
    return parts if len(parts) <= _DEEPEST else ()


def _start(scope: Scope, own: Scope) -> int | None:
    """Return the index where `own` begins in `scope` (`bn_1` in `scope` matches `bn`), or None."""
    for start in range(len(scope) - len(own) + 1 if own else 0):
        pairs = zip(scope[start:], own, strict=False)
        if all(part == name or _without_number(part) == name for part, name in pairs):
            return start
    return None


def _without_number(part: str) -> str | None:
    match = _NUMBERED_SCOPE.fullmatch(part)
    return match[1] if match else None


def _authors_names(scopes: Iterable[Scope]) -> Mapping[Scope, str | None]:
    """Return scope -> last component without TensorFlow's number; None if no number was added.

    `scopes` are in the order in which Keras opened them.
    """
    opened: dict[Scope, dict[str, int]] = {}
    names: dict[Scope, str | None] = {}
    for scope in scopes:
        for end, part in enumerate(scope, 1):
            siblings = opened.setdefault(scope[: end - 1], {})
            name = _without_number(part)
            if scope[:end] in names:
                continue
            names[scope[:end]] = None
            if name is not None and len(siblings) <= _MOST_SIBLINGS:
                trial = ChainMap({}, siblings)
                _open(name, trial)
                # Keras opens each scope twice, so that TensorFlow numbers the second.
                if _open(name, trial) == part:
                    siblings.update(trial.maps[0])
                    names[scope[:end]] = name
    return names


def _open(name: str, taken: MutableMapping[str, int]) -> str:
    """Return the unique name that TensorFlow gives a scope that is opened as `name`.

    `taken` maps name -> number of scopes already opened, and is updated.
    """
    key = name.lower()
    number = taken.get(key, 0)
    taken[key] = number + 1
    if number == 0:
        return name
    unique = key
    while unique in taken:
        unique = f"{key}_{number}"
        number += 1
    taken[unique] = 1
    return f"{name}_{number - 1}"
