"""Writes the inputs of the benchmarks: `python -m tests.benchmarks.inputs NAME FOLDER`.

TensorFlow writes what it can write in a minute; the largest are written byte by byte in its
format, and read by it as well.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tests.builders.tables import assemble, block, entry, header, masked, on_disk, varint

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
FLOAT, STRING = 1, 7
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def mobilenet(folder: Path) -> None:
    """MobileNetV2, as a TensorFlow 2 checkpoint."""
    import keras
    import tensorflow as tf

    model = keras.applications.MobileNetV2(weights=None)
    tf.train.Checkpoint(model=model).write(str(folder / "model"))


def efficientnet(folder: Path) -> None:
    """EfficientNetB4 with statistics like those of a trained network, in every format.

    PyTorch's file is written only if torch is installed.
    """
    import keras
    import tensorflow as tf
    from safetensors.numpy import save_file

    model = keras.applications.EfficientNetB4(weights=None)
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            count = layer.gamma.shape[0]
            layer.set_weights(
                [
                    random.normal(1, 0.2, count),
                    random.normal(0, 0.3, count),
                    random.normal(0, 1, count),
                    random.gamma(2, 0.5, count),
                ]
            )
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    model.save_weights(folder / "model.weights.h5")
    model.export(folder / "saved_model", verbose=False)
    tf.train.Checkpoint(model=model).write(str(folder / "model"))
    arrays = {variable.path: np.asarray(variable) for variable in model.variables}
    np.savez(folder / "model.npz", **arrays)
    _onnx(arrays, folder / "model.onnx")
    _tfjs(arrays, folder / "tfjs")
    names = {"moving_mean": "running_mean", "moving_variance": "running_var"}
    names |= {"gamma": "weight", "beta": "bias"}
    ported = {}
    for path, array in arrays.items():
        layer, _, label = path.rpartition("/")
        ported[f"{layer.replace('/', '.')}.{names.get(label, label)}"] = array
    save_file(ported, folder / "model.safetensors")
    if find_spec("torch"):
        import torch

        tensors = {name: torch.from_numpy(array.copy()) for name, array in ported.items()}
        torch.save(tensors, folder / "model.pth")


def _onnx(arrays: dict[str, np.ndarray], path: Path) -> None:
    """The norms one after the other, with all of the network's arrays beside them."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = []
    for name in [key.removesuffix("/gamma") for key in arrays if key.endswith("/gamma")]:
        inputs = [f"{name}/before", *(f"{name}/{role}" for role in ROLES)]
        nodes.append(helper.make_node("BatchNormalization", inputs, [f"{name}/after"], name=name))
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [None, 3, 224, 224])
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "network", [images], [images], initializers)
    onnx.save(helper.make_model(graph), path)


def _tfjs(arrays: dict[str, np.ndarray], folder: Path) -> None:
    """A layers model in shards of 4 MiB, without its topology."""
    folder.mkdir()
    data = b"".join(array.tobytes() for array in arrays.values())
    shards = [data[at : at + (4 << 20)] for at in range(0, len(data), 4 << 20)]
    paths = [f"group1-shard{number}of{len(shards)}.bin" for number in range(1, len(shards) + 1)]
    for path, shard in zip(paths, shards, strict=True):
        (folder / path).write_bytes(shard)
    weights = [
        {"name": name, "shape": list(array.shape), "dtype": "float32"}
        for name, array in arrays.items()
    ]
    manifest = [{"paths": paths, "weights": weights}]
    index = {"format": "layers-model", "modelTopology": {}, "weightsManifest": manifest}
    (folder / "model.json").write_text(json.dumps(index))


def names_100k(folder: Path) -> None:
    """100,000 variables and 50 layers, in a checkpoint by names."""
    import tensorflow as tf

    tensors = {f"net/block_{number // 100}/kernel_{number}": [0.0] for number in range(100_000)}
    for number in range(50):
        tensors |= {f"net/bn_{number}/{role}": np.ones(16, "f4") for role in ROLES}
    tf.raw_ops.SaveV2(
        prefix=str(folder / "model"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(tensor) for tensor in tensors.values()],
    )


