"""Measure how often unlabelled data shows the mode of a classifier's training.

    python tests/survey/predict_mode.py train FOLDER [PART]
    python tests/survey/predict_mode.py add FOLDER TRAININGS
    python tests/survey/predict_mode.py table FOLDER

`train` trains small classifiers whose moving statistics stay at mean 0 and variance 1: one half
normalizes with the statistics of the batch, the other half runs in inference mode. It then runs
each classifier in both modes on several kinds of unlabelled data, and writes the mutual
information of input and prediction to FOLDER. `add` does the same with the networks that
`train_both_modes.py train TRAININGS` has saved. `table` prints how often `bnstat drift` would be
right. PART is a glob over the names of the trainings.

Everything is made here, or comes from the digits of the tests. A training takes some seconds.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from bnstat.estimate.modes import by_accuracy, by_information
from bnstat.estimate.passes import Accuracy

ROOT = Path(__file__).parents[2]

TASKS = {
    "digits": 10,
    "three-digits": 3,
    "parity": 1,
    "is-seven": 1,
    "textures": 6,
    "patterns": 40,
    "pixels": 3,
    "two-textures": 2,
    "discriminator": 1,
}
"""Task -> the number of scores: one for a sigmoid, more for a softmax."""

ARCHITECTURES = ("conv", "conv-bias", "between", "dense", "separable", "input-first")
OPTIMIZERS = {
    "adam": ("Adam", {"learning_rate": 3e-3}),
    "momentum": ("SGD", {"learning_rate": 0.02, "momentum": 0.9}),
    "rmsprop": ("RMSprop", {"learning_rate": 2e-3}),
}
STEPS = (30, 200, 200, 600)
DIGITS = ("digits", "three-digits", "parity", "is-seven", "discriminator")
"""The tasks whose images are the digits."""

SAMPLES = (8, 32, 128, 512)
BATCH = 64
SIZE = 8


@dataclass(frozen=True)
class Training:
    """A classifier and how it is trained."""

    task: str
    architecture: str
    optimizer: str
    mode: str
    steps: int
    seed: int

    @property
    def name(self) -> str:
        parts = (self.task, self.architecture, self.optimizer, self.mode, self.steps, self.seed)
        return ".".join(map(str, parts))


def trainings() -> list[Training]:
    """All trainings, in an order whose beginning is a fair sample of them all."""
    generator = random.Random(0)
    found = []
    for seed, task in product(range(9), TASKS):
        architecture = generator.choice(ARCHITECTURES)
        if task == "pixels" and architecture == "dense":
            architecture = "conv"
        optimizer, steps = generator.choice(list(OPTIMIZERS)), generator.choice(STEPS)
        for mode in ("batch", "stored"):
            found.append(Training(task, architecture, optimizer, mode, steps, seed))
    return found


def digits(name: str) -> tuple[np.ndarray, np.ndarray]:
    stored = np.load(ROOT / f"tests/data/digits_{name}.npz")
    return (stored["images"] / 16).astype("float32"), stored["labels"].astype("int32")


def samples_of(task: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [count, SIZE, SIZE, 1] of a task, and their labels; the seed 0 is for training."""
    generator = np.random.default_rng([seed, sum(map(ord, task))])
    rows, columns = np.mgrid[:SIZE, :SIZE].astype("float32")
    if task in DIGITS:
        images, labels = digits("test" if seed else "train")
        if task == "three-digits":
            images, labels = images[labels < 3], labels[labels < 3]
        chosen = generator.permutation(len(images))[:count]
        images, labels = images[chosen], labels[chosen]
        if task == "parity":
            labels = labels % 2
        elif task == "is-seven":
            labels = (labels == 7).astype("int32")
        return images, labels
    if task in ("textures", "two-textures"):
        labels = generator.integers(0, TASKS[task], count).astype("int32")
        angle = labels * np.pi / TASKS[task]
        along = rows * np.cos(angle)[:, None, None] + columns * np.sin(angle)[:, None, None]
        images = np.sin(along * 1.6 + generator.uniform(0, 6.3, count)[:, None, None])
        images = (images + generator.normal(0, 0.7, images.shape))[..., None]
    elif task == "patterns":
        labels = generator.integers(0, 40, count).astype("int32")
        patterns = np.random.default_rng(5).normal(1.0, 1.0, (40, SIZE, SIZE, 1))
        images = patterns[labels] + generator.normal(0.0, 1.0, (count, SIZE, SIZE, 1))
    else:
        labels = np.zeros((count, SIZE, SIZE), "int32")
        for each in labels:
            for kind in (1, 2):
                center, radius = generator.uniform(1, SIZE - 1, 2), generator.uniform(1, 2.5)
                away = np.abs(rows - center[0]), np.abs(columns - center[1])
                inside = np.maximum(*away) < radius if kind == 1 else sum(away) < 1.5 * radius
                each[inside] = kind
        levels = np.array([0.2, 0.9, 0.5])
        images = (levels[labels] + generator.normal(0, 0.15, labels.shape))[..., None]
    return images.astype("float32"), labels


