"""A cold `bnstat inspect` of checkpoints, usual and huge, and the bytes that it reads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.measure import (
    IMPORTS,
    Result,
    bnstat,
    build,
    compared,
    cpu,
    in_turn,
    peak,
    printed,
    script,
    wall,
)

TITLE = "Inspect a checkpoint"

TENSORFLOW = """
import sys
import tensorflow as tf
reader = tf.train.load_checkpoint(sys.argv[1])
for key in sorted(reader.get_variable_to_shape_map()):
    name = key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
    if name.endswith(("/gamma", "/beta", "/moving_mean", "/moving_variance")):
        value = reader.get_tensor(key)
        print(name, value.mean(), value.std(), value.min(), value.max())
"""
READ = """
import sys
import bnstat

def counted():
    with open("/proc/self/io") as accounts:
        return int(accounts.readline().split()[1])

def everything():
    return sum(
        variable.read().nbytes
        for layer in bnstat.load(sys.argv[1])
        for variable in layer.variables.values()
    )

everything()
start = counted()
overhead = counted() - start
start = counted()
tensors = everything()
print([counted() - start - overhead, tensors])
"""
END_OF_FILE = 16 << 10
"""Bytes at the end of an index that are read to identify a file."""


def measure(data: Path, runs: int) -> Iterator[Result]:
    build(data, "mobilenet", "names_100k", "objects_100k", "objects_1m")
    model = data / "mobilenet/model"
    commands = {
        "imports": IMPORTS,
        "numpy": script("import numpy"),
        "bnstat": bnstat("inspect", model),
    }
    taken = in_turn(commands, 3 * runs)
    ours = cpu(taken["bnstat"])
    yield compared("MobileNetV2, CPU", "imports", 1.05, ours, cpu(taken["imports"]))
    yield compared("MobileNetV2, CPU", "`import numpy`", 1.3, ours, cpu(taken["numpy"]))
    yield Result("MobileNetV2, peak memory", peak(taken["bnstat"]), "MB", 40)
    tensorflow = in_turn({"ours": commands["bnstat"], "peer": script(TENSORFLOW, model)}, 3)
    yield compared(
        "MobileNetV2", "TensorFlow", 0.1, wall(tensorflow["ours"]), wall(tensorflow["peer"])
    )
    for name, what, bound in (
        ("names_100k", "100,000 variables by name", 2.7),
        ("objects_100k", "100,000 variables by object", 2.7),
        ("objects_1m", "1,000,000 variables by object", 18),
    ):
        commands = {"imports": IMPORTS, "ours": bnstat("inspect", data / name / "model")}
        taken = in_turn(commands, 3)
        yield compared(f"{what}, CPU", "imports", bound, cpu(taken["ours"]), cpu(taken["imports"]))
    yield Result("1,000,000 variables by object, peak memory", peak(taken["ours"]), "MB", 400)
    if sys.platform == "linux":
        yield from bytes_read(data)


def bytes_read(data: Path) -> Iterator[Result]:
    """Yield what is read beside the index and the tensors, of a small and of a huge checkpoint."""
    build(data, "sparse_10mb", "sparse_10gb")
    beside = {}
    for name in ("mobilenet", "sparse_10mb", "sparse_10gb"):
        model = data / name / "model"
        read, tensors = printed(script(READ, model))
        index = model.with_suffix(".index").stat().st_size
        beside[name] = read - index - tensors - object_graph_size(model)
    yield Result(
        "bytes read beside the index and the batch-norm tensors, MobileNetV2",
        beside["mobilenet"],
        "bytes",
        END_OF_FILE,
    )
    more = beside["sparse_10gb"] - beside["sparse_10mb"]
    yield Result("bytes more of a checkpoint of 10 GB than of one of 10 MB", more, "bytes", 0)


def object_graph_size(model: Path) -> int:
    """Return the size of the string tensor that stores a checkpoint's object graph."""
    from bnstat.formats.tensorflow.bundle import Bundle
    from bnstat.formats.tensorflow.object_graph import KEY
    from bnstat.storage.local import LocalFolder

    bundle = Bundle(LocalFolder(str(model.parent)), model.name, data=True)
    return bundle.entry(KEY).size if KEY in bundle.variables() else 0
