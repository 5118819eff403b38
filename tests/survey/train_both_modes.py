"""Train small networks in both modes, and measure what the mode leaves in the weights.

    python tests/survey/train_both_modes.py train FOLDER [PART]
    python tests/survey/train_both_modes.py table FOLDER

`train` runs some hundreds of trainings whose moving statistics stay at mean 0 and variance 1: in
one half the layers normalize with the statistics of the batch, in the other half they run in
inference mode. It saves each trained network, and skips the trainings that FOLDER already has.
`table` asks bnstat how each network was trained, and prints how often the answer was right, by
optimizer and by architecture. PART is a glob over the names of the trainings.

The data are the digits of the tests and synthetic pictures. A training takes some seconds.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from importlib import import_module
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import bnstat
from bnstat.checks.training_mode import (
    Evidence,
    Gradient,
    Pair,
    compare_gradients,
    judge,
    training_evidence,
)

ROOT = Path(__file__).parents[2]

OPTIMIZERS = {
    "sgd": ("SGD", {"learning_rate": 0.05}),
    "momentum": ("SGD", {"learning_rate": 0.02, "momentum": 0.9}),
    "rmsprop": ("RMSprop", {"learning_rate": 1e-3}),
    "adagrad": ("Adagrad", {"learning_rate": 0.03}),
    "adam": ("Adam", {"learning_rate": 2e-3}),
    "adamw": ("AdamW", {"learning_rate": 2e-3, "weight_decay": 0.004}),
    "nadam": ("Nadam", {"learning_rate": 2e-3}),
}
ARCHITECTURES = (
    *("conv", "deep", "wide", "dense", "depthwise", "separable"),
    *("transposed", "generator", "residual"),
)
MODES = ("batch", "stored")
GENERATORS = ("generator", "gan")
"""The first learns to draw the digits from their labels, the second against a discriminator."""

NOISE = 16
"""Random inputs of a generator; the label comes beside them."""


@dataclass(frozen=True)
class Training:
    """A training: the network, how it is trained, and what should be found out.

    `before` is the kind of weights that the training starts from: `random`, or the result of a
    training in `batch` mode, in `stored` mode, or in batch mode with `updated` statistics.
    """

    architecture: str
    optimizer: str
    mode: str
    variant: str = "plain"
    seed: int = 0
    library: str = "keras"
    data: str = "digits"
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

    @property
    def name(self) -> str:
        return f"{self.variant}.{self.architecture}.{self.optimizer}.{self.mode}.{self.seed}"

    @property
    def truth(self) -> str:
        """How it was trained, as far as the weights can show it at all."""
        usable = self.bias and self.center and self.activation == "after"
        if not usable or not self.steps or self.bias_frozen:
            return "unknown"
        return {"batch": "batch-statistics", "stored": "stored-statistics"}[self.mode]


def trainings() -> Iterator[Training]:
    """All trainings of the survey."""
    for architecture, optimizer, mode in product(ARCHITECTURES, OPTIMIZERS, MODES):
        yield Training(architecture, optimizer, mode)
    variants: dict[str, dict[str, Any]] = {
        "l2-bias": {"l2": "bias"},
        "l2-beta": {"l2": "beta"},
        "l2-all": {"l2": "kernel bias beta gamma"},
        "l1-bias": {"l1": "bias"},
        "decay": {"decay": 0.01},
        "few-steps": {"steps": 20},
        "five-steps": {"steps": 5},
        "one-step": {"steps": 1},
        "many-steps": {"steps": 2000},
        "slow": {"rate": 0.1},
        "fast": {"rate": 5.0},
        "batch-4": {"batch": 4},
        "batch-128": {"batch": 128, "steps": 120},
        "constant-bias": {"bias_start": "constant"},
        "random-bias": {"bias_start": "random"},
        "torch-bias": {"bias_start": "uniform"},
        "random-beta": {"beta_start": "random"},
        "random-gamma": {"gamma_start": "around-one"},
        "zero-gamma": {"gamma_start": "zeros"},
        "small-gamma": {"gamma_start": "tenth"},
        "no-scale": {"scale": False},
        "no-center": {"center": False},
        "no-bias": {"bias": False},
        "between": {"activation": "before"},
        "leaky-between": {"activation": "leaky-before"},
        "pooled": {"pooled": True},
        "untrained": {"steps": 0},
        "bias-frozen": {"bias_frozen": True},
        "after-batch": {"before": "batch"},
        "after-stored": {"before": "stored"},
        "briefly-after-batch": {"before": "batch", "steps": 50},
        "briefly-after-stored": {"before": "stored", "steps": 50},
        "synthetic": {"data": "synthetic"},
        "summed-loss": {"loss_factor": 500.0, "rate": 0.2},
        "tf-keras": {"library": "tf_keras"},
        "bfloat16": {"policy": "mixed_bfloat16"},
    }
    subjects = (
        *(("conv", optimizer) for optimizer in ("momentum", "adam", "rmsprop", "adagrad", "sgd")),
        *(("dense", optimizer) for optimizer in ("momentum", "adam")),
        *(("generator", "adam"), ("gan", "adam"), ("deep", "nadam"), ("residual", "momentum")),
    )
    for (variant, settings), mode in product(variants.items(), MODES):
        for architecture, optimizer in subjects:
            yield Training(architecture, optimizer, mode, variant, **settings)
    for seed, optimizer, mode in product(range(3), ("adam", "rmsprop"), MODES):
        yield Training("gan", optimizer, mode, seed=seed, steps=500 * (1 + seed))
    for architecture, optimizer, mode in product(ARCHITECTURES, OPTIMIZERS, MODES):
        yield Training(architecture, optimizer, mode, seed=1, steps=1000)
    for architecture, optimizer in product(("conv", "dense"), ("momentum", "adam", "rmsprop")):
        for mode in MODES:
            yield Training(architecture, optimizer, mode, "after-updated", before="updated")


def in_order() -> list[Training]:
    """The trainings in an order whose beginning is a fair sample of them all."""
    shuffled = list(trainings())
    random.Random(0).shuffle(shuffled)
    plain = iter([each for each in shuffled if each.variant == "plain" and not each.seed])
    others = [each for each in shuffled if each.variant != "plain" or each.seed]
    others.sort(key=lambda each: each.variant == "plain")  # These are the longest.
    return [each for pair in zip_longest(plain, others) for each in pair if each is not None]


def data_of(training: Training) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets."""
    generator = np.random.default_rng(7)
    if training.data == "digits":
        stored = np.load(ROOT / "tests/data/digits_train.npz")
        images = (stored["images"] / 16).astype("float32")
        labels = stored["labels"].astype("int32")
    else:
        labels = generator.integers(0, 5, 1500).astype("int32")
        patterns = generator.normal(1.0, 1.0, (5, 8, 8, 1))
        noise = generator.normal(0.0, 1.5, (1500, 8, 8, 1))
        images = (patterns[labels] + noise).astype("float32")
    if training.architecture not in GENERATORS:
        return images, labels
    codes = generator.normal(size=(len(labels), NOISE)).astype("float32")
    return np.concatenate([codes, np.eye(10, dtype="float32")[labels]], axis=1), images * 2 - 1