def objects_100k(folder: Path) -> None:
    """100,000 variables and 50 layers, in a checkpoint by objects."""
    import tensorflow as tf

    root = tf.Module()
    root.blocks = []
    for number in range(25_000):
        module = tf.Module()
        for label in ("kernel", "bias", "scale", "offset"):
            setattr(module, label, tf.Variable([0.0], name=f"block_{number}/{label}"))
        root.blocks.append(module)
    root.norms = []
    for number in range(50):
        module = tf.Module()
        for role in ROLES:
            setattr(module, role, tf.Variable(tf.ones(16), name=f"bn_{number}/{role}"))
        root.norms.append(module)
    tf.train.Checkpoint(root=root).write(str(folder / "model"))


def sparse_10mb(folder: Path) -> None:
    """One layer behind a kernel of 10 MB."""
    _behind(folder, 10 << 20)


def sparse_10gb(folder: Path) -> None:
    """One layer behind a kernel of 10 GB, all of it a hole in the file."""
    _behind(folder, 10 << 30)


def kernels_1gb(folder: Path) -> None:
    """50 layers, each after a kernel of 20 MB."""
    kernel = RANDOM.random((512, 10_240), np.float32)
    _write(
        folder,
        (
            (f"net/{number:02d}/{name}", array)
            for number in range(50)
            for name, array in (
                ("conv/kernel", kernel),
                *((f"bn/{role}", _values(512)) for role in ROLES),
            )
        ),
    )


def objects_1m(folder: Path) -> None:
    """1,000,000 variables and 50 layers, in a checkpoint by objects."""
    names = [f"kernel_{number:07d}" for number in range(1_000_000)]
    graph = _ObjectGraph()
    tensors: list[tuple[str, np.ndarray]] = []
    for name in names:
        tensors.append((graph.variable(0, name, name), np.zeros(1, "f4")))
    for number in range(50):
        layer = graph.child(0, f"bn_{number:02d}")
        for role in ROLES:
            key = graph.variable(layer, role, f"bn_{number:02d}/{role}")
            tensors.append((key, _values(16)))
    _write(folder, tensors, graph.message())


def layers_10k(folder: Path) -> None:
    """10,000 layers of 64 channels."""
    _write(
        folder,
        ((f"net/bn_{number}/{role}", _values(64)) for number in range(10_000) for role in ROLES),
    )


def channels_10m(folder: Path) -> None:
    """One layer of 10,000,000 channels."""
    _write(folder, ((f"net/bn/{role}", _values(10_000_000)) for role in ROLES))


def values_10m(folder: Path) -> None:
    """One layer of 2,500,000 channels, and the same 10,000,000 numbers as four `.npy` files."""
    arrays = {role: _values(2_500_000) for role in ROLES}
    _write(folder, ((f"net/bn/{role}", array) for role, array in arrays.items()))
    for role, array in arrays.items():
        np.save(folder / f"{role}.npy", array)


def history_200(folder: Path) -> None:
    """200 checkpoints of 50 layers of 256 channels, whose values move a little each time."""
    for step in range(200):
        _write(
            folder,
            (
                (f"net/bn_{number:02d}/{role}", _values(256) + np.float32(0.01 * step))
                for number in range(50)
                for role in ROLES
            ),
            prefix=f"model-{step * 100}",
        )


def mobilenet_96(folder: Path) -> None:
    """MobileNetV2 for small images, as a SavedModel."""
    _application("MobileNetV2", 96, folder)


def resnet_128(folder: Path) -> None:
    """ResNet50 for small images, as a SavedModel."""
    _application("ResNet50", 128, folder)


