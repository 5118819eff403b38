"""Writes the inputs of the benchmarks: `python -m tests.benchmarks.inputs NAME FOLDER`.

TensorFlow writes what it can write in a minute; the largest are written byte by byte in its
format, and read by it as well.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tests.builders.tables import append, append_string, entry, header, table
from tests.fuzz.handmade import OBJECT_GRAPH, ROLES, node
from tests.fuzz.ports import tfjs_model
from tests.fuzz.wire import Field, encode


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
            values = [random.normal(*each, count) for each in ((1, 0.2), (0, 0.3), (0, 1))]
            layer.set_weights([*values, random.gamma(2, 0.5, count)])
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    model.save_weights(folder / "model.weights.h5")
    model.export(folder / "saved_model", verbose=False)
    tf.train.Checkpoint(model=model).write(str(folder / "model"))
    arrays = {variable.path: np.asarray(variable) for variable in model.variables}
    np.savez(folder / "model.npz", **arrays)
    _onnx(arrays, folder / "model.onnx")
    (folder / "tfjs").mkdir()
    for name, content in tfjs_model({}, arrays, 4 << 20).items():
        (folder / "tfjs" / name).write_bytes(content)
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


def names_100k(folder: Path) -> None:
    """100,000 variables and 50 layers, in a checkpoint by names."""
    kernels = (f"net/block_{number // 100}/kernel_{number}" for number in range(100_000))
    norms = (f"net/bn_{number}/{role}" for number in range(50) for role in ROLES)
    tensors = [(name, np.zeros(1, "f4")) for name in kernels]
    _write(folder, tensors + [(name, np.ones(16, "f4")) for name in norms])


def objects_100k(folder: Path) -> None:
    """100,000 variables and 50 layers, in a checkpoint by objects."""
    labels = ("kernel", "bias", "scale", "offset")
    _write_objects(folder, {f"block_{number}": labels for number in range(25_000)})


def objects_1m(folder: Path) -> None:
    """1,000,000 variables and 50 layers, in a checkpoint by objects."""
    _write_objects(folder, {"kernels": [f"kernel_{number:07d}" for number in range(1_000_000)]})


def sparse_10mb(folder: Path, size: int = 10 << 20) -> None:
    """One layer behind a kernel of some bytes, all of it a hole in the file."""
    with open(folder / "model.data-00000-of-00001", "wb") as data:
        data.truncate(size)
        data.seek(size)
        entries = {f"net/bn/{role}".encode(): append(data, _values(64)) for role in ROLES}
    entries[b"net/kernel"] = entry(shape=[size // 4], size=size)
    (folder / "model.index").write_bytes(table({b"": header(), **entries}))


def sparse_10gb(folder: Path) -> None:
    sparse_10mb(folder, 10 << 30)


def kernels_1gb(folder: Path) -> None:
    """50 layers, each after a kernel of 20 MB."""
    kernel = RANDOM.random((512, 10_240), np.float32)
    tensors: dict[str, np.ndarray] = {}
    for number in range(50):
        tensors[f"net/{number:02d}/conv/kernel"] = kernel
        tensors |= {f"net/{number:02d}/bn/{role}": _values(512) for role in ROLES}
    _write(folder, tensors.items())


def layers_10k(folder: Path) -> None:
    """10,000 layers of 64 channels."""
    names = (f"net/bn_{number}/{role}" for number in range(10_000) for role in ROLES)
    _write(folder, ((name, _values(64)) for name in names))


def values_10m(folder: Path) -> None:
    """One layer of 2,500,000 channels, and the same 10,000,000 numbers as four `.npy` files."""
    arrays = {role: _values(2_500_000) for role in ROLES}
    _write(folder, ((f"net/bn/{role}", array) for role, array in arrays.items()))
    for role, array in arrays.items():
        np.save(folder / f"{role}.npy", array)


def history_200(folder: Path) -> None:
    """200 checkpoints of 50 layers of 256 channels, whose values move a little each time."""
    names = [f"net/bn_{number:02d}/{role}" for number in range(50) for role in ROLES]
    for step in range(200):
        tensors = ((name, _values(256) + np.float32(0.01 * step)) for name in names)
        _write(folder, tensors, prefix=f"model-{step * 100}")


def mobilenet_96(folder: Path, name: str = "MobileNetV2", size: int = 96) -> None:
    """A network for small images, as a SavedModel."""
    import tensorflow as tf
    import tf_keras

    model = getattr(tf_keras.applications, name)(weights=None, input_shape=(size, size, 3))
    tf.saved_model.save(model, str(folder))


def resnet_128(folder: Path) -> None:
    mobilenet_96(folder, "ResNet50", 128)


Tensors = Iterable[tuple[str, np.ndarray]]
RANDOM = np.random.default_rng(0)


def _values(channels: int) -> np.ndarray:
    return RANDOM.random(channels, dtype=np.float32) + np.float32(0.1)


def _write(folder: Path, tensors: Tensors, graph: bytes = b"", prefix: str = "model") -> None:
    entries = {b"": header()}
    with open(folder / f"{prefix}.data-00000-of-00001", "wb") as data:
        entries |= {key.encode(): append(data, values) for key, values in tensors}
        if graph:
            entries[OBJECT_GRAPH] = append_string(data, graph)
    (folder / f"{prefix}.index").write_bytes(table(entries, per_block=2000))


def _write_objects(folder: Path, groups: dict[str, Sequence[str]]) -> None:
    """Write variables in groups, and 50 layers, as a checkpoint by objects."""
    nodes: list[Field] = []
    tensors: list[tuple[str, np.ndarray]] = []
    children: dict[str, int] = {}
    layers = {f"bn_{number:02d}": ROLES for number in range(50)}
    for group, labels in (groups | layers).items():
        members = {}
        for label in labels:
            name = f"{group}/{label}"
            key = f"{name}/.ATTRIBUTES/VARIABLE_VALUE"
            tensors.append((key, _values(16) if group in layers else np.zeros(1, "f4")))
            nodes.append(node({}, key, name))
            members[label] = len(nodes)  # The number of the root is 0.
        nodes.append(node(members))
        children[group] = len(nodes)
    _write(folder, tensors, encode([node(children), *nodes]))


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
