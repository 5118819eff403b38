"""The masks of Keras: what its training leaves out of a layer's statistics.

Inference normalizes what is masked like all else, so the graph that runs does not tell.
Sources: keras/src/layers/normalization/batch_normalization.py, of Keras 3 and of tf-keras, whose
fused layers take no notice of a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bnstat.live import holders
from bnstat.mending.estimating.running.flatten import op_of

_PASSES = frozenset({"Cast", "Identity"})


@contextmanager
def masks_noted(model: Any) -> Iterator[list[tuple[Any, Any]]]:
    """While a model is traced, note with which masks its batch-norm layers are called.

    Gives a list of pairs: what enters the layer, and the mask, of one dimension less.
    """
    noted: list[tuple[Any, Any]] = []
    layers = [
        layer
        for _, layer in holders(model)
        if hasattr(layer, "moving_variance")
        and hasattr(layer, "call")
        and not getattr(layer, "fused", False)
    ]
    for layer in layers:
        object.__setattr__(layer, "call", _noting(layer.call, noted))
    try:
        yield noted
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")


def _noting(call: Any, noted: list[tuple[Any, Any]]) -> Any:
    import tensorflow as tf

    def masked(inputs: Any, *args: Any, **options: Any) -> Any:
        mask = options.get("mask")
        if mask is not None:
            inputs = tf.identity(inputs)  # an op of its own, by which it is found again
            noted.append((inputs, mask))
        return call(inputs, *args, **options)

    return masked


def mask_of(nodes: Mapping[str, Any], tensor: str, masks: Mapping[str, str]) -> str | None:
    """The mask of a tensor that enters a normalization.

    Args:
        nodes: the graph's, by name.
        tensor: the tensor.
        masks: op -> the mask of what it gives.
    """
    name = op_of(tensor)
    while name not in masks and name in nodes and nodes[name].op in _PASSES:
        name = op_of(nodes[name].input[0])
    return masks.get(name)
