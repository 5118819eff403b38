"""Whether the architecture that a user gave is that of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bnstat.discovery.config import expected_labels, is_batch_norm
from bnstat.formats.contents import Contents, Layer

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
