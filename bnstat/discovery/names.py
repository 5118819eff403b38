"""Batch norm by the names of variables: for files that hold no structure, and for what the
structure leaves out.

A moving variance whose name has a scheme's ending starts a layer; its scope and the scheme say
what the other variables of the layer are called. `ExponentialMovingAverage` keeps copies of
variables under `NAME/ExponentialMovingAverage`: beside the variable that is a shadow, and set
apart; without the variable it is all that was saved, and stands for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from bnstat.discovery.merge import Sighting
from bnstat.discovery.schemes import SCHEMES, Scheme
from bnstat.formats.contents import Contents
from bnstat.model.variables import squeezed

NAMED_FOR_ITS_ROLE = re.compile(r"(?:^|[/._])(?:gamma|beta)(?::0)?$")
"""The end of a name that nothing but batch norm uses. If the shape of such a variable does not fit
the statistics, it still has the role, so that the mismatch is reported instead of hidden."""

SHADOW = re.compile(r"/ExponentialMovingAverage(_\d+)?$")
BATCH_NORM_SCOPE = re.compile(
    r"(^|[/_.])(batch_?norm(alization)?|bn)(_?v\d)?[_\d]*$", re.IGNORECASE
)
"""A scope whose last part says batch norm: `BatchNorm_1`, `conv2_bn`, `tpu_batch_normalization`."""

_OF_DATA = re.compile(
    r"obs|reward|return|action|state_?norm|input|target|value|rms|normali[sz]er|running|data",
    re.IGNORECASE,
)
"""What the scope of statistics of data may say, rather than of activations."""

_SHADOW_WORD = "/ExponentialMovingAverage"


def from_names(names: Names, include_shadows: bool) -> list[Sighting]:
    """The layers that the variables' names show."""
    found = []
    for name in names.ending_with(_VARIANCE_ENDINGS):
        for scheme in SCHEMES:
            if not f"/{name}".endswith(scheme.variance):
                continue
            sighting = _sighting(names, scheme, name)
            if sighting is not None:
                found.append(sighting)
                if include_shadows:
                    found += _shadows(names, sighting)
                break
    return _with_averages_apart(names, found, include_shadows)


def without_statistics(names: Names, taken: Iterable[str]) -> list[Sighting]:
    """Layers that by their scope are surely batch norm, but of which only gamma or beta is there.

    Args:
        names: the names of the file's variables.
        taken: keys that belong to layers already found.
    """
    used = set(taken)
    left = [name for name in names.ending_with(("/gamma", "/beta")) if names.keys[name] not in used]
    if not left:
        return []
    from bnstat.discovery.lookalikes import set_apart

    scopes: dict[str, dict[str, str]] = {}
    for name in left:
        scope, _, role = name.rpartition("/")
        key = names.keys[name]
        if BATCH_NORM_SCOPE.search(scope) and set_apart(key, name) is None:
            scopes.setdefault(scope, {})[role] = key
    return [Sighting("name", scope, roles) for scope, roles in scopes.items()]


