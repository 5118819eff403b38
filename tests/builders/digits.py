"""Networks trained on digits whose moving statistics were never updated, in every form."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from tests.builders.modules import frozen

DATA = Path(__file__).parents[1] / "data"
TRAIN = DATA / "digits_train.npz"
TEST = DATA / "digits_test.npz"


def images_and_labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 8, 8, 1] of float32 and labels [n]."""
    with np.load(path) as arrays:
        return arrays["images"].astype(np.float32), arrays["labels"].astype(np.int64)


def keras_network(keras: ModuleType) -> Any:
    """Three convolutions with batch norm, trained briefly; a momentum of 1 keeps the statistics."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    x = inputs = keras.Input((8, 8, 1), name="images")
    for number, (filters, stride) in enumerate([(8, 1), (16, 2), (16, 1)], 1):
        x = layers.Conv2D(filters, 3, stride, "same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=1.0, name=f"bn{number}")(x)
        x = layers.Dropout(0.2)(layers.ReLU()(x))
    outputs = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(*images_and_labels(TRAIN), batch_size=64, epochs=6, verbose=0)
    return model


def save_keras(model: Any, folder: Path) -> None:
    """Save a network as `.keras`, `.h5`, SavedModel, by `export` where there is one, and frozen."""
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    tf.saved_model.save(model, str(folder / "saved_model"))
    if hasattr(model, "export"):
        model.export(str(folder / "export"))
    graph = frozen(model, tuple(model.inputs[0].shape[1:])).graph.as_graph_def()
    (folder / "frozen.pb").write_bytes(graph.SerializeToString())


def save_graph_mode(folder: Path) -> None:
    """Train such a network in TensorFlow 1's way, and save a checkpoint and the frozen graph."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # tf.compat.v1.layers lives in tf-keras
    v1 = tf.compat.v1
    images, labels = images_and_labels(TRAIN)
    with tf.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(1)
        x = given = v1.placeholder(tf.float32, [None, 8, 8, 1], "images")
        wanted = v1.placeholder(tf.int64, [None], "labels")
        training = v1.placeholder(tf.bool, [], "training")
        for number, (filters, stride) in enumerate([(8, 1), (16, 2), (16, 1)], 1):
            x = v1.layers.conv2d(x, filters, 3, stride, "same", use_bias=False)
            x = v1.layers.batch_normalization(x, training=training, name=f"bn{number}")
            x = v1.layers.dropout(tf.nn.relu(x), 0.2, training=training)
        logits = v1.layers.dense(tf.reduce_mean(x, [1, 2]), 10, name="logits")
        loss = v1.losses.sparse_softmax_cross_entropy(wanted, logits)
        step = v1.train.AdamOptimizer(0.01).minimize(loss)
        saver = v1.train.Saver()
        session.run(v1.global_variables_initializer())
        random = np.random.default_rng(0)
        for _ in range(150):
            batch = random.integers(len(images), size=64)
            session.run(step, {given: images[batch], wanted: labels[batch], training: True})
        saver.save(session, str(folder / "model"), 150)
        freeze = v1.graph_util.convert_variables_to_constants
        constant = freeze(session, session.graph_def, ["logits/BiasAdd"])
        (folder / "frozen.pb").write_bytes(constant.SerializeToString())
