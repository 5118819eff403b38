"""A cold `bnstat inspect` of EfficientNetB4 (96 layers) in each format, beside its own library."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tests.benchmarks.measure import Result, bnstat, build, compared, cpu, in_turn, peak, script

TITLE = "Inspect EfficientNetB4 in each format"

SHOW = """
import sys
ENDINGS = ("gamma", "beta", "moving_mean", "moving_variance", "running_mean", "running_var")
def show(name, value):
    print(name, value.mean(), value.std(), value.min(), value.max())
"""
H5PY = """
import h5py
def visit(name, value):
    if isinstance(value, h5py.Dataset) and name.endswith(ENDINGS):
        show(name, value[()])
h5py.File(sys.argv[1]).visititems(visit)
"""
H5PY_OF_KERAS_3 = """
import h5py, json, zipfile
archive = zipfile.ZipFile(sys.argv[1])
layers = json.loads(archive.read("config.json"))["config"]["layers"]
count = sum(layer["class_name"] == "BatchNormalization" for layer in layers)
groups = h5py.File(archive.open("model.weights.h5"))["layers"]
for number in range(count):
    suffix = f"_{number}" if number else ""
    for index in range(4):
        show(number, groups[f"batch_normalization{suffix}/vars/{index}"][()])
"""
ONNX = """
import onnx
from onnx import numpy_helper
graph = onnx.load(sys.argv[1]).graph
tensors = {tensor.name: tensor for tensor in graph.initializer}
for node in graph.node:
    if node.op_type == "BatchNormalization":
        for name in node.input[1:]:
            show(name, numpy_helper.to_array(tensors[name]))
"""
SAFETENSORS = """
from safetensors import safe_open
with safe_open(sys.argv[1], "np") as tensors:
    means = [name for name in tensors.keys() if name.endswith("running_mean")]
    for norm in [name.removesuffix("running_mean") for name in means]:
        for ending in ("weight", "bias", "running_mean", "running_var"):
            show(norm, tensors.get_tensor(norm + ending))
"""
TORCH = """
import torch
tensors = torch.load(sys.argv[1])
norms = [name.removesuffix("running_mean") for name in tensors if name.endswith("running_mean")]
for norm in norms:
    for ending in ("weight", "bias", "running_mean", "running_var"):
        show(norm, tensors[norm + ending].numpy())
"""
TENSORFLOW = """
import tensorflow as tf
reader = tf.train.load_checkpoint(sys.argv[1] + "/variables/variables")
for key in reader.get_variable_to_shape_map():
    if key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE").endswith(ENDINGS):
        show(key, reader.get_tensor(key))
"""
PEERS = {
    "model.h5": ("h5py", H5PY, 1.2),
    "model.keras": ("h5py", H5PY_OF_KERAS_3, 1.2),
    "model.onnx": ("onnx", ONNX, 1.0),
    "model.safetensors": ("safetensors", SAFETENSORS, 1.0),
    "model.pth": ("torch", TORCH, 1.0),
    "saved_model": ("tensorflow", TENSORFLOW, 1.0),
}


def measure(data: Path, runs: int) -> Iterator[Result]:
    build(data, "efficientnet")
    for name, (library, code, bound) in PEERS.items():
        path = data / "efficientnet" / name
        if find_spec(library) is None or not path.exists():
            print(f"{name}: left out, because {library} is not installed", file=sys.stderr)
            continue
        commands = {"ours": bnstat("inspect", path), "peer": script(SHOW + code, path)}
        taken = in_turn(commands, 3 if library in ("torch", "tensorflow") else runs)
        ours, theirs = taken["ours"], taken["peer"]
        yield compared(f"{name}, CPU", library, bound, cpu(ours), cpu(theirs))
        memory = [peak(ours)], [peak(theirs)]
        yield compared(f"{name}, peak memory", library, bound, *memory, "MB")
