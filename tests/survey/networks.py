"""Small networks that are trained in one mode of batch norm, for the surveys of this folder.

The data are the digits of the tests and synthetic pictures. A training takes some seconds.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parents[1] / "data"

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
    "synthetic": 5,
}
"""Task -> the number of scores: one for a sigmoid, more for a softmax."""

DIGITS = ("digits", "three-digits", "parity", "is-seven", "discriminator")
"""The tasks whose images are the digits."""

GENERATORS = ("generator", "gan")
"""The first learns to draw the digits from their labels, the second against a discriminator."""

_CONV = (("Conv2D", 1, 8, 3), ("Conv2D", 2, 16, 3), ("Conv2D", 1, 16, 3))
UNITS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "conv": _CONV,
    "input-first": _CONV,
    "deep": (*[("Conv2D", 1, 8, 3)] * 2, ("Conv2D", 2, 8, 3), *[("Conv2D", 1, 8, 3)] * 5),
    "wide": (("Conv2D", 2, 64, 3), ("Conv2D", 2, 64, 3)),
    "dense": (("Dense", 1, 32), ("Dense", 1, 32), ("Dense", 1, 16)),
    "depthwise": (
        ("Conv2D", 1, 16, 3),
        *(("DepthwiseConv2D", 2, 3), ("Conv2D", 1, 16, 1)),
        *(("DepthwiseConv2D", 1, 3), ("Conv2D", 1, 16, 1)),
    ),
    "separable": tuple(("SeparableConv2D", strides, 16, 3) for strides in (1, 2, 1)),
    "transposed": tuple((kind, 2, 16, 3) for kind in ("Conv2D", "Conv2DTranspose", "Conv2D")),
}
"""Architecture -> its layers before a normalization: kind, strides, other arguments."""

OPTIMIZERS = {
    "sgd": ("SGD", {"learning_rate": 0.05}),
    "momentum": ("SGD", {"learning_rate": 0.02, "momentum": 0.9}),
    "rmsprop": ("RMSprop", {"learning_rate": 1e-3}),
    "adagrad": ("Adagrad", {"learning_rate": 0.03}),
    "adam": ("Adam", {"learning_rate": 2e-3}),
    "adamw": ("AdamW", {"learning_rate": 2e-3, "weight_decay": 0.004}),
    "nadam": ("Nadam", {"learning_rate": 2e-3}),
}
MODES = {"batch": "batch-statistics", "stored": "stored-statistics"}
SIZE = 8
NOISE = 16
"""Random inputs of a generator; those of the tasks have the label beside them."""

OUTCOMES = ("right", "cannot tell", "wrong")


@dataclass(frozen=True)
class Training:
    """A network, how it is trained, and what should be found out.

    `before` is the kind of weights that the training starts from: `random`, or the result of a
    training in `batch` mode or in `stored` mode.
    """

    architecture: str
    optimizer: str
    mode: str
    variant: str = "plain"
    seed: int = 0
    library: str = "keras"
    task: str = "digits"
    steps: int = 250
    batch: int = 32
    rate: float = 1.0
    bias: bool = True
    activation: str = "after"
    center: bool = True
    scale: bool = True
    bias_start: str = "zeros"
    beta_start: str = "zeros"
    gamma_start: str = "ones"
    l2: str = ""
    l1: str = ""
    decay: float = 0.0
    before: str = "random"
    loss_factor: float = 1.0
    bias_frozen: bool = False
    policy: str = "float32"
    pooled: bool = False
    momentum: float = 1.0

    @classmethod
    def saved(cls, file: Path) -> Training:
        record = json.loads(file.read_text())
        del record["loss"]
        return cls(**record)

    @property
    def name(self) -> str:
        return f"{self.variant}.{self.architecture}.{self.optimizer}.{self.mode}.{self.seed}"

    @property
    def truth(self) -> str:
        """How it was trained, as far as the weights can show it at all."""
        usable = self.bias and self.center and self.activation == "after"
        if not usable or not self.steps or self.bias_frozen:
            return "unknown"
        return MODES[self.mode]


def samples_of(task: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images [count, SIZE, SIZE, 1] of a task, and their labels; the seed 0 is for training."""
    generator = np.random.default_rng([seed, sum(map(ord, task))])
    if task in DIGITS:
        stored = np.load(DATA / f"digits_{'test' if seed else 'train'}.npz")
        images, labels = (stored["images"] / 16).astype("float32"), stored["labels"]
        if task == "three-digits":
            images, labels = images[labels < 3], labels[labels < 3]
        chosen = generator.permutation(len(images))[:count]
        images, labels = images[chosen], labels[chosen].astype("int32")
        if task == "parity":
            labels = labels % 2
        elif task == "is-seven":
            labels = (labels == 7).astype("int32")
        return images, labels
    labels = generator.integers(0, TASKS[task], count).astype("int32")
    rows, columns = np.mgrid[:SIZE, :SIZE].astype("float32")
    if task in ("textures", "two-textures"):
        angle = labels * np.pi / TASKS[task]
        along = rows * np.cos(angle)[:, None, None] + columns * np.sin(angle)[:, None, None]
        images = np.sin(along * 1.6 + generator.uniform(0, 6.3, count)[:, None, None])
        images = (images + generator.normal(0, 0.7, images.shape))[..., None]
    elif task in ("patterns", "synthetic"):
        patterns = np.random.default_rng(5).normal(1.0, 1.0, (TASKS[task], SIZE, SIZE, 1))
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


