"""Models of both Keras libraries, saved as weights and as separate architectures."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import pytest
import tensorflow as tf
import tf_keras

from tests.builders.keras_models import all_layers, randomised

LIBRARIES = {"keras-3": keras, "tf-keras": tf_keras}


def with_norms(net: Any) -> dict[str, Any]:
    """Return the model's batch-norm layers by their own names, in network order."""
    return {
        layer.name: layer
        for layer in all_layers(net)
        if type(layer).__name__ == "BatchNormalization"
    }


def saved_weights(library: ModuleType, net: Any, folder: Path, form: str) -> Path:
    if form == "checkpoint":
        return Path(tf.train.Checkpoint(model=net).write(str(folder / "ckpt")))
    if form == ".h5" and library is keras:
        pytest.skip("Keras 3 saves weights alone as .weights.h5")
    if form == "sharded":
        if library is tf_keras:
            pytest.skip("tf-keras has no sharded weights")
        net.save_weights(folder / "m.weights.json", max_shard_size=2e-6)
        return folder / "m.weights.json"
    net.save_weights(folder / f"m{form}")
    return folder / f"m{form}"


def saved_architecture(net: Any, folder: Path, form: str) -> Path:
    path = folder / form
    if form == "to_json":
        path.write_text(net.to_json())
    elif form == "dumped":
        path.write_text(json.dumps(net.to_json()))
    else:
        net.save(path)
    return path


def sequential(library: ModuleType, *layers: Any) -> Any:
    return randomised(library.Sequential([library.Input((4,)), *layers]))


def wrapped(library: ModuleType) -> Any:
    """Batch norm in wrappers, and layers with as many variables, under names without meaning."""
    layers = library.layers
    x = inputs = library.Input((5, 6))
    x = layers.TimeDistributed(layers.BatchNormalization(scale=False, name="gamma721738"))(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(x)
    x = layers.GRU(4, return_sequences=True)(x)
    x = layers.LayerNormalization()(x)
    x = layers.MultiHeadAttention(2, 4)(x, x)
    x = layers.TimeDistributed(layers.Dense(3))(x)
    x = layers.Conv1D(3, 1)(x)
    return randomised(library.Model(inputs, layers.BatchNormalization(center=False, name="z")(x)))


def wrapped_norms(net: Any) -> dict[str, Any]:
    return {"gamma721738": net.layers[1].layer, "bn": net.layers[2], "z": net.layers[-1]}
