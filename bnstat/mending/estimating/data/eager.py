"""TensorFlow's eager mode, for callers of graphs and sessions too."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any


def eagerly() -> AbstractContextManager[Any]:
    """Within it TensorFlow computes at once, whatever the caller has made its default."""
    from tensorflow.python.eager import context

    mode: AbstractContextManager[Any] = context.eager_mode()
    return mode