def data_of(training: Training) -> tuple[np.ndarray, np.ndarray]:
    images, labels = samples_of(training.task, 1400)
    if training.architecture not in GENERATORS:
        return images, labels
    codes = np.random.default_rng(7).normal(size=(len(labels), NOISE)).astype("float32")
    return np.concatenate([codes, np.eye(10, dtype="float32")[labels]], axis=1), images * 2 - 1


class Network:
    """A network; a classifier returns logits."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.keras: Any = import_module(training.library)
        self.keras.utils.set_random_seed(sum(map(ord, training.name)))
        self.biased: list[Any] = []
        self.optimizer: Any = None
        self.keras.mixed_precision.set_global_policy(training.policy)
        shape = (NOISE + 10,) if training.architecture in GENERATORS else (SIZE, SIZE, 1)
        inputs = self.keras.Input(shape)
        self.model = self.keras.Model(inputs, self._build(inputs))
        self.keras.mixed_precision.set_global_policy("float32")

    def unit(self, x: Any, kind: str, *arguments: Any, act: bool = True, **settings: Any) -> Any:
        """A layer with the normalization and the activation behind it."""
        training, keras = self.training, self.keras
        if kind != "Dense":
            settings.setdefault("padding", "same")
        kernel = "depthwise" if kind.startswith(("Depth", "Sep")) else "kernel"
        settings[f"{kernel}_regularizer"] = self._penalty("kernel")
        layer = getattr(keras.layers, kind)(
            *arguments,
            use_bias=training.bias,
            bias_initializer=self._start(training.bias_start),
            bias_regularizer=self._penalty("bias"),
            **settings,
        )
        x = layer(x)
        if training.activation == "before":
            x = keras.layers.Activation("relu")(x)
        elif training.activation == "leaky-before":
            x = keras.layers.LeakyReLU(0.3)(x)
        if training.pooled and kind.startswith("Conv2D"):
            x = keras.layers.MaxPooling2D(2, 1, "same")(x)
        self.biased.append(layer)
        x = self._norm()(x)
        if act and training.activation == "after":
            x = keras.layers.Activation("relu")(x)
        return x

    def _norm(self) -> Any:
        training = self.training
        return self.keras.layers.BatchNormalization(
            momentum=training.momentum,
            center=training.center,
            scale=training.scale,
            beta_initializer=self._start(training.beta_start),
            gamma_initializer=self._start(training.gamma_start),
            beta_regularizer=self._penalty("beta") if training.center else None,
            gamma_regularizer=self._penalty("gamma") if training.scale else None,
        )

    def _start(self, kind: str) -> Any:
        initializers, seed = self.keras.initializers, len(self.biased)
        return {
            "zeros": initializers.Zeros(),
            "ones": initializers.Ones(),
            "tenth": initializers.Constant(0.1),
            "random": initializers.RandomNormal(0.0, 0.05, seed=seed),
            "around-one": initializers.RandomNormal(1.0, 0.1, seed=seed),
            "uniform": initializers.RandomUniform(-0.2, 0.2, seed=seed),
        }[kind]

    def _penalty(self, part: str) -> Any:
        if part in self.training.l2.split():
            return self.keras.regularizers.L2(1e-2)
        return self.keras.regularizers.L1(1e-2) if part in self.training.l1.split() else None

    def _build(self, x: Any) -> Any:
        layers, kind, task = self.keras.layers, self.training.architecture, self.training.task
        if kind in GENERATORS:
            return self._generator(x)
        if kind == "residual":
            x = self._residual(x)
        elif kind == "input-first":
            x = self._norm()(x)
        elif kind == "dense":
            x = layers.Flatten()(x)
        for name, strides, *arguments in UNITS.get(kind, ()):
            # Pixels keep their places.
            settings = {} if name == "Dense" else {"strides": 1 if task == "pixels" else strides}
            x = self.unit(x, name, *arguments, **settings)
        if kind != "dense" and task != "pixels":
            x = layers.GlobalAveragePooling2D()(x)
        return layers.Dense(TASKS[task], dtype="float32")(x)

    def _residual(self, x: Any) -> Any:
        x = self.unit(x, "Conv2D", 16, 3)
        for _ in range(2):
            y = self.unit(x, "Conv2D", 16, 3)
            y = self.unit(y, "Conv2D", 16, 3, act=False)
            x = self.keras.layers.Activation("relu")(self.keras.layers.Add()([x, y]))
        return x

    def _generator(self, x: Any) -> Any:
        layers = self.keras.layers
        x = self.unit(x, "Dense", 64)
        x = layers.Reshape((2, 2, 16))(x)
        for _ in range(2):
            x = self.unit(x, "Conv2DTranspose", 16, 4, strides=2)
        return layers.Conv2D(1, 3, padding="same", activation="tanh", dtype="float32")(x)

    def _opponent(self) -> Any:
        """The discriminator of a generator, or the generator of a discriminator."""
        layers, sequential = self.keras.layers, self.keras.Sequential
        if self.training.task == "discriminator":
            dense = [layers.Dense(64, "relu"), layers.Dense(SIZE * SIZE, "sigmoid")]
            return sequential([self.keras.Input((NOISE,)), *dense, layers.Reshape((SIZE, SIZE, 1))])
        settings = {"strides": 2, "padding": "same", "activation": "leaky_relu"}
        convolutions = [layers.Conv2D(16, 3, **settings) for _ in range(2)]
        inputs = self.keras.Input((SIZE, SIZE, 1))
        return sequential([inputs, *convolutions, layers.Flatten(), layers.Dense(1)])

    def fit(self, training: Training) -> float:
        """Train the network, and return the last loss."""
        import tensorflow as tf

        kind, settings = OPTIMIZERS[training.optimizer]
        settings = {**settings, "learning_rate": settings["learning_rate"] * training.rate}
        if training.decay:
            settings["weight_decay"] = training.decay
        frozen = {id(layer.bias) for layer in self.biased} if training.bias_frozen else set()
        trained = [each for each in self.model.trainable_variables if id(each) not in frozen]
        self.optimizer = getattr(self.keras.optimizers, kind)(**settings)
        self.optimizer.build(trained)
        opponent = self._opponent()
        opposing = self.keras.optimizers.Adam(1e-3)
        opposing.build(opponent.trainable_variables)
        is_gan, is_opposed = training.architecture == "gan", training.task == "discriminator"
        inputs, targets = (tf.constant(each) for each in data_of(training))

        def output(x: Any) -> Any:
            return self.model(x, training=training.mode != "stored")

        def contest(false: Any, true: Any) -> Any:
            return tf.reduce_mean(tf.nn.softplus(false)) + tf.reduce_mean(tf.nn.softplus(-true))

        def task_loss(x: Any, y: Any) -> Any:
            if training.architecture == "generator":
                return tf.reduce_mean((output(x) - y) ** 2)
            if is_gan:
                return tf.reduce_mean(tf.nn.softplus(-opponent(output(x))))
            if is_opposed:
                return contest(output(opponent(tf.random.normal([len(x), NOISE]))), output(x))
            scores = output(x)
            if scores.shape[-1] == 1:
                y = tf.cast(y, tf.float32)[:, None]
                return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, scores))
            return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, scores))

        def own_loss(x: Any, y: Any) -> Any:
            return training.loss_factor * task_loss(x, y) + sum(self.model.losses)

        def opposing_loss(x: Any, y: Any) -> Any:
            return contest(opponent(output(x)), opponent(y)) if is_gan else -task_loss(x, y)

        def step(optimizer: Any, variables: Any, loss_of: Callable[..., Any], *data: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = loss_of(*data)
            gradients = tape.gradient(loss, variables)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return loss

        @tf.function
        def run(steps: Any) -> Any:
            loss = tf.constant(0.0)
            for _ in tf.range(steps):
                chosen = tf.random.uniform([training.batch], 0, len(inputs), tf.int32)
                x, y = tf.gather(inputs, chosen), tf.gather(targets, chosen)
                if is_gan or is_opposed:
                    step(opposing, opponent.trainable_variables, opposing_loss, x, y)
                loss = step(self.optimizer, trained, own_loss, x, y)
            return loss

        return float(run(tf.constant(training.steps))) if training.steps else 0.0


def unfinished(
    trainings: Iterable[Training], folder: Path, part: Sequence[str]
) -> Iterator[tuple[Training, Path]]:
    """Yield the trainings whose record is not in the folder, and the file that it belongs into.

    `part` may contain a glob over the names of the trainings.
    """
    quiet()
    import keras

    folder.mkdir(parents=True, exist_ok=True)
    for training in trainings:
        file = folder / f"{training.name}.json"
        if fnmatchcase(training.name, part[0] if part else "*") and not file.exists():
            started = time.process_time()
            yield training, file
            keras.backend.clear_session()
            print(f"{training.name:60} {time.process_time() - started:5.1f} s", flush=True)


def quiet() -> None:
    """Use one processor, because other work goes on beside a survey."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)


def outcome(found: str, *truths: str) -> str:
    if found in truths:
        return "right"
    return "cannot tell" if found == "unknown" else "wrong"


def print_row(name: str, columns: Iterable[Iterable[str]]) -> None:
    """Print how many outcomes of each kind there are, a cell for each column."""
    counts = map(Counter, columns)
    cells = ("".join(f"{count[each]:5}" for each in OUTCOMES).rjust(18) for count in counts)
    print(f"{name:26}{''.join(cells)}")