def variants_of(task: str) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
    """Kinds of data for a classifier of this task, with labels where the task has them."""
    images, labels = samples_of(task, max(SAMPLES), 1)
    true = None if task == "discriminator" else labels
    generator = np.random.default_rng(3)
    noise = generator.normal(size=images.shape).astype("float32")
    spread = images.std()
    yield "in domain", images, true
    yield "darker", images * 0.3, true
    yield "brighter", images * 3, true
    yield "shifted", images + spread, true
    yield "noisy", images + noise * spread, true
    yield "inverted", images.max() - images, true
    yield "0 to 255", images * (255 / images.max()), true
    if labels.ndim == 1 and true is not None:
        order = np.argsort(labels != labels[0], kind="stable")
        size = int((labels == labels[0]).sum())
        for variant, part in (
            ("one class", order[:size]),
            ("one class in ten others", order[: size + size // 9]),
            ("half the classes", np.flatnonzero(labels <= labels.max() // 2)),
        ):
            yield variant, images[part], labels[part]
    yield "noise alone", images.mean() + noise * spread, None
    yield "constant", np.broadcast_to(images[:1], images.shape) + 1e-3 * noise, None
    for other in ("digits", "textures", "pixels"):
        if other != task and not (other == "digits" and task in DIGITS):
            yield f"{other} instead", samples_of(other, max(SAMPLES), 1)[0], None


def network(training: Training, keras: Any, momentum: float = 1.0) -> Any:
    """An untrained classifier that returns logits."""
    layers = keras.layers
    x = inputs = keras.Input((SIZE, SIZE, 1))
    kind, pixels = training.architecture, training.task == "pixels"

    def unit(x: Any, layer: Any) -> Any:
        x = layer(x)
        if kind == "between":
            x = layers.Activation("relu")(x)
        x = layers.BatchNormalization(momentum=momentum)(x)
        return x if kind == "between" else layers.Activation("relu")(x)

    bias = kind in ("conv-bias", "between", "dense")
    if kind == "input-first":
        x = layers.BatchNormalization(momentum=momentum)(x)
    if kind == "dense":
        x = layers.Flatten()(x)
        for units in (32, 24):
            x = unit(x, layers.Dense(units))
    else:
        name = "SeparableConv2D" if kind == "separable" else "Conv2D"
        for filters, strides in ((8, 1), (16, 1 if pixels else 2), (16, 1)):
            layer = getattr(layers, name)(
                filters, 3, strides=strides, padding="same", use_bias=bias
            )
            x = unit(x, layer)
        if not pixels:
            x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(TASKS[training.task])(x))


def fit(training: Training, model: Any, keras: Any) -> None:
    """Train a classifier; a discriminator learns beside a generator."""
    import tensorflow as tf

    kind, settings = OPTIMIZERS[training.optimizer]
    optimizer = getattr(keras.optimizers, kind)(**settings)
    optimizer.build(model.trainable_variables)
    images, labels = map(tf.constant, samples_of(training.task, 1400, 0))
    is_opposed = training.task == "discriminator"
    is_batch = training.mode == "batch"
    layers = keras.layers
    maker = keras.Sequential(
        [
            keras.Input((16,)),
            layers.Dense(64, "relu"),
            layers.Dense(SIZE * SIZE, "sigmoid"),
            layers.Reshape((SIZE, SIZE, 1)),
        ]
    )
    making = keras.optimizers.Adam(2e-3)
    making.build(maker.trainable_variables)

    def loss_of(x: Any, y: Any) -> Any:
        if is_opposed:
            false = model(maker(tf.random.normal([BATCH, 16])), training=is_batch)
            true = model(x, training=is_batch)
            return tf.reduce_mean(tf.nn.softplus(false)) + tf.reduce_mean(tf.nn.softplus(-true))
        output = model(x, training=is_batch)
        if TASKS[training.task] == 1:
            y = tf.cast(y, tf.float32)[:, None]
            return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, output))
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, output))

    def step(optimizer: Any, variables: Any, loss: Any) -> None:
        with tf.GradientTape() as tape:
            value = loss()
        gradients = tape.gradient(value, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    @tf.function
    def run(steps: Any) -> None:
        for _ in tf.range(steps):
            chosen = tf.random.uniform([BATCH], 0, len(images), tf.int32)
            x, y = tf.gather(images, chosen), tf.gather(labels, chosen)
            step(optimizer, model.trainable_variables, lambda x=x, y=y: loss_of(x, y))
            if is_opposed:
                step(making, maker.trainable_variables, lambda x=x, y=y: -loss_of(x, y))

    run(tf.constant(training.steps))


def measure(model: Any, task: str, record: dict[str, Any], file: Path) -> None:
    """Run a trained classifier in both modes on all kinds of data, and write what comes out."""
    import tensorflow as tf

    signature = [tf.TensorSpec([None, SIZE, SIZE, 1], tf.float32)]
    modes = {
        "stored": tf.function(lambda x: model(x, training=False), signature),
        "batch": tf.function(lambda x: model(x, training=True), signature),
    }
    images, labels = samples_of(task, 512, 1)
    record = {**record, "accuracy": {}, "rows": []}
    for mode, call in modes.items():
        record["accuracy"][mode] = float(_right(_scores(call, images), labels).mean())
    for variant, data, labels in variants_of(task):
        for count in SAMPLES:
            if count > 1.5 * len(data):
                continue
            chosen = np.random.default_rng(count).permutation(len(data))[:count]
            row: dict[str, Any] = {"variant": variant, "samples": len(chosen)}
            for mode, call in modes.items():
                scores = _scores(call, data[chosen])
                row[mode] = _figures(scores)
                if labels is not None:
                    row[mode]["right"] = _right(scores, labels[chosen]).tolist()
            record["rows"].append(row)
    file.write_text(json.dumps(record))


def _scores(call: Any, images: np.ndarray) -> np.ndarray:
    parts = -(-len(images) // BATCH)
    return np.concatenate(
        [call(part.astype("float32")).numpy() for part in np.array_split(images, parts)]
    )


def _right(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The share of each sample that was classified right."""
    found = scores[..., 0] > 0 if scores.shape[-1] == 1 else scores.argmax(-1)
    return (found == labels).reshape(len(labels), -1).mean(axis=1)


def _figures(scores: np.ndarray) -> dict[str, float]:
    """Information, entropy of the mean, classes."""
    rows = scores.astype("float64").reshape(-1, scores.shape[-1])
    if rows.shape[1] == 1:
        rows = np.concatenate([rows, np.zeros_like(rows)], 1)
    rows = np.exp(rows - rows.max(1, keepdims=True))
    rows /= rows.sum(1, keepdims=True)
    mean = _entropy(rows.mean(0))
    return {"information": mean - float(_entropy(rows).mean()), "mean": float(mean)}


def _entropy(p: np.ndarray) -> Any:
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)


def train_all(folder: Path, part: str) -> None:
    quiet()
    import keras

    folder.mkdir(parents=True, exist_ok=True)
    for training in trainings():
        file = folder / f"{training.name}.json"
        if not fnmatchcase(training.name, part) or file.exists():
            continue
        started = time.process_time()
        keras.utils.set_random_seed(sum(map(ord, training.name)))
        model = network(training, keras)
        fit(training, model, keras)
        measure(model, training.task, asdict(training), file)
        keras.backend.clear_session()
        print(f"{training.name:60} {time.process_time() - started:5.1f} s", flush=True)


def add(folder: Path, trained: Path, part: str) -> None:
    """Measure the classifiers of digits that `train_both_modes.py` saved."""
    quiet()
    import keras
    import tf_keras

    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(trained.glob("*.json")):
        record = json.loads(source.read_text())
        is_usable = record["before"] == "random" and record["steps"] > 1
        is_usable = is_usable and record["data"] == "digits" and record["policy"] == "float32"
        is_usable = is_usable and record["architecture"] not in ("generator", "gan")
        file = folder / f"trained-{source.name}"
        if not is_usable or file.exists() or not fnmatchcase(source.stem, part):
            continue
        library = tf_keras if record["library"] == "tf_keras" else keras
        model = library.models.load_model(source.with_suffix(".keras"), compile=False)
        kept = ("architecture", "optimizer", "mode", "steps", "seed", "variant")
        measure(model, "digits", {"task": "digits", **{key: record[key] for key in kept}}, file)
        keras.backend.clear_session()
        print(source.stem, flush=True)


def table(folder: Path) -> None:
    """Print how often the predictions, and the accuracies, show the right mode."""
    found = list(_outcomes(folder))
    print(f"{len({row['network'] for row in found})} networks, {len(found)} data sets\n")
    print(f"{'':26}{'predictions':>18}{'accuracies':>18}\n{'':26}" + 2 * f"{'r    c    w':>18}")
    for key in ("variant", "samples", "task", "mode", "is_learned", "all"):
        for value in sorted({row[key] for row in found}):
            chosen = [row for row in found if row[key] == value]
            cells = []
            for way in ("predictions", "accuracies"):
                counts = Counter(row[way] for row in chosen if way in row)
                cells.append("".join(f"{counts[each]:5}" for each in OUTCOMES).rjust(18))
            print(f"{value!s:26}{''.join(cells)}")
        print()
    for row in found:
        for way in ("predictions", "accuracies"):
            if row.get(way) == "wrong":
                print(f"wrong, {way}: {row['network']}, {row['variant']}, {row['samples']} samples")


OUTCOMES = ("right", "cannot tell", "wrong")


def _outcomes(folder: Path) -> Iterator[dict[str, Any]]:
    """The outcome of each network and data set."""
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text())
        truth = f"{record['mode']}-statistics"
        is_learned = record["accuracy"][record["mode"]] > 0.5
        for row in record["rows"]:
            stored, own = row["stored"], row["batch"]
            outcome = {
                "network": file.stem,
                "variant": row["variant"],
                "samples": min(each for each in SAMPLES if each >= row["samples"]),
                "task": record["task"],
                "mode": f"trained with {truth}",
                "is_learned": f"accuracy {'above' if is_learned else 'below'} 50 %",
                "all": "all",
            }
            verdict, _ = by_information(stored["information"], own["information"], row["samples"])
            outcome["predictions"] = _outcome(verdict, truth)
            if "right" in stored:
                accuracies = (_accuracy(stored), _accuracy(own))
                figures = (stored["information"], own["information"])
                verdict, _ = by_accuracy(accuracies, *figures)
                outcome["accuracies"] = _outcome(verdict, truth)
            yield outcome


def _accuracy(figures: dict[str, Any]) -> Accuracy:
    return Accuracy(float(np.mean(figures["right"])), len(figures["right"]))


def _outcome(verdict: str, truth: str) -> str:
    if verdict == "unknown":
        return "cannot tell"
    return "right" if verdict == truth else "wrong"


def quiet() -> None:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)


def main() -> None:
    action, folder, *rest = sys.argv[1:]
    if action == "train":
        train_all(Path(folder), rest[0] if rest else "*")
    elif action == "add":
        add(Path(folder), Path(rest[0]), rest[1] if len(rest) > 1 else "*")
    else:
        table(Path(folder))


if __name__ == "__main__":
    main()
