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
from dataclasses import asdict, replace
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import bnstat
from bnstat.checks.training_mode import training_evidence
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


def in_order() -> list[Training]:
    """The trainings in an order whose beginning is a fair sample of them all."""
    shuffled = list(trainings())
    random.Random(0).shuffle(shuffled)
    plain = iter([each for each in shuffled if each.variant == "plain" and not each.seed])
    others = [each for each in shuffled if each.variant != "plain" or each.seed]
    others.sort(key=lambda each: each.variant == "plain")  # These are the longest.
    return [each for pair in zip_longest(plain, others) for each in pair if each is not None]


FORMS = {"weights": ".keras", "with slots": ".h5", "checkpoint": ".index"}
"""What bnstat is given: a Keras file, one with the optimizer's variables, a checkpoint."""


def train(training: Training, file: Path) -> None:
    """Run one training, and save the network in each form, and the settings."""
    import tensorflow as tf

    network = Network(training)
    if training.before != "random":
        network.fit(replace(training, mode=training.before, steps=250))
    loss = network.fit(training)
    network.model.save(file.with_suffix(".keras"))
    tf.train.Checkpoint(model=network.model).write(str(file.with_suffix("")))
    network.model.compile(network.optimizer, "mse")
    network.model.save(file.with_suffix(".h5"))
    file.write_text(json.dumps({**asdict(training), "loss": loss}))


Result = tuple[Training, dict[str, tuple[str, str]]]
"""A finished training; form -> how good bnstat's verdict is, and its reason."""


def results(folder: Path) -> Iterator[Result]:
    for file in sorted(folder.glob("*.json")):
        training = Training.saved(file)
        mode = MODES[training.mode] if training.steps else "unknown"
        verdicts = {}
        for form, ending in FORMS.items():
            evidence = training_evidence(bnstat.load(f"{file.with_suffix('')}{ending}"))
            quality = outcome(evidence.trained_with, training.truth, mode)
            verdicts[form] = quality, evidence.reason
        yield training, verdicts


def table(folder: Path) -> None:
    found = list(results(folder))
    usable = [(training, verdicts) for training, verdicts in found if training.truth != "unknown"]
    print(f"{'':26}" + "".join(f"{form:>18}" for form in FORMS))
    print(f"{'':26}" + len(FORMS) * f"{'r    c    w':>18}")
    for key in ("optimizer", "architecture", "mode", "variant"):
        print()
        for value in sorted({getattr(training, key) for training, _ in usable}):
            _print_row(value, [each for each in usable if getattr(each[0], key) == value])
    print()
    _print_row("all", usable)
    _print_row("without a trace", [each for each in found if each not in usable])
    for training, verdicts in found:
        for form, (quality, reason) in verdicts.items():
            if quality == "wrong":
                print(f"wrong, {form}: {training.name}: {reason}")


def _print_row(name: str, chosen: list[Result]) -> None:
    columns = [[verdicts[form][0] for _, verdicts in chosen] for form in FORMS]
    print_row(f"{name} ({len(chosen)})", columns)


def main() -> None:
    action, folder, *part = sys.argv[1:]
    if action == "train":
        for training, file in unfinished(in_order(), Path(folder), part):
            train(training, file)
    else:
        table(Path(folder))


if __name__ == "__main__":
    main()
