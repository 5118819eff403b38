from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from tests.builders.digits import keras_network, save_graph_mode, save_keras


@pytest.fixture(scope="session")
def trained(built_once: Callable[..., Path]) -> Callable[[str], Path]:
    """The folder of a network trained by `keras`, `tf_keras` or `graph_mode`, in every form."""

    def train(by: str) -> Path:
        def write(folder: Path) -> None:
            if by == "graph_mode":
                save_graph_mode(folder)
            else:
                save_keras(keras_network(import_module(by)), folder)

        return built_once(f"digits-{by}", write)

    return train