class Network:
    """A network with the pairs of a layer and the normalization that it feeds."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.keras: Any = import_module(training.library)
        self.pairs: list[tuple[Any, Any]] = []
        self.keras.mixed_precision.set_global_policy(training.policy)
        build = getattr(self, training.architecture)
        shape = (NOISE + 10,) if training.architecture in GENERATORS else (8, 8, 1)
        inputs = self.keras.Input(shape)
        self.model = self.keras.Model(inputs, build(inputs))
        self.keras.mixed_precision.set_global_policy("float32")

    def unit(self, x: Any, kind: str, *arguments: Any, act: bool = True, **settings: Any) -> Any:
        """A layer with the normalization and the activation behind it."""
        training, keras = self.training, self.keras
        if kind != "Dense":
            settings.setdefault("padding", "same")
        layer = getattr(keras.layers, kind)(
            *arguments,
            use_bias=training.bias,
            bias_initializer=self._start(training.bias_start),
            bias_regularizer=self._penalty("bias"),
            **{
                "depthwise_regularizer"
                if kind.startswith(("Depth", "Sep"))
                else "kernel_regularizer": self._penalty("kernel")
            },
            **settings,
        )
        x = layer(x)
        if training.activation == "before":
            x = keras.layers.Activation("relu")(x)
        elif training.activation == "leaky-before":
            x = keras.layers.LeakyReLU(0.3)(x)
        if training.pooled and kind.startswith("Conv2D"):
            x = keras.layers.MaxPooling2D(2, 1, "same")(x)
        norm = keras.layers.BatchNormalization(
            momentum=1.0,  # The moving statistics stay what they are.
            center=training.center,
            scale=training.scale,
            beta_initializer=self._start(training.beta_start),
            gamma_initializer=self._start(training.gamma_start),
            beta_regularizer=self._penalty("beta") if training.center else None,
            gamma_regularizer=self._penalty("gamma") if training.scale else None,
        )
        x = norm(x)
        self.pairs.append((layer, norm))
        if act and training.activation == "after":
            x = keras.layers.Activation("relu")(x)
        return x

    def _start(self, kind: str) -> Any:
        initializers, seed = self.keras.initializers, len(self.pairs)
        return {
            "zeros": initializers.Zeros(),
            "ones": initializers.Ones(),
            "tenth": initializers.Constant(0.1),
            "constant": initializers.Constant(0.1),
            "random": initializers.RandomNormal(0.0, 0.05, seed=seed),
            "around-one": initializers.RandomNormal(1.0, 0.1, seed=seed),
            "uniform": initializers.RandomUniform(-0.2, 0.2, seed=seed),
        }[kind]

    def _penalty(self, part: str) -> Any:
        if part in self.training.l2.split():
            return self.keras.regularizers.L2(1e-2)
        return self.keras.regularizers.L1(1e-2) if part in self.training.l1.split() else None

    def _head(self, x: Any) -> Any:
        x = self.keras.layers.GlobalAveragePooling2D()(x)
        return self.keras.layers.Dense(10, dtype="float32")(x)

    def conv(self, x: Any) -> Any:
        for filters, strides in ((8, 1), (16, 2), (16, 1)):
            x = self.unit(x, "Conv2D", filters, 3, strides=strides)
        return self._head(x)

    def deep(self, x: Any) -> Any:
        for place in range(8):
            x = self.unit(x, "Conv2D", 8, 3, strides=2 if place == 2 else 1)
        return self._head(x)

    def wide(self, x: Any) -> Any:
        for filters in (64, 64):
            x = self.unit(x, "Conv2D", filters, 3, strides=2)
        return self._head(x)

    def dense(self, x: Any) -> Any:
        x = self.keras.layers.Flatten()(x)
        for units in (32, 32, 16):
            x = self.unit(x, "Dense", units)
        return self.keras.layers.Dense(10, dtype="float32")(x)

    def depthwise(self, x: Any) -> Any:
        x = self.unit(x, "Conv2D", 16, 3)
        for strides in (2, 1):
            x = self.unit(x, "DepthwiseConv2D", 3, strides=strides)
            x = self.unit(x, "Conv2D", 16, 1)
        return self._head(x)

    def separable(self, x: Any) -> Any:
        for filters, strides in ((16, 1), (16, 2), (16, 1)):
            x = self.unit(x, "SeparableConv2D", filters, 3, strides=strides)
        return self._head(x)

    def transposed(self, x: Any) -> Any:
        for kind, filters in (("Conv2D", 16), ("Conv2DTranspose", 16), ("Conv2D", 16)):
            x = self.unit(x, kind, filters, 3, strides=2)
        return self._head(x)

    def residual(self, x: Any) -> Any:
        x = self.unit(x, "Conv2D", 16, 3)
        for _ in range(2):
            y = self.unit(x, "Conv2D", 16, 3)
            y = self.unit(y, "Conv2D", 16, 3, act=False)
            x = self.keras.layers.Activation("relu")(self.keras.layers.Add()([x, y]))
        return self._head(x)

    def generator(self, x: Any) -> Any:
        layers = self.keras.layers
        x = self.unit(x, "Dense", 64)
        x = layers.Reshape((2, 2, 16))(x)
        x = self.unit(x, "Conv2DTranspose", 16, 4, strides=2)
        x = self.unit(x, "Conv2DTranspose", 16, 4, strides=2)
        return layers.Conv2D(1, 3, padding="same", activation="tanh", dtype="float32")(x)

    gan = generator

    def discriminator(self) -> Any:
        """The opponent of a generator."""
        layers = self.keras.layers
        return self.keras.Sequential(
            [
                self.keras.Input((8, 8, 1)),
                layers.Conv2D(16, 3, strides=2, padding="same", activation="leaky_relu"),
                layers.Conv2D(16, 3, strides=2, padding="same", activation="leaky_relu"),
                layers.Flatten(),
                layers.Dense(1),
            ]
        )

    def fit(self, training: Training) -> float:
        """Train the network, and return the last loss."""
        import tensorflow as tf

        kind, settings = OPTIMIZERS[training.optimizer]
        settings = {**settings, "learning_rate": settings["learning_rate"] * training.rate}
        if training.decay:
            settings["weight_decay"] = training.decay
        optimizer = getattr(self.keras.optimizers, kind)(**settings)
        frozen = {id(layer.bias) for layer, _ in self.pairs} if training.bias_frozen else set()
        variables = [each for each in self.model.trainable_variables if id(each) not in frozen]
        optimizer.build(variables)
        self.model.optimizer = optimizer
        self.trained = variables
        opponent = self.discriminator()
        opposing = self.keras.optimizers.Adam(1e-3)
        opposing.build(opponent.trainable_variables)
        inputs, targets = (tf.constant(each) for each in data_of(training))

        def loss_of(x: Any, y: Any) -> Any:
            output = self.model(x, training=training.mode != "stored")
            if training.architecture == "generator":
                loss = tf.reduce_mean((output - y) ** 2)
            elif training.architecture == "gan":
                loss = tf.reduce_mean(tf.nn.softplus(-opponent(output)))
            else:
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, output)
                loss = tf.reduce_mean(losses)
            return training.loss_factor * loss + sum(self.model.losses)

        def oppose(x: Any, y: Any) -> None:
            drawn = self.model(x, training=training.mode != "stored")
            with tf.GradientTape() as tape:
                false, true = (tf.nn.softplus(s * opponent(z)) for s, z in ((1, drawn), (-1, y)))
                loss = tf.reduce_mean(false) + tf.reduce_mean(true)
            learned = opponent.trainable_variables
            opposing.apply_gradients(zip(tape.gradient(loss, learned), learned, strict=True))

        @tf.function
        def run(steps: Any) -> Any:
            loss = tf.constant(0.0)
            for _ in tf.range(steps):
                chosen = tf.random.uniform([training.batch], 0, len(inputs), tf.int32)
                x, y = tf.gather(inputs, chosen), tf.gather(targets, chosen)
                if training.architecture == "gan":
                    oppose(x, y)
                with tf.GradientTape() as tape:
                    loss = loss_of(x, y)
                gradients = tape.gradient(loss, variables)
                optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return loss

        return float(run(tf.constant(training.steps))) if training.steps else 0.0

    def arrays(self) -> list[dict[str, np.ndarray]]:
        """Of each pair the bias, gamma, beta and the squared norms of the kernel's channels.

        With them come what the optimizer keeps of the gradients of bias and beta.
        """
        return [
            {
                **self._slots(layer, norm),
                **({"bias": _array(layer.bias)} if self.training.bias else {}),
                **({"gamma": _array(norm.gamma)} if self.training.scale else {}),
                **({"beta": _array(norm.beta)} if self.training.center else {}),
                "kernel": _norms(layer),
            }
            for layer, norm in self.pairs
        ]

    def _slots(self, layer: Any, norm: Any) -> dict[str, np.ndarray]:
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is None or not self.training.bias or not self.training.center:
            return {}
        variables = optimizer.variables
        held = list(variables() if callable(variables) else variables)
        held = [each for each in held if tuple(each.shape)]
        count = len(held) // len(self.trained)
        places = {id(each): place for place, each in enumerate(self.trained)}
        if not count or id(layer.bias) not in places:
            return {}
        # The last one that Adam and its kin keep is the average of the squared gradients.
        slot = 1 if count > 1 else 0
        return {
            name: _array(held[places[id(variable)] * count + slot])
            for name, variable in (("bias_slot", layer.bias), ("beta_slot", norm.beta))
        }


def _array(variable: Any) -> np.ndarray:
    return np.asarray(variable.numpy())


def _norms(layer: Any) -> np.ndarray:
    weights = [_array(each) for each in layer.weights if "bias" not in each.name][-1]
    kind = type(layer).__name__
    if kind == "DepthwiseConv2D":
        weights = weights.reshape(*weights.shape[:2], -1)
    if kind == "Conv2DTranspose":
        weights = weights.swapaxes(-1, -2)
    return (weights.astype("float64") ** 2).reshape(-1, weights.shape[-1]).sum(axis=0)


def train(training: Training, folder: Path) -> None:
    """Run one training, and save the network, its arrays before and after, and the settings."""
    started = time.perf_counter()
    seed = sum(map(ord, training.name))
    keras: Any = import_module(training.library)
    keras.utils.set_random_seed(seed)
    network = Network(training)
    if training.before != "random":
        for _, norm in network.pairs:
            norm.momentum = 0.9 if training.before == "updated" else 1.0
        network.fit(replace(training, mode=training.before, steps=250))
        for _, norm in network.pairs:
            norm.momentum = 1.0
    before = network.arrays()
    loss = network.fit(training)
    after = network.arrays()
    keep = {
        f"{place}.{when}.{key}": array
        for when, pairs in (("before", before), ("after", after))
        for place, pair in enumerate(pairs)
        for key, array in pair.items()
    }
    np.savez(folder / f"{training.name}.npz", **keep)
    network.model.save(folder / f"{training.name}.keras")
    seconds = time.perf_counter() - started
    record = {**asdict(training), "truth": training.truth, "loss": loss, "seconds": seconds}
    (folder / f"{training.name}.json").write_text(json.dumps(record))
    keras.backend.clear_session()
    print(f"{training.name:50} loss {loss:8.4f}  {seconds:5.1f} s", flush=True)


def train_all(folder: Path, part: str) -> None:
    """Run the trainings that the folder does not have."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for training in in_order():
        if fnmatchcase(training.name, part) and not (folder / f"{training.name}.json").exists():
            train(training, folder)


