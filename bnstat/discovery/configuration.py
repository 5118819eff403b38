"""Batch norm among the layers that a Keras file describes.

A layer is identified as batch norm by one of these properties:

- The configuration: the class name without the package contains batch norm (`BatchNormalization`,
  `SyncBatchNormalization`, `FreezableBatchNorm`, `BatchRenorm`, ...), or the layer has an argument
  that only batch norm has (`moving_variance_initializer`).
- The names of the variables: they include a moving mean and a moving variance.
- The shapes of the variables, if the variables are only numbered and no configuration gives the
  class. Four vectors of one length are batch norm. Three vectors, or five to seven, are undecided,
  because they may belong to a custom layer. Two vectors are not batch norm, because they can also
  be the scale and offset of a layer norm. If the group or the layer is named after batch norm, any
  number from two to seven is batch norm.

Numbered variables are, in this order, gamma unless `scale=False`, beta unless `center=False`,
moving mean, moving variance, and three more for batch renormalization (source: `build` of
keras/src/layers/normalization/batch_normalization.py). If a layer has three variables and no
configuration, the first variable is gamma or beta, and the file does not record which.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

import numpy as np

from bnstat.discovery.merge import Sighting
from bnstat.discovery.schemes import COUNT, LABELS, RENORM, find_roles
from bnstat.errors import BnstatError
from bnstat.formats.contents import Contents, Layer
from bnstat.model import ROLES, Variable

_CLASS: Final = re.compile(r"batch_?(re)?norm", re.IGNORECASE)
_OTHER_CLASS: Final = re.compile(r"(?!.*batch).*(instance|group|layer)_?norm", re.IGNORECASE)
"""Matches the classes of other normalizations. PyTorch's `InstanceNorm2d` may have running
statistics, which are averages of the statistics of single samples."""
NAMED_BATCH_NORM: Final = re.compile(r"batch_?(re)?norm|(^|[_\W])bn(\d|[_\W]|$)", re.IGNORECASE)
"""Matches within the names of batch-norm layers and of their variables."""
_RENORM: Final = ("moving_stddev", "renorm_mean", "renorm_stddev")
"""The further variables of batch renormalization in Keras 2, in the order of their numbers."""
_LABEL: Final = re.compile(
    rf"(.*_)??(?P<label>{'|'.join(map(re.escape, sorted({*LABELS, *RENORM, COUNT})))})(_\d+)?",
    re.DOTALL,
)
"""Matches a variable's name that contains a label: `LAYER_gamma` in Keras 1, `gamma_1` in
TensorFlow 1."""
_RUNNING_STD: Final = (
    "running_std is read as the variance, which Keras stores there since 1.0.7; "
    "earlier versions store the standard deviation"
)
"""The note on `running_std`, whose meaning changed (keras/layers/normalization.py)."""
_KERAS_0: Final = "written before Keras 1.0: it stored the standard deviation, not the variance"
_BY_SHAPE: Final = "only the shapes of its variables show that this is batch norm"
_MAY_BE: Final = "only the shapes of its variables show that this may be batch norm"
_MODES: Final = {
    1: "mode=1: normalizes each sample by its own statistics; the moving statistics are not used",
    2: "mode=2: always normalizes by batch statistics; the moving statistics are not used",
}

_WIDTHS: Final = {"Dense": "units", "Conv1D": "filters", "Conv2D": "filters", "Conv3D": "filters"}
"""Layer class -> the constructor argument that sets the last dimension of the kernel."""


def from_layers(contents: Contents, values: bool = True) -> list[Sighting]:
    """Return a sighting for each batch-norm layer in `contents.layers`, in the order of the layers.

    A variable whose role the file does not record is undecided, never guessed. If only shapes
    suggest batch norm and `values` is true, a layer whose variance has a negative value is left
    out.
    """
    sightings = []
    classes = {layer.name: layer.class_name for layer in contents.layers}
    stored = contents.variables
    for layer in contents.layers:
        variables = {label: stored[key] for label, key in layer.variables.items() if key in stored}
        sighting = _sighting(layer, variables)
        if sighting is None:
            continue
        if values and _MAY_BE in sighting.notes and _has_negative_variance([*variables.values()]):
            continue
        if "running_std" in variables and contents.source.writer is None:
            sighting.notes += (_RUNNING_STD,)
        sighting.name = layer.own_name or layer.name
        sighting.longer_name = layer.name
        sighting.inputs = _inputs(layer, classes)
        sightings.append(sighting)
    return sightings


def _inputs(layer: Layer, classes: Mapping[str, str | None]) -> frozenset[tuple[str, str]]:
    """Return ("config", tensor name) for each input of a layer in a functional model.

    If the layer reads the input of a nested model, the result is empty: that may be any tensor.
    """
    is_nested = layer.own_name not in ("", layer.name)
    inputs = [(name, output) for name, output in layer.inputs if output]
    if is_nested and any(classes.get(name) in (None, "InputLayer") for name, _ in inputs):
        return frozenset()
    return frozenset(("config", f"{name}:{output}") for name, output in inputs)


def is_batch_norm(class_name: str | None, config: Mapping[str, Any]) -> bool:
    """Return True if a layer of this class and configuration is batch normalization."""
    return bool(_CLASS.search(_own_class(class_name))) or "moving_variance_initializer" in config


def of_other_norms(contents: Contents) -> dict[str, str]:
    """Return key -> class for the variables of layers that are recorded as instance norm etc."""
    return {
        key: own
        for layer in contents.layers
        if _OTHER_CLASS.match(own := _own_class(layer.class_name))
        for key in layer.variables.values()
    }


def _own_class(class_name: str | None) -> str:
    """Return the name of a class without its package or module."""
    return re.split(r"[>.]", class_name or "")[-1]


def _sighting(layer: Layer, variables: Mapping[str, Variable]) -> Sighting | None:
    if _OTHER_CLASS.match(_own_class(layer.class_name)):
        return None
    numbered = all(label.isdecimal() for label in variables)
    if is_batch_norm(layer.class_name, layer.config):
        if not variables and "momentum" not in layer.config:
            # A block that is named after the batch norm in it.
            return None
        sighting = _numbered(layer, variables) if numbered else _labelled(variables)
        return _with_config(layer.config, sighting or Sighting("config"))
    if numbered:
        return _numbered(layer, variables) if layer.class_name is None else None
    sighting = _labelled(variables)
    return sighting if sighting.is_complete else _of_keras_0(variables)


def _labelled(variables: Mapping[str, Variable]) -> Sighting:
    """Return the sighting of a layer with named variables; `variables` maps label to variable.

    Without a label `gamma`, a single label such as `LAYER_gamma` or `gamma_1` counts as `gamma`.
    """
    candidates: dict[str, dict[str, str]] = {}
    for label, variable in variables.items():
        if match := _LABEL.fullmatch(label):
            candidates.setdefault(match["label"], {})[label] = variable.key
    keys = {
        label: named.get(label, next(iter(named.values())))
        for label, named in candidates.items()
        if label in named or len(named) == 1
    }
    roles = {role: keys[label] for role, label in find_roles(keys).items()}
    extra = {label: key for label, key in keys.items() if label in (*RENORM, COUNT)}
    return Sighting("name", roles=roles, extra=extra)


def _of_keras_0(variables: Mapping[str, Variable]) -> Sighting | None:
    """Return the sighting of four equal-sized vectors that Keras 0 named `param_0` ..., or None."""
    if list(variables) != [f"param_{index}" for index in range(4)]:
        return None
    if not _are_alike(variables) or len(variables["param_0"].shape) != 1:
        return None
    keys = [variable.key for variable in variables.values()]
    sighting = _assigned((*ROLES[:3], "running_std"), keys)
    return replace(sighting, notes=(_BY_SHAPE, _KERAS_0))


def _numbered(layer: Layer, variables: Mapping[str, Variable]) -> Sighting | None:
    """Return a sighting of a layer with numbered variables; None if nothing shows batch norm."""
    keys = tuple(variable.key for variable in variables.values())
    labels = _expected_labels(layer.config)
    if labels is not None:
        if not keys or (len(keys) == len(labels) and _are_alike(variables)):
            return _assigned(labels, keys)
        note = f"has {len(keys)} variables, but its configuration specifies {len(labels)}"
        return Sighting("name", undecided=keys, notes=(note,))
    is_named = is_batch_norm(layer.class_name, {}) or any(
        NAMED_BATCH_NORM.search(text.rpartition("/")[2]) for text in (layer.key, layer.name)
    )
    if not _are_alike(variables) or not 2 <= len(keys) <= 7:
        return Sighting("name", undecided=keys) if layer.class_name else None
    if not is_named and (len(keys) == 2 or len(next(iter(variables.values())).shape) != 1):
        return None
    if not is_named and len(keys) != 4:
        return Sighting("name", undecided=keys, notes=(_MAY_BE,))
    renorm = _RENORM if len(keys) > 4 else ()
    affine = len(keys) - len(renorm) - 2
    undecided = keys[:1] if affine == 1 else ()
    certain = ROLES[2:] if affine < 2 else ROLES
    sighting = _assigned((*certain, *renorm), keys[len(undecided) :])
    return replace(sighting, undecided=undecided, notes=() if is_named else (_BY_SHAPE,))


def _has_negative_variance(variables: Sequence[Variable]) -> bool:
    renorm = len(_RENORM) if len(variables) > 4 else 0
    try:
        variance = variables[len(variables) - renorm - 1].read()
    except BnstatError:
        return False
    return bool(np.less(variance, 0).any())


def _expected_labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the variables' labels, in stored order; None if `scale` or `center` is missing."""
    scale, center = config.get("scale"), config.get("center")
    if not isinstance(scale, bool | int) or not isinstance(center, bool | int):
        return None
    affine = [role for role, present in zip(ROLES, (scale, center), strict=False) if present]
    return (*affine, *ROLES[2:], *(_RENORM if config.get("renorm") is True else ()))


