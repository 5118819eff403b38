from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

v1 = tf.compat.v1


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Saves a graph as a checkpoint with its `.meta`; `build` may return the variables to save."""

    def save(build: Callable[[], Any]) -> Path:
        with tf.Graph().as_default(), v1.Session() as session:
            variables = build()
            session.run(v1.global_variables_initializer())
            v1.train.Saver(variables).save(session, str(tmp_path / "model"))
        return tmp_path / "model"

    return save