def by_patterns(names: Names, patterns: Sequence[tuple[str, str]]) -> list[Sighting]:
    """The layers that a user's own patterns show.

    Args:
        names: the names of the file's variables.
        patterns: (role, regular expression) pairs. A variable has the role if the expression
            matches somewhere in its name; its layer is the group `layer`, else the first group,
            else the name without what was matched.
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


class Names:
    """The names of the file's variables, and the key of each."""

    def __init__(self, contents: Contents, complete: bool = True) -> None:
        """Gather the names.

        Args:
            contents: the file.
            complete: whether all names are needed, be they unlike any scheme's.
        """
        self.contents = contents
        self.keys: dict[str, str] = {}
        self.shadows: dict[str, str] = {}
        names: Mapping[str, str] = contents.names
        if complete or contents.search is None:
            self._gather((key, names.get(key, key)) for key in contents.variables)
        else:
            self._gather(contents.search(_FIRST).items())
            self._gather(contents.search(self._companions()).items())
        if any("__" in name for name in self.keys):
            self._number()
        self.averages = {name: key for name, key in self.shadows.items() if name not in self.keys}
        self.keys.update(self.averages)
        self._averaged = frozenset(self.averages.values())

    def is_average(self, key: str) -> bool:
        """Return True if a variable is an average that stands for one that is not in the file."""
        return key in self._averaged

    @cached_property
    def name_of(self) -> Mapping[str, str]:
        """Key -> name."""
        return {key: name for name, key in self.keys.items()}

    def _gather(self, found: Iterable[tuple[str, str]]) -> None:
        for key, name in found:
            if "/.OPTIMIZER_SLOT/" in key or key.startswith("optimizer_weights/"):
                continue
            if _SHADOW_WORD in name and (match := SHADOW.search(name)):
                self.shadows.setdefault(name[: match.start()], key)
            else:
                self.keys.setdefault(name, key)

    def _number(self) -> None:
        from bnstat.discovery.numbered import with_scopes

        variables = self.contents.variables
        self.keys = with_scopes(self.keys, lambda key: variables[key].shape)

    def _companions(self) -> set[str]:
        """The names that may belong together with the moving variances among those gathered."""
        variances = {*self.ending_with(_VARIANCE_ENDINGS), *self.shadows}
        found = set(self.shadows)
        for name in variances:
            for scheme in SCHEMES:
                if f"/{name}".endswith(scheme.variance):
                    scope = f"/{name}".removesuffix(scheme.variance)[1:]
                    count = scheme.variance[0] + "count"
                    endings = (scheme.mean, *scheme.gamma, *scheme.beta, *scheme.extra, count)
                    for owner in _owners(scope, scheme, averaged=True):
                        found |= {owner + each if owner else each[1:] for each in endings}
        return found

    def ending_with(self, endings: tuple[str, ...]) -> Iterator[str]:
        """The names with one of the endings, of which each starts with a separator."""
        whole = {ending[1:] for ending in endings}
        for name in self.keys:
            if name.endswith(endings) or name in whole:
                yield name

    def find(
        self, scope: str, endings: Iterable[str], shape: tuple[int, ...] | None = None
    ) -> str | None:
        """The key of the first variable that the scope has with one of the endings.

        Args:
            scope: the scope.
            endings: the endings.
            shape: the shape that the variable must have, except for dimensions of 1, unless its
                name is gamma or beta; None for any.
        """
        for ending in endings:
            key = self.keys.get(scope + ending if scope else ending[1:])
            if key is not None and (
                shape is None
                or NAMED_FOR_ITS_ROLE.search(ending)
                or squeezed(self.contents.variables[key].shape) == squeezed(shape)
            ):
                return key
        return None


_VARIANCE_ENDINGS = tuple(dict.fromkeys(scheme.variance for scheme in SCHEMES))
_FIRST = (
    *_VARIANCE_ENDINGS,
    "/gamma",
    "/beta",
    *(_SHADOW_WORD + number for number in ("", *(f"_{n}" for n in range(100)))),
)
"""What shows that there may be a layer, or is one's without its statistics."""


def _sighting(names: Names, scheme: Scheme, variance: str) -> Sighting | None:
    """The layer whose moving variance has that name, if the scheme fits it."""
    scope = f"/{variance}".removesuffix(scheme.variance)[1:]
    mean = names.find(scope, (scheme.mean,))
    if mean is None:
        return None
    roles = {"moving_mean": mean, "moving_variance": names.keys[variance]}
    owners = _owners(scope, scheme, averaged=variance in names.averages)
    shape = names.contents.variables[mean].shape
    for owner in owners:
        gamma, beta = (names.find(owner, each, shape) for each in (scheme.gamma, scheme.beta))
        if gamma is None and names.find(owner, scheme.gamma) is not None:
            # It is another layer's kernel, and the bias is that layer's too.
            break
        if gamma or beta:
            roles |= {"gamma": gamma} if gamma else {}
            roles |= {"beta": beta} if beta else {}
            break
    if _is_of_data(names, scope, scheme, roles):
        return None
    if not scheme.surely and not (
        _is_in_tree_of_statistics(names, scope, scheme, roles) or _shows_more(names, owner, roles)
    ):
        return None
    extra = {ending[1:]: key for ending in scheme.extra if (key := names.find(scope, (ending,)))}
    averaged = any(map(names.is_average, roles.values()))
    notes = ("read from exponential moving averages: the variables are not in the file",)
    name = _without_tree(owner, scheme)
    return Sighting("name", name, roles, extra=extra, notes=notes if averaged else ())