def _assigned(labels: Sequence[str], keys: Sequence[str]) -> Sighting:
    pairs = list(zip(labels, keys, strict=False))
    roles = {label: key for label, key in pairs if label in ROLES}
    extra = {label: key for label, key in pairs if label not in ROLES}
    return Sighting("name", roles=roles, extra=extra)


def _are_alike(variables: Mapping[str, Variable]) -> bool:
    """Return True if all variables are non-empty float arrays of one shape, as in batch norm."""
    shapes = {variable.shape for variable in variables.values()}
    are_floats = all("float" in variable.dtype for variable in variables.values())
    return are_floats and len(shapes) == 1 and shapes != {()} and 0 not in min(shapes)


def _with_config(config: Mapping[str, Any], sighting: Sighting) -> Sighting:
    trainable = config.get("trainable")
    mode = _MODES.get(config["mode"]) if isinstance(config.get("mode"), int) else None
    momentum = _number(config.get("momentum"))
    is_pytorch = "eps" in config
    if is_pytorch and momentum is not None:
        momentum = complement(momentum)  # PyTorch's momentum is the share of the new value.
    return replace(
        sighting,
        evidence="config",
        epsilon=_number(config.get("eps" if is_pytorch else "epsilon")),
        momentum=momentum,
        axis=1 if is_pytorch else _axis(config.get("axis")),
        trainable=trainable if isinstance(trainable, bool) else None,
        notes=(*sighting.notes, *filter(None, [mode])),
    )