SETTINGS = ("weights", "with slots", "names only")
"""The input of bnstat: a Keras file, one with the optimizer's variables, a checkpoint."""

OUTCOMES = ("right", "cannot tell", "wrong")


@dataclass(frozen=True)
class Result:
    """A finished training, and what bnstat found out about it in each of the settings."""

    training: Training
    evidence: dict[str, Evidence]

    def outcome(self, setting: str) -> str:
        training, found = self.training, self.evidence[setting].trained_with
        mode = {"batch": "batch-statistics", "stored": "stored-statistics"}[training.mode]
        if found == training.truth or (found == mode and training.steps):
            return "right"
        return "cannot tell" if found == "unknown" else "wrong"


def results(folder: Path) -> Iterator[Result]:
    """The finished trainings in a folder."""
    names = {field.name for field in fields(Training)}
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text())
        training = Training(**{name: record[name] for name in names if name in record})
        model = bnstat.load(folder / f"{training.name}.keras")
        weights = judge([]) if training.before == "updated" else training_evidence(model)
        proven = [bias.is_proven for bias in model.preceding_biases().values()]
        slots = pairs_of(folder, training, all(proven), slots=True) if proven else []
        blind = pairs_of(folder, training, False)
        found = (weights, judge(slots), judge(blind))
        yield Result(training, dict(zip(SETTINGS, found, strict=True)))


