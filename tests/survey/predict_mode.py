"""Measure how often unlabelled data shows the mode of a classifier's training.

    python -m tests.survey.predict_mode train FOLDER [PART]
    python -m tests.survey.predict_mode add FOLDER TRAININGS
    python -m tests.survey.predict_mode table FOLDER

`train` trains small classifiers whose moving statistics stay at mean 0 and variance 1: one half
normalizes with the statistics of the batch, the other half runs in inference mode. It then runs
each classifier in both modes on several kinds of unlabelled data, and writes the mutual
information of input and prediction to FOLDER. `add` does the same with the networks that
`train_both_modes train TRAININGS` has saved. `table` prints how often `bnstat drift` would be
right. PART is a glob over the names of the trainings.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from bnstat.estimate.modes import by_accuracy, by_information, information
from bnstat.estimate.passes import Accuracy
from tests.survey.networks import (
    DIGITS,
    GENERATORS,
    MODES,
    SIZE,
    TASKS,
    Network,
    Training,
    outcome,
    print_row,
    samples_of,
    unfinished,
)

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "conv": {"bias": False},
    "conv-bias": {"architecture": "conv"},
    "between": {"architecture": "conv", "activation": "before"},
    "dense": {},
    "separable": {"bias": False},
    "input-first": {"bias": False},
}
SAMPLES = (8, 32, 128, 512)
BATCH = 64


def trainings() -> list[Training]:
    """All trainings, in an order whose beginning is a fair sample of them all."""
    generator = random.Random(0)
    found = []
    for seed, task in product(range(9), [task for task in TASKS if task != "synthetic"]):
        kind = generator.choice(list(ARCHITECTURES))
        if task == "pixels" and kind == "dense":
            kind = "conv"
        optimizer = generator.choice(("adam", "momentum", "rmsprop"))
        steps = generator.choice((30, 200, 200, 600))
        settings = {"architecture": kind, **ARCHITECTURES[kind]}
        settings |= {"task": task, "steps": steps, "batch": BATCH, "rate": 1.5}
        found += [
            Training(
                optimizer=optimizer, mode=mode, variant=f"{task}-{kind}", seed=seed, **settings
            )
            for mode in MODES
        ]
    return found


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
                row[mode] = {"information": information(_probabilities(scores))}
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


def _probabilities(scores: np.ndarray) -> np.ndarray:
    """The probabilities [n, classes] of each sample or pixel."""
    rows = scores.astype("float64").reshape(-1, scores.shape[-1])
    if rows.shape[1] == 1:
        rows = np.concatenate([rows, np.zeros_like(rows)], 1)
    rows = np.exp(rows - rows.max(1, keepdims=True))
    return rows / rows.sum(1, keepdims=True)


def add(folder: Path, trained: Path, part: Sequence[str]) -> None:
    """Measure the classifiers of digits that `train_both_modes` saved."""
    usable = (
        training
        for training in map(Training.saved, sorted(trained.glob("*.json")))
        if (training.before, training.task, training.policy) == ("random", "digits", "float32")
        and training.steps > 1
        and training.architecture not in GENERATORS
    )
    for training, file in unfinished(usable, folder, part):
        models = import_module(training.library).models
        model = models.load_model(trained / f"{training.name}.keras", compile=False)
        measure(model, "digits", asdict(training), file)


WAYS = ("predictions", "accuracies")


def table(folder: Path) -> None:
    """Print how often the predictions, and the accuracies, show the right mode."""
    found = list(_outcomes(folder))
    print(f"{len({row['network'] for row in found})} networks, {len(found)} data sets\n")
    print(f"{'':26}{WAYS[0]:>18}{WAYS[1]:>18}\n{'':26}" + 2 * f"{'r    c    w':>18}")
    for key in ("variant", "samples", "task", "mode", "is_learned", "all"):
        for value in sorted({row[key] for row in found}):
            chosen = [row for row in found if row[key] == value]
            print_row(str(value), [[row[way] for row in chosen if way in row] for way in WAYS])
        print()
    for row in found:
        for way in WAYS:
            if row.get(way) == "wrong":
                print(f"wrong, {way}: {row['network']}, {row['variant']}, {row['samples']} samples")


def _outcomes(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text())
        truth = MODES[record["mode"]]
        is_learned = record["accuracy"][record["mode"]] > 0.5
        for row in record["rows"]:
            modes = row["stored"], row["batch"]
            outcomes = {
                "network": file.stem,
                "variant": row["variant"],
                "samples": min(each for each in SAMPLES if each >= row["samples"]),
                "task": record["task"],
                "mode": f"trained with {truth}",
                "is_learned": f"accuracy {'above' if is_learned else 'below'} 50 %",
                "all": "all",
            }
            figures = [mode["information"] for mode in modes]
            verdict, _ = by_information(*figures, row["samples"])
            outcomes["predictions"] = outcome(verdict, truth)
            if "right" in row["stored"]:
                rights = [mode["right"] for mode in modes]
                stored, own = (Accuracy(float(np.mean(each)), len(each)) for each in rights)
                verdict, _ = by_accuracy((stored, own), *figures)
                outcomes["accuracies"] = outcome(verdict, truth)
            yield outcomes


def main() -> None:
    action, folder, *rest = sys.argv[1:]
    if action == "train":
        for training, file in unfinished(trainings(), Path(folder), rest):
            network = Network(training)
            network.fit(training)
            measure(network.model, training.task, asdict(training), file)
    elif action == "add":
        add(Path(folder), Path(rest[0]), rest[1:])
    else:
        table(Path(folder))


if __name__ == "__main__":
    main()
