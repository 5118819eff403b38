"""Batch norm among the layers that a Keras file describes.

A layer is batch norm

- by its configuration: its class, without the package, is called so (`BatchNormalization`,
  `SyncBatchNormalization`, `FreezableBatchNorm`, `BatchRenorm`, ...), or its arguments are those
  of a subclass of it (`moving_variance_initializer`);
- by the names of its variables: a moving mean and a moving variance are among them;
- by the shape of its variables where they are only numbered and no configuration tells the
  class: four vectors of one length; other numbers of them only where the group or the layer is
  called so, since two can as well be a layer norm's scale and offset. Three, and five to seven,
  are undecided: nothing else of Keras has so many, but nothing says what they are.

Numbered variables are, in this order, gamma unless `scale=False`, beta unless `center=False`,
moving mean, moving variance, and for batch renormalization three more (source: `build` of
keras/src/layers/normalization/batch_normalization.py). Without a configuration, the one before
the moving statistics of three is gamma or beta, and the file does not tell which.
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
from bnstat.errors import BnstatError
from bnstat.formats.contents import Contents, Layer
from bnstat.model import ROLES, Variable

_CLASS: Final = re.compile(r"batch_?(re)?norm", re.IGNORECASE)
CALLED: Final = re.compile(r"batch_?(re)?norm|(^|[_\W])bn(\d|[_\W]|$)", re.IGNORECASE)
"""What names of batch-norm layers and of their tensors have in them."""

_ROLES: Final = {
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "moving_mean",
    "moving_variance": "moving_variance",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",
    "running_var": "moving_variance",
    "weight": "gamma",
    "bias": "beta",
}
"""Label -> role. Keras 1 calls the variance `running_std` (see `_RUNNING_STD`); the last are those
of a PyTorch module."""

_RENORM: Final = ("moving_stddev", "renorm_mean", "renorm_stddev")

_COUNT: Final = "num_batches_tracked"

_LABEL: Final = re.compile(
    rf"(.*_)??(?P<label>{'|'.join((*_ROLES, *_RENORM, _COUNT))})(_\d+)?", re.DOTALL
)
"""A variable's name: Keras 1 may put a layer's before it, TensorFlow 1 a count behind it."""

_RUNNING_STD: Final = (
    "running_std is taken as the variance, which it is since Keras 1.0.7; "
    "a file of an earlier Keras has the standard deviation there"
)
"""Keras 1.0.7 changed what it stores (keras-team/keras, keras/layers/normalization.py)."""

_KERAS_0: Final = "written before Keras 1.0, which stored the standard deviation, not the variance"
_BY_SHAPE: Final = "only the shapes of its variables tell that this is batch norm"
_MAY_BE: Final = "only the shapes of its variables tell that this may be batch norm"
_MODES: Final = {
    1: "mode=1: normalizes each sample by its own statistics, the moving ones are not used",
    2: "mode=2: normalizes by the batch's statistics always, the moving ones are not used",
}


_DEEPEST_CALL: Final = 20
"""Lists within each other in the arguments of a call."""

_NOTHING: Final = Sighting(evidence="name", name="", roles={})


def from_layers(contents: Contents, values: bool = True) -> list[Sighting]:
    """The batch-norm layers among `contents.layers`, in their order.

    A variable whose role cannot be told from what the file says is undecided, never guessed. So
    is a layer of which only the shapes of its variables tell that it may be batch norm.

    Args:
        contents: the file.
        values: whether values may be read: they rule out what has a negative number where batch
            norm has its variance.
    """
    sightings = []
    classes = {layer.name: layer.class_name for layer in contents.layers}
    for layer in contents.layers:
        variables = {
            label: contents.variables[key]
            for label, key in layer.variables.items()
            if key in contents.variables
        }
        sighting = _sighting(layer, variables)
        if sighting is not None and values and _MAY_BE in sighting.notes:
            sighting = sighting if _may_vary(list(variables.values())) else None
        if sighting is not None:
            if "running_std" in variables and contents.source.writer is None:
                sighting = replace(sighting, notes=(*sighting.notes, _RUNNING_STD))
            sightings.append(replace(sighting, inputs=_inputs(layer, classes)))
    return sightings


def _inputs(layer: Layer, classes: Mapping[str, str | None]) -> frozenset[tuple[str, str]]:
    """The tensors that a layer of a functional model is called on; empty if they are not known.

    The input of a nested model is any tensor that this model is called on.

    Args:
        layer: the layer.
        classes: name of a layer -> its class.
    """
    own_name = layer.own_name or layer.name
    model = layer.name.removesuffix(own_name).rstrip("/")
    found = set()
    for name, node, tensor in _histories(layer.config.get("inbound_nodes"), 0):
        full_name = f"{model}/{name}" if model else name
        if model and classes.get(full_name) in (None, "InputLayer"):
            return frozenset()
        found.add(("config", f"{full_name}:{node}:{tensor}"))
    return frozenset(found)


def _histories(value: object, depth: int) -> Iterator[tuple[str, int, int]]:
    """The tensors in an `inbound_nodes` of any Keras, each as (layer, call, output)."""
    if depth > _DEEPEST_CALL:
        return
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        match value:
            case [str() as name, int() as node, int() as tensor, *_]:
                yield name, node, tensor
            case _:
                for inner in value:
                    yield from _histories(inner, depth + 1)


def is_batch_norm(class_name: str | None, config: Mapping[str, Any]) -> bool:
    """Whether a layer of this class and configuration is batch normalization."""
    own = re.split(r"[>.]", class_name or "")[-1]
    return bool(_CLASS.search(own)) or "moving_variance_initializer" in config


def _sighting(layer: Layer, variables: Mapping[str, Variable]) -> Sighting | None:
    numbered = all(label.isdecimal() for label in variables)
    if is_batch_norm(layer.class_name, layer.config):
        if not variables and "momentum" not in layer.config:
            # A block that is called after the batch norm in it.
            return None
        found = _counted(layer, variables) if numbered else _labelled(variables)
        return _with_config(layer, found or _NOTHING)
    if not numbered:
        found = _labelled(variables)
        if not {"moving_mean", "moving_variance"} <= found.roles.keys():
            found = _of_keras_0(variables)
    else:
        found = _counted(layer, variables) if layer.class_name is None else None
    if found is None:
        return None
    return replace(found, name=layer.own_name or layer.name, longer_name=layer.name)


def _labelled(variables: Mapping[str, Variable]) -> Sighting:
    """Roles by the variables' own names: `gamma`, else the only `..._gamma` or `gamma_1`."""
    candidates: dict[str, dict[str, str]] = {}
    for label, variable in variables.items():
        if match := _LABEL.fullmatch(label):
            candidates.setdefault(match["label"], {})[label] = variable.key
    chosen = {
        label: named.get(label, next(iter(named.values())))
        for label, named in candidates.items()
        if label in named or len(named) == 1
    }
    return replace(
        _NOTHING,
        roles={_ROLES[label]: key for label, key in chosen.items() if label in _ROLES},
        extra={label: key for label, key in chosen.items() if label not in _ROLES},
    )