def pairs_of(folder: Path, training: Training, proven: bool, slots: bool = False) -> list[Pair]:
    """All pairs of a network, whatever lies between."""
    arrays = np.load(folder / f"{training.name}.npz")
    places = {name.partition(".")[0] for name in arrays}
    return [
        Pair(
            arrays[f"{place}.after.bias"].astype("float64"),
            arrays[f"{place}.after.beta"].astype("float64"),
            proven,
            _gradient(arrays, place, training) if slots else None,
        )
        for place in sorted(places)
        if {f"{place}.after.bias", f"{place}.after.beta"} <= set(arrays)
    ]


def _gradient(arrays: Any, place: str, training: Training) -> Gradient | None:
    found = [arrays.get(f"{place}.after.{name}") for name in ("bias_slot", "beta_slot", "gamma")]
    of_bias, of_beta, gamma = (None if each is None else each.astype("float64") for each in found)
    if of_bias is None or of_beta is None or training.optimizer in ("sgd", "adagrad"):
        return None
    return compare_gradients(of_bias, of_beta, training.optimizer != "momentum", gamma)


def table(folder: Path) -> None:
    """Print how often bnstat was right."""
    found = [each for each in results(folder) if each.training.before != "updated"]
    usable = [each for each in found if each.training.truth != "unknown"]
    print(f"{'':16}{'trainings':>10}" + "".join(f"{setting:>18}" for setting in SETTINGS))
    print(f"{'':26}" + len(SETTINGS) * f"{'r    c    w':>18}")
    for key in ("optimizer", "architecture", "mode", "variant"):
        print()
        for value in sorted({getattr(each.training, key) for each in usable}):
            _print_row(value, [each for each in usable if getattr(each.training, key) == value])
    print()
    _print_row("all", usable)
    _print_row("without a trace", [each for each in found if each not in usable])
    for each, setting in product(found, SETTINGS):
        if each.outcome(setting) == "wrong":
            print(f"wrong, {setting}: {each.training.name}: {each.evidence[setting].reason}")


def _print_row(name: str, chosen: list[Result]) -> None:
    cells = []
    for setting in SETTINGS:
        counts = Counter(each.outcome(setting) for each in chosen)
        cells.append("".join(f"{counts[outcome]:5}" for outcome in OUTCOMES).rjust(18))
    print(f"{name:16}{len(chosen):10}{''.join(cells)}")


def main() -> None:
    action, folder, *part = sys.argv[1:]
    if action == "train":
        train_all(Path(folder), part[0] if part else "*")
    else:
        table(Path(folder))


if __name__ == "__main__":
    main()