def complement(share: float) -> float:
    """Return `1 - share` in decimal arithmetic: 0.99 for 0.01."""
    return float(1 - Decimal(repr(share)))


def _number(value: object) -> float | None:
    """Return a finite number as a float; None for other values and for too large integers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None


def _axis(value: object) -> int | tuple[int, ...] | None:
    """Return an axis as an int, several axes as a tuple, or None if `value` specifies no axis."""
    if isinstance(value, Mapping):
        value = value.get("items")
    axes = [axis for axis in (value if isinstance(value, list) else [value]) if type(axis) is int]
    if not axes or (isinstance(value, list) and len(axes) < len(value)):
        return None
    return axes[0] if len(axes) == 1 else tuple(axes)


def find_misfit(contents: Contents) -> str | None:
    """Describe the first mismatch between the architecture in `contents.layers` and the weights.

    Return None if no mismatch is found. Some mismatches would only show if the model were built.
    """
    filled = [layer.name for layer in contents.layers if layer.variables]
    parents = {place for name in filled for place in _places_around(name)}
    # Key or name of a described layer -> True if its configuration lists the layers inside it.
    lists_layers = {
        place: "layers" in layer.config
        for layer in contents.layers
        if layer.class_name is not None
        for place in (layer.key, layer.name)
    }

    def is_inside_unlisted(place: str) -> bool:
        around = next((outer for outer in _places_around(place) if outer in lists_layers), None)
        return around is not None and not lists_layers[around]

    for layer in contents.layers:
        shapes = [contents.variables[key].shape for key in layer.variables.values()]
        if layer.class_name is None:
            if shapes and not is_inside_unlisted(layer.key) and not is_inside_unlisted(layer.name):
                return f"the architecture has no layer for {layer.name} ({len(shapes)} variables)"
        elif is_batch_norm(layer.class_name, layer.config):
            if reason := _misfit_of_norm(layer, shapes):
                return reason
        elif argument := _WIDTHS.get(layer.class_name):
            width = layer.config.get(argument)
            if not shapes and layer.name not in parents:
                return f"the weights have no variables for {layer.name} ({layer.class_name})"
            kernel = max(shapes, key=len, default=())
            if shapes and isinstance(width, int) and kernel[-1:] != (width,):
                shape = list(kernel)
                return f"{layer.name} has {argument}={width}, but its kernel has shape {shape}"
    return None


def _misfit_of_norm(layer: Layer, shapes: Sequence[tuple[int, ...]]) -> str | None:
    labels = _expected_labels(layer.config)
    if not shapes:
        # A block that is named after the batch norm in it has no variables of its own.
        is_norm = labels is not None or "momentum" in layer.config
        return f"the weights have no variables for {layer.name} (batch norm)" if is_norm else None
    if labels is not None and len(shapes) != len(labels):
        return f"{layer.name} has {len(labels)} variables, but {len(shapes)} in the weights"
    channels = _channels(layer.config)
    if channels is not None and shapes[0] != (channels,):
        shape = list(shapes[0])
        return f"{layer.name} has {channels} channels, but its variables have shape {shape}"
    return None


def _channels(config: Mapping[str, Any]) -> int | None:
    built, axis = config.get("build_config"), _axis(config.get("axis"))
    shape = built.get("input_shape") if isinstance(built, Mapping) else None
    if type(axis) is not int or not isinstance(shape, list) or not -len(shape) <= axis < len(shape):
        return None
    return shape[axis] if type(shape[axis]) is int else None


def _places_around(place: str) -> Iterator[str]:
    """Yield the paths of the enclosing layers, the innermost first: `a/b` and `a` for `a/b/c`."""
    while "/" in place:
        place = place.rpartition("/")[0]
        yield place