def _of_keras_0(variables: Mapping[str, Variable]) -> Sighting | None:
    """The four vectors of a layer that Keras 0 saved as `param_0` to `param_3`."""
    if list(variables) != [f"param_{index}" for index in range(4)]:
        return None
    if not _are_alike(variables) or len(variables["param_0"].shape) != 1:
        return None
    keys = [variable.key for variable in variables.values()]
    return replace(
        _NOTHING,
        roles=dict(zip(ROLES[:3], keys[:3], strict=True)),
        extra={"running_std": keys[3]},
        notes=(_BY_SHAPE, _KERAS_0),
    )


def _counted(layer: Layer, variables: Mapping[str, Variable]) -> Sighting | None:
    """Roles of numbered variables, by the configuration or, where that is silent, by number.

    Returns:
        None where there is nothing that tells of batch norm.
    """
    keys = [variable.key for variable in variables.values()]
    expected = expected_labels(layer.config)
    if expected is not None:
        if not keys or (len(keys) == len(expected) and _are_alike(variables)):
            return _assigned(dict(zip(expected, keys, strict=False)))
        note = f"has {len(keys)} variables where its configuration tells of {len(expected)}"
        return replace(_NOTHING, undecided=tuple(keys), notes=(note,))
    called = is_batch_norm(layer.class_name, {}) or any(
        CALLED.search(text.rpartition("/")[2]) for text in (layer.key, layer.name)
    )
    if not _are_alike(variables) or not 2 <= len(keys) <= 7:
        return replace(_NOTHING, undecided=tuple(keys)) if layer.class_name else None
    if not called and (len(keys) == 2 or len(next(iter(variables.values())).shape) != 1):
        return None
    if not called and len(keys) != 4:
        return replace(_NOTHING, undecided=tuple(keys), notes=(_MAY_BE,))
    renorm = _RENORM if len(keys) > 4 else ()
    affine = len(keys) - len(renorm) - 2
    certain = ROLES[2:] if affine < 2 else ROLES
    undecided = tuple(keys[:1]) if affine == 1 else ()
    found = _assigned(dict(zip((*certain, *renorm), keys[len(undecided) :], strict=True)))
    return replace(found, undecided=undecided, notes=() if called else (_BY_SHAPE,))


