"""What `bnstat inspect` costs, cold, for MobileNetV2 in each format, against its checkpoint.

    python tests/benchmarks/bench_ports.py [--data FOLDER] [--runs N]

Each is a whole process. The formats that networks are ported to are to cost at most 1.3 times the
CPU time of TensorFlow's checkpoint; those of TensorFlow and Keras are there for comparison. The
inputs are written on the first run, by their own libraries (torch, onnx and safetensors are
needed for that); FOLDER keeps them for the next. The exit code is 1 if the budget is not kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

from measure import Budget, bnstat, build, in_turn, ratio, started, table, verdict

CHECKPOINT = "model.index"
OTHERS = ("saved_model", "model.h5", "model.keras", "model.weights.h5")
PORTS = ("model.onnx", "model.pth", "model.safetensors", "tfjs", "model.npz")
MOST = 1.3


def measure(folder: Path, times: int) -> int:
    """Run all, print the table and the verdict; gives the exit code."""
    build(folder, "ports")
    names = (CHECKPOINT, *OTHERS, *PORTS)
    runs = in_turn({name: bnstat("inspect", folder / "ports" / name) for name in names}, times)
    table(runs)
    return verdict(
        [
            Budget(
                f"{name}, CPU of the checkpoint's",
                ratio(runs[name], runs[CHECKPOINT], lambda run: run.cpu),
                MOST,
                "x",
            )
            for name in PORTS
        ]
    )


if __name__ == "__main__":
    sys.exit(started(__doc__, measure))