def _with_averages_apart(
    names: Names, found: list[Sighting], include_shadows: bool
) -> list[Sighting]:
    """The same, with averages of batch statistics as shadows where their layer has moving ones."""
    if not names.averages:
        return found
    averaged = [names.is_average(sighting.roles["moving_variance"]) for sighting in found]
    own = {layer.name for layer, second in zip(found, averaged, strict=True) if not second}
    result = []
    for layer, second in zip(found, averaged, strict=True):
        if not second or layer.name not in own:
            result.append(layer)
        elif include_shadows:
            result.append(replace(layer, name=layer.name + _SHADOW_WORD))
    return result


def _owners(scope: str, scheme: Scheme, averaged: bool) -> list[str]:
    """The scopes in which gamma and beta may stand, the most likely first.

    TensorFlow 1 repeats the whole scope for variables that an `ExponentialMovingAverage` makes
    (`bn/bn/moments/...`); two-tree libraries have another branch for parameters.
    """
    owners = [scope]
    parts = scope.split("/")
    half = len(parts) // 2
    if averaged and parts[:half] == parts[half:]:
        owners.append("/".join(parts[:half]))
    separator = scheme.variance[0]
    parts = scope.split(separator)
    for statistics, parameters in scheme.trees:
        for position, part in enumerate(parts):
            if part == statistics:
                there = [*parts[:position], parameters, *parts[position + 1 :]]
                owners.append(separator.join(there))
    return owners


def _without_tree(owner: str, scheme: Scheme) -> str:
    """A layer's name without the branch for parameters that it is in."""
    for branches in scheme.trees:
        for branch in branches:
            owner = owner.removeprefix(branch + scheme.variance[0])
    return owner


def _is_of_data(names: Names, scope: str, scheme: Scheme, roles: Mapping[str, str]) -> bool:
    """Whether a count beside the statistics says that they are of data, not of a layer's input.

    Keras's `Normalization` counts so, and what normalizes observations and rewards in
    reinforcement learning: `running_mean_std.running_var` has a `running_mean_std.count`.
    """
    if names.find(scope, (scheme.variance[0] + "count",)) is None:
        return False
    return len(roles) == 2 or not scheme.surely


def _shows_more(names: Names, scope: str, roles: Mapping[str, str]) -> bool:
    """Whether a `mean` and a `variance`, ordinary words, are surely batch norm's."""
    shapes = {names.contents.variables[key].shape for key in roles.values()}
    return len(shapes) == 1 and (len(roles) > 2 or bool(BATCH_NORM_SCOPE.search(scope)))


def _is_in_tree_of_statistics(
    names: Names, scope: str, scheme: Scheme, roles: Mapping[str, str]
) -> bool:
    """Return True if a mean and a variance are in a library's own tree of batch statistics.

    A module may keep other statistics there, such as those of a policy's observations.
    """
    shapes = {names.contents.variables[key].shape for key in roles.values()}
    parts = scope.split(scheme.variance[0])
    in_tree = any(statistics in parts[:-1] for statistics, _ in scheme.trees)
    return in_tree and len(shapes) == 1 and len(*shapes) == 1 and not _OF_DATA.search(scope)


def _shadows(names: Names, sighting: Sighting) -> list[Sighting]:
    """The layer of a layer's shadow copies, named after it, if there are any."""
    roles = {
        role: shadow
        for role, key in sighting.roles.items()
        if (shadow := names.shadows.get(names.name_of[key])) is not None and shadow != key
    }
    if not roles:
        return []
    return [Sighting("name", sighting.name + _SHADOW_WORD, roles)]