def _may_vary(variables: Sequence[Variable]) -> bool:
    """Whether the one that is the moving variance, if these are batch norm's, can be one."""
    renorm = len(_RENORM) if len(variables) > 4 else 0
    try:
        variance = variables[len(variables) - renorm - 1].read()
    except BnstatError:
        return True
    return not np.less(variance, 0).any()


def expected_labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The labels of a layer's variables in order; None where the configuration is silent."""
    scale, center = config.get("scale"), config.get("center")
    if not isinstance(scale, bool | int) or not isinstance(center, bool | int):
        return None
    affine = [role for role, present in zip(ROLES, (scale, center), strict=False) if present]
    return (*affine, *ROLES[2:], *(_RENORM if config.get("renorm") is True else ()))


def _assigned(keys: Mapping[str, str]) -> Sighting:
    return replace(
        _NOTHING,
        roles={label: key for label, key in keys.items() if label in ROLES},
        extra={label: key for label, key in keys.items() if label not in ROLES},
    )


def _are_alike(variables: Mapping[str, Variable]) -> bool:
    """Whether they are floating-point arrays of one shape, as a batch norm's variables are."""
    shapes = {variable.shape for variable in variables.values()}
    return (
        len(shapes) == 1
        and all("float" in variable.dtype for variable in variables.values())
        and all(size > 0 for size in min(shapes))
        and min(shapes) != ()
    )


def _with_config(layer: Layer, found: Sighting) -> Sighting:
    """A sighting by class, with what the configuration tells beside the variables."""
    config = layer.config
    trainable = config.get("trainable")
    mode = _MODES.get(config["mode"]) if isinstance(config.get("mode"), int) else None
    is_pytorch = "eps" in config
    return replace(
        found,
        evidence="config",
        name=layer.own_name or layer.name,
        longer_name=layer.name,
        epsilon=_number(config.get("eps" if is_pytorch else "epsilon")),
        momentum=_share_kept(config) if is_pytorch else _number(config.get("momentum")),
        axis=1 if is_pytorch else _axis(config.get("axis")),
        trainable=trainable if isinstance(trainable, bool) else None,
        notes=(*found.notes, *filter(None, [mode])),
    )


def _share_kept(config: Mapping[str, Any]) -> float | None:
    """The momentum of a PyTorch module, whose own is the share of the new value."""
    momentum = _number(config.get("momentum"))
    return None if momentum is None else float(1 - Decimal(repr(momentum)))


