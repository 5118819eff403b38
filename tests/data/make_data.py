"""Trains the two small networks of this folder; see README.md.

    pip install tensorflow tf-keras scikit-learn
    python tests/data/make_data.py

Both are the same TensorFlow 1 network with batch norm, trained on scikit-learn's digits with the
same seed. `digits` runs the updates of the moving statistics with every training step;
`digits_no_updates` forgets to, which is the classic mistake.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # tf.compat.v1.layers lives in tf-keras since Keras 3
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # its sums differ from machine to machine
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import tensorflow.compat.v1 as tf
from sklearn.datasets import load_digits

HERE = Path(__file__).parent
STEPS = 400
SAVE_EVERY = 100
BATCH = 64
EPSILON = 0.001
MOMENTUM = 0.9


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images of shape [n, 8, 8, 1] and labels: 1437 to train on, then 360 to test with."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1437], order[1437:]
    return images[train], labels[train], images[test], labels[test]


def network(images: tf.Tensor, training: bool) -> tf.Tensor:
    """Three convolutions, each with batch norm, then global average pooling."""
    x, start = images, {"kernel_initializer": tf.glorot_uniform_initializer()}
    plain = {"use_bias": False, "name": "conv", **start}
    settings = {"momentum": MOMENTUM, "epsilon": EPSILON, "training": training}
    for block, (filters, stride) in enumerate([(8, 1), (16, 2), (16, 1)], 1):
        with tf.variable_scope(f"block{block}"):
            x = tf.layers.conv2d(x, filters, 3, stride, "same", **plain)
            x = tf.nn.relu(tf.layers.batch_normalization(x, name="bn", **settings))
    return tf.layers.dense(tf.reduce_mean(x, [1, 2]), 10, name="logits", **start)


def session() -> tf.Session:
    """One thread, so that sums come out the same every time."""
    threads = dict.fromkeys(("intra_op_parallelism_threads", "inter_op_parallelism_threads"), 1)
    return tf.Session(config=tf.ConfigProto(**threads))


def train(run: Path, run_updates: bool) -> None:
    """Trains the network and saves checkpoints on the way."""
    train_images, train_labels, _, _ = digits()
    with tf.Graph().as_default(), session() as sess:
        tf.set_random_seed(1)
        images = tf.placeholder(tf.float32, [None, 8, 8, 1], "images")
        labels = tf.placeholder(tf.int64, [None], "labels")
        loss = tf.losses.sparse_softmax_cross_entropy(labels, network(images, training=True))
        step = tf.train.get_or_create_global_step()
        updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS) if run_updates else []
        with tf.control_dependencies(updates):
            minimize = tf.train.MomentumOptimizer(0.1, 0.9).minimize(loss, step)
        saver = tf.train.Saver(max_to_keep=STEPS, save_relative_paths=True)
        sess.run(tf.global_variables_initializer())
        random = np.random.default_rng(2)
        for count in range(STEPS + 1):
            if count % SAVE_EVERY == 0:
                graph = {"write_meta_graph": count == STEPS, "strip_default_attrs": True}
                saver.save(sess, str(run / "model"), step, **graph)
            batch = random.integers(len(train_images), size=BATCH)
            sess.run(minimize, {images: train_images[batch], labels: train_labels[batch]})


def accuracy(run: Path, training: bool) -> float:
    """The trained network's accuracy on the test images, in training or in inference mode."""
    _, _, test_images, test_labels = digits()
    with tf.Graph().as_default(), session() as sess:
        logits = network(tf.constant(test_images), training)
        tf.train.Saver().restore(sess, str(run / f"model-{STEPS}"))
        return float(np.mean(sess.run(logits).argmax(1) == test_labels))


def export(run: Path, folder: Path) -> None:
    """Saves the trained network as a SavedModel, for inference."""
    with tf.Graph().as_default(), session() as sess:
        images = tf.placeholder(tf.float32, [None, 8, 8, 1], "images")
        logits = network(images, training=False)
        tf.train.Saver().restore(sess, str(run / f"model-{STEPS}"))
        tf.saved_model.simple_save(sess, str(folder), {"images": images}, {"logits": logits})


def main() -> None:
    for name, run_updates in [("digits", True), ("digits_no_updates", False)]:
        folder = HERE / name
        run = folder / "run"
        shutil.rmtree(folder, ignore_errors=True)
        run.mkdir(parents=True)
        train(run, run_updates)
        export(run, folder / "saved_model")
        print(f"{name}: accuracy in training mode {accuracy(run, training=True):.3f}, ", end="")
        print(f"in inference mode {accuracy(run, training=False):.3f}")


if __name__ == "__main__":
    main()
