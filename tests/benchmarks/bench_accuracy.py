"""Accuracy of a network before and after `bnstat recalibrate`, whatever it was saved as.

    python tests/benchmarks/bench_accuracy.py

The demo network, and one trained on the same digits by tf-keras, by Keras and in TensorFlow 1's
way: their moving statistics were never updated. Each is mended with the training images in every
form that it can be saved in; the accuracy is that on the training images.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path

from measure import ROOT

sys.path.insert(0, str(ROOT))

import bnstat
from tests.builders.digits import DATA, TRAIN, keras_network, save_graph_mode, save_keras


def main() -> None:
    """Train, mend, print a line for each form."""
    mended("demo network", DATA / "digits_no_updates/saved_model")
    for by in ("tf_keras", "keras", "graph_mode"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if by == "graph_mode":
                save_graph_mode(folder)
                forms = ["model-150", "frozen.pb"]
            else:
                save_keras(keras_network(import_module(by)), folder)
                forms = sorted(path.name for path in folder.iterdir())
            for form in forms:
                mended(f"{by} {form}", folder / form)


def mended(what: str, path: Path) -> None:
    """Print the accuracy before and after."""
    result = bnstat.recalibrate(path, TRAIN, labels="labels")
    assert result.accuracy is not None
    before, after = result.accuracy
    print(f"{what:24} {before:7.1%} {after:7.1%}", flush=True)


if __name__ == "__main__":
    main()