def _number(value: object) -> float | None:
    """A finite number, which a JSON integer need not be as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None


def _axis(value: object) -> int | tuple[int, ...] | None:
    """An axis, or several; a list of one, as tf.keras writes it, is that one."""
    if isinstance(value, Mapping):
        value = value.get("items")
    axes = [axis for axis in (value if isinstance(value, list) else [value]) if type(axis) is int]
    if not axes or (isinstance(value, list) and len(axes) < len(value)):
        return None
    return axes[0] if len(axes) == 1 else tuple(axes)


_WIDTHS: Final = {"Dense": "units", "Conv1D": "filters", "Conv2D": "filters", "Conv3D": "filters"}
"""Class -> the argument that is the last dimension of its kernel."""


def misfit(contents: Contents) -> str | None:
    """The first thing in which the layers of an architecture and the weights disagree.

    Args:
        contents: what the weights hold, with the layers of the architecture.

    Returns:
        None where they agree, as far as can be told without building the model.
    """
    holders = _holders(contents)
    inside = _Inside(contents)
    for layer in contents.layers:
        shapes = [contents.variables[key].shape for key in layer.variables.values()]
        if layer.class_name is None:
            if shapes and not inside(layer):
                return f"it has no layer for {layer.name} ({len(shapes)} variables)"
        elif is_batch_norm(layer.class_name, layer.config):
            reason = _misfit_of_norm(layer, shapes)
            if reason is not None:
                return reason
        elif argument := _WIDTHS.get(layer.class_name):
            width = layer.config.get(argument)
            if not shapes and layer.name not in holders:
                return f"the weights have no variables for {layer.name} ({layer.class_name})"
            kernel = max(shapes, key=len, default=())
            if shapes and isinstance(width, int) and kernel[-1:] != (width,):
                return f"{layer.name} has {argument}={width} by it, its kernel is {list(kernel)}"
    return None


def _misfit_of_norm(layer: Layer, shapes: list[tuple[int, ...]]) -> str | None:
    labels = expected_labels(layer.config)
    if not shapes:
        # A block that is called after the batch norm in it has none of its own.
        surely = labels is not None or "momentum" in layer.config
        return f"the weights have no variables for {layer.name} (batch norm)" if surely else None
    if labels is not None and len(shapes) != len(labels):
        return f"{layer.name} has {len(labels)} variables by it, {len(shapes)} in the weights"
    channels = _channels(layer.config)
    if channels is not None and shapes[0] != (channels,):
        return f"{layer.name} has {channels} channels by it, its variables are {list(shapes[0])}"
    return None


def _channels(config: Mapping[str, Any]) -> int | None:
    """How many channels Keras 3 built a layer for; None where that is not told of one axis."""
    built, axis = config.get("build_config"), config.get("axis")
    shape = built.get("input_shape") if isinstance(built, Mapping) else None
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if type(axis) is not int or not isinstance(shape, list) or not -len(shape) <= axis < len(shape):
        return None
    return shape[axis] if type(shape[axis]) is int else None


def _holders(contents: Contents) -> set[str]:
    """The names of the layers that hold variables in a layer of theirs."""
    holders = set()
    for layer in contents.layers:
        name = layer.name
        while layer.variables and "/" in name:
            name = name.rpartition("/")[0]
            holders.add(name)
    return holders


class _Inside:
    """Tells of layers without a configuration whether an unlisted place has them."""

    def __init__(self, contents: Contents) -> None:
        described = [layer for layer in contents.layers if layer.class_name is not None]
        self._lists: dict[str, bool] = {}
        for layer in described:
            for place in (layer.key, layer.name):
                self._lists[place] = "layers" in layer.config

    def __call__(self, layer: Layer) -> bool:
        return self._is_within(layer.key) or self._is_within(layer.name)

    def _is_within(self, place: str) -> bool:
        while "/" in place:
            place = place.rpartition("/")[0]
            if place in self._lists:
                return not self._lists[place]
        return False
