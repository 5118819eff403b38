"""What networks are ported to and from: ONNX, PyTorch, safetensors, TensorFlow.js and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_BRANCHES: Final = frozenset(
    {"params", "batch_stats", "state", "trainable_variables", "non_trainable_variables"}
)
"""What Flax, Haiku and Keras call the trees that a layer's variables are divided among."""


def plain_name(path: Sequence[str]) -> str:
    """A variable's name: without its trees, and the `value` of Flax NNX."""
    parts = list(path)
    while len(parts) > 2 and parts[0] in _BRANCHES:
        del parts[0]
    if len(parts) > 1 and parts[-1] == "value":
        parts.pop()
    return "/".join(parts)
