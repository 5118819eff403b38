"""Train small networks in both modes, and measure what the mode leaves in the weights.

    python -m tests.survey.train_both_modes train FOLDER [PART]
    python -m tests.survey.train_both_modes table FOLDER

`train` runs some hundreds of trainings whose moving statistics stay at mean 0 and variance 1: in
one half the layers normalize with the statistics of the batch, in the other half they run in
inference mode. It saves each trained network, and skips the trainings that FOLDER already has.
`table` asks bnstat how each network was trained, and prints how often the answer was right, by
optimizer and by architecture. PART is a glob over the names of the trainings.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

import bnstat
from bnstat.checks.training_mode import (
    Evidence,
    Gradient,
    Pair,
    compare_gradients,
    judge,
    training_evidence,
)
from tests.survey.networks import (
    MODES,
    OPTIMIZERS,
    Network,
    Training,
    outcome,
    print_row,
    unfinished,
)

ARCHITECTURES = (
    *("conv", "deep", "wide", "dense", "depthwise", "separable"),
    *("transposed", "generator", "residual"),
)


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
        "constant-bias": {"bias_start": "tenth"},
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
        "synthetic": {"task": "synthetic"},
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


def train(training: Training, file: Path) -> None:
    """Run one training, and save the network, its arrays, and the settings."""
    network = Network(training)
    if training.before != "random":
        for _, norm in network.pairs:
            norm.momentum = 0.9 if training.before == "updated" else 1.0
        network.fit(replace(training, mode=training.before, steps=250))
        for _, norm in network.pairs:
            norm.momentum = 1.0
    loss = network.fit(training)
    np.savez(file.with_suffix(".npz"), **arrays_of(network))
    network.model.save(file.with_suffix(".keras"))
    file.write_text(json.dumps({**asdict(training), "loss": loss}))


def arrays_of(network: Network) -> dict[str, np.ndarray]:
    """The bias and beta of each pair, and what the optimizer keeps of their gradients."""
    if not network.training.bias or not network.training.center:
        return {}
    variables = network.optimizer.variables
    held = list(variables() if callable(variables) else variables)
    held = [each for each in held if tuple(each.shape)]
    count = len(held) // len(network.trained)
    places = {id(each): place for place, each in enumerate(network.trained)}
    # The last one that Adam and its kin keep is the average of the squared gradients.
    slot = 1 if count > 1 else 0
    kept = {}
    for number, (layer, norm) in enumerate(network.pairs):
        pair = {"bias": layer.bias, "beta": norm.beta}
        if network.training.scale:
            pair["gamma"] = norm.gamma
        if count and id(layer.bias) in places:
            pair["bias_slot"] = held[places[id(layer.bias)] * count + slot]
            pair["beta_slot"] = held[places[id(norm.beta)] * count + slot]
        kept |= {f"{number}.{name}": np.asarray(each.numpy()) for name, each in pair.items()}
    return kept


SETTINGS = ("weights", "with slots", "names only")
"""The input of bnstat: a Keras file, one with the optimizer's variables, a checkpoint."""


@dataclass(frozen=True)
class Result:
    """A finished training, and what bnstat found out about it in each of the settings."""

    training: Training
    evidence: dict[str, Evidence]

    def outcome(self, setting: str) -> str:
        truths = [
            self.training.truth,
            *([MODES[self.training.mode]] if self.training.steps else []),
        ]
        return outcome(self.evidence[setting].trained_with, *truths)


def results(folder: Path) -> Iterator[Result]:
    """The finished trainings in a folder."""
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text())
        del record["loss"]
        training = Training(**record)
        model = bnstat.load(file.with_suffix(".keras"))
        weights = judge([]) if training.before == "updated" else training_evidence(model)
        proven = [bias.is_proven for bias in model.preceding_biases().values()]
        slots = pairs_of(file, training, all(proven), slots=True) if proven else []
        blind = pairs_of(file, training, False)
        found = (weights, judge(slots), judge(blind))
        yield Result(training, dict(zip(SETTINGS, found, strict=True)))


def pairs_of(file: Path, training: Training, proven: bool, slots: bool = False) -> list[Pair]:
    """All pairs of a network, whatever lies between."""
    with np.load(file.with_suffix(".npz")) as stored:
        arrays = {name: array.astype("float64") for name, array in stored.items()}
    return [
        Pair(
            bias,
            arrays[name.replace("bias", "beta")],
            proven,
            _gradient(arrays, name.partition(".")[0], training) if slots else None,
        )
        for name, bias in arrays.items()
        if name.endswith(".bias")
    ]


def _gradient(arrays: Any, place: str, training: Training) -> Gradient | None:
    names = ("bias_slot", "beta_slot", "gamma")
    of_bias, of_beta, gamma = (arrays.get(f"{place}.{name}") for name in names)
    if of_bias is None or of_beta is None or training.optimizer in ("sgd", "adagrad"):
        return None
    return compare_gradients(of_bias, of_beta, training.optimizer != "momentum", gamma)


def table(folder: Path) -> None:
    """Print how often bnstat was right."""
    found = [each for each in results(folder) if each.training.before != "updated"]
    usable = [each for each in found if each.training.truth != "unknown"]
    print(f"{'':26}" + "".join(f"{setting:>18}" for setting in SETTINGS))
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
    columns = [[each.outcome(setting) for each in chosen] for setting in SETTINGS]
    print_row(f"{name} ({len(chosen)})", columns)


def main() -> None:
    action, folder, *part = sys.argv[1:]
    if action == "train":
        for training, file in unfinished(in_order(), Path(folder), part[0] if part else "*"):
            train(training, file)
    else:
        table(Path(folder))


if __name__ == "__main__":
    main()
