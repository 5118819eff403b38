from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from tests.builders.digits import keras_network, save_graph_mode, save_keras


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a network trained by `keras`, `tf_keras` or `graph_mode`, in every form."""
    folders: dict[str, Path] = {}

    def train(by: str) -> Path:
        if by not in folders:
            folder = tmp_path_factory.mktemp(by)
            if by == "graph_mode":
                save_graph_mode(folder)
            else:
                save_keras(keras_network(import_module(by)), folder)
            folders[by] = folder
        return folders[by]

    return train
