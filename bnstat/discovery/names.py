"""Batch norm by the names of variables, for files and layers without a record of the structure.

A moving variance whose name has an ending of a scheme starts a layer. Its scope and the scheme
give the names of the layer's other variables.

`ExponentialMovingAverage` keeps copies of variables as `NAME/ExponentialMovingAverage`. Such a copy
is a shadow if the file stores the variable as well; otherwise it takes the variable's place.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from bnstat.discovery.merge import Sighting
from bnstat.discovery.schemes import SCHEMES, Scheme, describe_lookalike
from bnstat.formats.contents import Contents
from bnstat.model import squeezed

NAMED_FOR_ITS_ROLE = re.compile(r"(?:^|[/._])(?:gamma|beta)(?::0)?$")
"""The end of a name that only batch norm uses. If the shape of such a variable does not fit the
statistics, it still has the role, so that the mismatch is reported instead of hidden."""

BATCH_NORM_SCOPE = re.compile(
    r"(^|[/_.])(batch_?norm(alization)?|bn)(_?v\d)?[_\d]*$", re.IGNORECASE
)
"""A scope named after batch norm: `BatchNorm_1`, `conv2_bn`, `tpu_batch_normalization`."""

_OF_DATA = re.compile(
    r"obs|reward|return|action|state_?norm|input|target|value|rms|normali[sz]er|running|data",
    re.IGNORECASE,
)
"""Words in the scopes of statistics of data, which are not batch norm."""

_SHADOW_WORD = "/ExponentialMovingAverage"
_SHADOW = re.compile(rf"{_SHADOW_WORD}(_\d+)?$")

_VARIANCE_ENDINGS = tuple(dict.fromkeys(scheme.variance for scheme in SCHEMES))
_STARTS = (
    *_VARIANCE_ENDINGS,
    "/gamma",
    "/beta",
    *(_SHADOW_WORD + number for number in ("", *(f"_{n}" for n in range(100)))),
)
"""Endings of the names that show a layer, complete or not."""


class VariableNames:
    """The names of a file's variables that may belong to batch norm.

    Attributes:
        contents: the file.
        keys: name -> key.
        shadows: name of a variable -> key of its shadow.
        averages: name -> key, for the shadows that take the place of their variables.
    """

    def __init__(self, contents: Contents, complete: bool = True) -> None:
        """Collect the names.

        Args:
            contents: the file.
            complete: True if all names are needed, also without a scheme that fits.
        """
        self.contents = contents
        self.keys: dict[str, str] = {}
        self.shadows: dict[str, str] = {}
        if complete or contents.search is None:
            self._collect((key, contents.name_of(key)) for key in contents.variables)
        else:
            self._collect(contents.search(_STARTS).items())
            self._collect(contents.search(self._companions()).items())
        if any("__" in name for name in self.keys):
            from bnstat.discovery.numbered import with_scopes

            self.keys = with_scopes(self.keys, lambda key: contents.variables[key].shape)
        self.averages = {name: key for name, key in self.shadows.items() if name not in self.keys}
        self.keys.update(self.averages)
        self._average_keys = frozenset(self.averages.values())

    def has_average(self, keys: Iterable[str]) -> bool:
        """Return True if one of these variables is an average in place of a variable."""
        return not self._average_keys.isdisjoint(keys)

    @cached_property
    def name_of(self) -> Mapping[str, str]:
        """Key -> name."""
        return {key: name for name, key in self.keys.items()}

    def _collect(self, names: Iterable[tuple[str, str]]) -> None:
        for key, name in names:
            if "/.OPTIMIZER_SLOT/" in key or key.startswith("optimizer_weights/"):
                continue
            if _SHADOW_WORD in name and (match := _SHADOW.search(name)):
                self.shadows.setdefault(name[: match.start()], key)
            else:
                self.keys.setdefault(name, key)

    def _companions(self) -> set[str]:
        """Return the possible names of the variables beside the moving variances."""
        names = set(self.shadows)
        for variance in {*self.ending_with(_VARIANCE_ENDINGS), *self.shadows}:
            for scheme in _schemes_of(variance):
                scope = _scope_of(variance, scheme)
                endings = (scheme.mean, *scheme.gamma, *scheme.beta, *scheme.extra, _count(scheme))
                for owner in _owners(scope, scheme, averaged=True):
                    names |= {_join(owner, ending) for ending in endings}
        return names

    def ending_with(self, endings: tuple[str, ...]) -> Iterator[str]:
        """Yield the names that have one of these endings, or are one without its separator."""
        complete = {ending[1:] for ending in endings}
        for name in self.keys:
            if name.endswith(endings) or name in complete:
                yield name

    def find(
        self, scope: str, endings: Iterable[str], shape: tuple[int, ...] | None = None
    ) -> str | None:
        """Return the key of the first variable of a scope with one of these endings.

        Args:
            scope: the scope.
            endings: the endings.
            shape: the shape that the variable must have, except for dimensions of 1, unless its
                name is gamma or beta; None for any.
        """
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
    """Return the layers that the names of variables show."""
    sightings = []
    for name in names.ending_with(_VARIANCE_ENDINGS):
        candidates = (_sighting(names, scheme, name) for scheme in _schemes_of(name))
        sighting = next((layer for layer in candidates if layer is not None), None)
        if sighting is not None:
            sightings.append(sighting)
            if include_shadows:
                sightings += _shadows(names, sighting)
    return _without_second_averages(names, sightings, include_shadows)


def _without_second_averages(
    names: VariableNames, sightings: Sequence[Sighting], include_shadows: bool
) -> list[Sighting]:
    """Treat averages of batch statistics as shadows if their layer has moving statistics."""
    averages = [names.has_average([layer.roles["moving_variance"]]) for layer in sightings]
    pairs = list(zip(sightings, averages, strict=True))
    moving = {layer.name for layer, is_average in pairs if not is_average}
    result = []
    for layer, is_average in pairs:
        if not is_average or layer.name not in moving:
            result.append(layer)
        elif include_shadows:
            result.append(replace(layer, name=layer.name + _SHADOW_WORD))
    return result


def without_statistics(names: VariableNames, taken: Collection[str]) -> list[Sighting]:
    """Return the layers whose scope is named after batch norm and has a gamma or beta alone.

    Args:
        names: the names of the file's variables.
        taken: keys that belong to other layers.
    """
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
    """Return the layers that a user's own patterns show.

    Args:
        names: the names of the file's variables.
        patterns: (role, regular expression) pairs. A variable has the role if the expression
            matches somewhere in its name. Its layer is the group `layer`, else the first group,
            else the name without the match.
    """
    layers: dict[str, dict[str, str]] = {}
    compiled = [(role, re.compile(pattern)) for role, pattern in patterns]
    for name, key in names.keys.items():
        for role, pattern in compiled:
            match = pattern.search(name)
            if match is None:
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


def _schemes_of(variance: str) -> list[Scheme]:
    return [scheme for scheme in SCHEMES if f"/{variance}".endswith(scheme.variance)]


def _scope_of(variance: str, scheme: Scheme) -> str:
    return f"/{variance}".removesuffix(scheme.variance)[1:]


def _join(scope: str, ending: str) -> str:
    return scope + ending if scope else ending[1:]


def _count(scheme: Scheme) -> str:
    """Return the ending of a count, which statistics of data have beside them.

    Keras's `Normalization` counts, and so do the normalizations of observations and rewards in
    reinforcement learning: `running_mean_std.running_var` has a `running_mean_std.count`.
    """
    return scheme.variance[0] + "count"


def _sighting(names: VariableNames, scheme: Scheme, variance: str) -> Sighting | None:
    """Return the layer with a moving variance of this name, if the scheme fits it."""
    scope = _scope_of(variance, scheme)
    mean = names.find(scope, (scheme.mean,))
    if mean is None:
        return None
    roles = {"moving_mean": mean, "moving_variance": names.keys[variance]}
    shape = names.contents.variables[mean].shape
    for owner in _owners(scope, scheme, averaged=variance in names.averages):
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
    notes = ("read from exponential moving averages: the variables are not in the file",)
    for branch in (branch for branches in scheme.trees for branch in branches):
        owner = owner.removeprefix(branch + scheme.variance[0])
    has_average = names.has_average(roles.values())
    return Sighting("name", owner, roles, extra=extra, notes=notes if has_average else ())


def _owners(scope: str, scheme: Scheme, averaged: bool) -> list[str]:
    """Return the scopes that may contain gamma and beta, the most likely first.

    TensorFlow 1 repeats the whole scope for variables that an `ExponentialMovingAverage` makes
    (`bn/bn/moments/...`). Two-tree libraries have another branch for parameters.
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
    """Return True if a `mean` and a `variance`, ordinary words, belong to a batch norm.

    They do in a library's own tree of batch statistics, unless they describe data such as a
    policy's observations.
    """
    shapes = {names.contents.variables[key].shape for key in roles.values()}
    if len(shapes) != 1:
        return False
    if len(roles) > 2 or BATCH_NORM_SCOPE.search(owner):
        return True
    parts = scope.split(scheme.variance[0])[:-1]
    is_in_tree = any(statistics in parts for statistics, _ in scheme.trees)
    return is_in_tree and len(*shapes) == 1 and not _OF_DATA.search(scope)


def _shadows(names: VariableNames, sighting: Sighting) -> list[Sighting]:
    """Return the layer of a layer's shadow copies, if there are any."""
    roles = {
        role: shadow
        for role, key in sighting.roles.items()
        if (shadow := names.shadows.get(names.name_of[key])) is not None and shadow != key
    }
    return [Sighting("name", sighting.name + _SHADOW_WORD, roles)] if roles else []
