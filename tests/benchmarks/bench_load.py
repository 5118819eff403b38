"""What bnstat costs on models far larger than usual, beside TensorFlow at the same job.

    python tests/benchmarks/bench_load.py [--data FOLDER] [--runs N] [NAME ...]

- names_1m, objects_1m: 1,000,000 variables, by names and by objects;
- layers_10k: 10,000 layers;
- channels_10m: a layer of 10,000,000 channels, shown and exported;
- sparse_20gb: a data file of 20 GB;
- shards_1000: 1,000 shards;
- checkpoints_500: a folder of 500 checkpoints.

NAMEs choose some of them. Whole processes, run in turn; figures are medians. FOLDER keeps the
inputs for the next time: 3 GB with what is exported, and 20 GB more where holes take room.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from measure import bnstat, build, in_turn, table, tensorflow

Commands = Mapping[str, Sequence[str]]

_LAYER = """
import json, sys
import numpy as np
import tensorflow as tf
reader = tf.train.load_checkpoint(sys.argv[1])
arrays = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
"""
_AS_JSON = """
with open(sys.argv[2], "w") as file:
    json.dump({key: array.tolist() for key, array in arrays.items()}, file)
"""
_AS_NPZ = "np.savez(sys.argv[2], **arrays)"

_HISTORY = """
import sys
import tensorflow as tf
for prefix in tf.train.get_checkpoint_state(sys.argv[1]).all_model_checkpoint_paths:
    reader = tf.train.load_checkpoint(prefix)
    for key in sorted(reader.get_variable_to_shape_map()):
        if key.endswith(("/gamma", "/beta", "/moving_mean", "/moving_variance")):
            value = reader.get_tensor(key)
            print(prefix, key, value.mean(), value.std())
"""


def inspect(model: Path) -> Commands:
    """Show the statistics."""
    return {"bnstat inspect": bnstat("inspect", model), "TensorFlow": tensorflow(model)}


def wide(model: Path) -> Commands:
    """Show the statistics, and write all values."""
    made = model.parent

    def peer(code: str, name: str) -> tuple[str, ...]:
        return (sys.executable, "-c", _LAYER + code, str(model), str(made / name))

    return {
        **inspect(model),
        "bnstat export --npz": bnstat("export", model, "--npz", "-o", made / "ours.npz"),
        "TensorFlow, numpy.savez": peer(_AS_NPZ, "theirs.npz"),
        "bnstat export --json": bnstat("export", model, "--json", "-o", made / "ours.json"),
        "TensorFlow, json.dump": peer(_AS_JSON, "theirs.json"),
    }


def folder(model: Path) -> Commands:
    """Show the newest checkpoint, and how all of them moved."""
    run = model.parent
    return {
        "bnstat inspect, the newest": bnstat("inspect", run),
        "TensorFlow, the newest": tensorflow(run),
        "bnstat history, all": bnstat("history", run),
        "TensorFlow, all": (sys.executable, "-c", _HISTORY, str(run)),
    }


JOBS: Mapping[str, Callable[[Path], Commands]] = {
    "names_1m": inspect,
    "objects_1m": inspect,
    "layers_10k": inspect,
    "channels_10m": wide,
    "sparse_20gb": inspect,
    "shards_1000": inspect,
    "checkpoints_500": folder,
}


def main() -> None:
    """Write the inputs, measure, print."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--data", type=Path, help="where inputs are kept; default: nowhere")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("names", nargs="*", metavar="NAME", help=", ".join(JOBS))
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as nowhere:
        data = given.data or Path(nowhere)
        for name in given.names or JOBS:
            build(data, name)
            print(name)
            table(in_turn(JOBS[name](data / name / "model"), given.runs))


if __name__ == "__main__":
    main()