def _application(name: str, size: int, folder: Path) -> None:
    import tensorflow as tf
    import tf_keras

    model = getattr(tf_keras.applications, name)(weights=None, input_shape=(size, size, 3))
    tf.saved_model.save(model, str(folder))


RANDOM = np.random.default_rng(0)


def _values(channels: int) -> np.ndarray:
    return RANDOM.random(channels, dtype=np.float32) + np.float32(0.1)


def _behind(folder: Path, size: int) -> None:
    tensors = [(f"net/bn/{role}", _values(64)) for role in ROLES]
    with open(folder / "model.data-00000-of-00001", "wb") as data:
        data.truncate(size)
        data.seek(size)
        entries = [_append(data, name, values) for name, values in tensors]
    entries.append(("net/kernel", entry(shape=[size // 4], size=size)))
    _index(folder / "model.index", entries)


def _write(
    folder: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    graph: bytes | None = None,
    *,
    prefix: str = "model",
    shards: int = 1,
) -> None:
    """Write a checkpoint; with several shards, one tensor after the other goes to each in turn."""
    entries = []
    paths = [folder / f"{prefix}.data-{shard:05d}-of-{shards:05d}" for shard in range(shards)]
    if shards == 1:
        with open(paths[0], "wb") as data:
            entries = [_append(data, key, values) for key, values in tensors]
            if graph is not None:
                entries.append(_append_string(data, "_CHECKPOINTABLE_OBJECT_GRAPH", graph))
    else:
        for number, (key, values) in enumerate(tensors):
            with open(paths[number % shards], "ab") as data:
                entries.append(_append(data, key, values, number % shards))
    _index(folder / f"{prefix}.index", entries, shards)


def _append(data: BinaryIO, key: str, values: np.ndarray, shard: int = 0) -> tuple[str, bytes]:
    offset = data.tell()
    stored = values.tobytes()
    data.write(stored)
    return key, entry(stored, dtype=FLOAT, shape=values.shape, shard=shard, offset=offset)


def _append_string(data: BinaryIO, key: str, text: bytes) -> tuple[str, bytes]:
    """A string tensor of one element: its length, a checksum of that, its bytes."""
    offset = data.tell()
    packed = len(text).to_bytes(4, "little")
    checksum = masked(packed).to_bytes(4, "little")
    stored = varint(len(text)) + checksum + text
    data.write(stored)
    crc = masked(packed + checksum + text)
    return key, entry(dtype=STRING, offset=offset, size=len(stored), crc=crc)


def _index(path: Path, entries: Iterable[tuple[str, bytes]], shards: int = 1) -> None:
    stored = sorted([(b"", header(shards)), *((key.encode(), found) for key, found in entries)])
    path.write_bytes(assemble(_blocks(stored)))


def _blocks(entries: list[tuple[bytes, bytes]], size: int = 2000) -> Iterator[tuple[bytes, bytes]]:
    for start in range(0, len(entries), size):
        chunk = entries[start : start + size]
        yield chunk[-1][0], on_disk(block(chunk))


class _ObjectGraph:
    """A TrackableObjectGraph in the making; node 0 is the root."""

    def __init__(self) -> None:
        self._nodes = [bytearray()]
        self._paths = [""]

    def child(self, parent: int, label: str) -> int:
        node = len(self._nodes)
        self._nodes.append(bytearray())
        self._paths.append(f"{self._paths[parent]}{label}/")
        self._nodes[parent] += _field(1, b"\x08" + varint(node) + _field(2, label.encode()))
        return node

    def variable(self, parent: int, label: str, full_name: str) -> str:
        node = self.child(parent, label)
        key = self._paths[node].removesuffix("/") + SUFFIX
        texts = ("VARIABLE_VALUE", full_name, key)
        attribute = b"".join(_field(number, text.encode()) for number, text in enumerate(texts, 1))
        self._nodes[node] += _field(2, attribute)
        return key

    def message(self) -> bytes:
        return b"".join(_field(1, bytes(node)) for node in self._nodes)


def _field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
