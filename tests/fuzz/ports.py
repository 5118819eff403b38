"""Small models in the formats of other frameworks, written by hand."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import json_format
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from bnstat.formats.protobuf.protos import message_class
from tests.fuzz.handmade import npz_files, values, zipped

Pack = Callable[[np.ndarray], tuple[bytes, dict[str, Any]]]
NAMES = ("weight", "bias", "running_mean", "running_var")


def layer(name: str) -> dict[str, np.ndarray]:
    arrays = zip(NAMES, values().values(), strict=True)
    return {f"{name}.{role}": array for role, array in arrays}


def onnx_norm(x: str, prefix: str, y: str) -> Any:
    inputs = [x, *(f"{prefix}.{name}" for name in NAMES)]
    return helper.make_node("BatchNormalization", inputs, [y], epsilon=1e-3)


def onnx_tensors(prefix: str) -> list[Any]:
    return [numpy_helper.from_array(array, name) for name, array in layer(prefix).items()]


def onnx_model(nodes: list[Any], initializers: list[Any], functions: Sequence[Any] = ()) -> bytes:
    graph = helper.make_graph(nodes, "graph", [], [], initializers)
    model = helper.make_model(graph, functions=functions, producer_name="hand")
    return bytes(model.SerializeToString())


def onnx_files() -> dict[str, dict[str, bytes]]:
    """Return name -> files of an ONNX model, the model itself first."""
    plain = [onnx_norm("x", "a", "t"), onnx_norm("t", "b", "y")]
    listed = [
        helper.make_tensor(name, TensorProto.FLOAT, array.shape, array)
        for name, array in layer("b").items()
    ]
    output = helper.make_empty_tensor_value_info("t")
    branch = helper.make_graph([plain[0]], "branch", [], [output], onnx_tensors("a"))
    beta = numpy_helper.from_array(values()["beta"])
    own = helper.make_node("BatchNormalization", ["X", *NAMES], ["Y"])
    called = helper.make_function("own", "Own", ["X", *NAMES], ["Y"], [own], [])
    inputs = ["t", "b.weight", "c", "b.running_mean", "b.running_var"]
    structured = [
        helper.make_node("If", ["flag"], ["t"], then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["c"], value=beta),
        helper.make_node("Own", inputs, ["y"], domain="own"),
    ]
    outside = onnx_tensors("a")
    for tensor in outside:
        external_data_helper.set_external_data(tensor, "w.bin", offset=12, length=12)
        tensor.ClearField("raw_data")
    return {
        "plain": {"m.onnx": onnx_model(plain, onnx_tensors("a") + listed)},
        "structured": {"m.onnx": onnx_model(structured, onnx_tensors("b"), [called])},
        "outside": {"m.onnx": onnx_model(plain[:1], outside), "w.bin": bytes(range(48))},
    }


def array_files() -> dict[str, dict[str, bytes]]:
    """Return format -> name -> content for formats of named arrays in one file."""
    return {
        "npz": npz_files(),
        "pytorch": pytorch_files(),
        "safetensors": {"m.safetensors": safetensors()},
    }


def safetensors() -> bytes:
    return safetensors_of(layer("a") | layer("b"))


def safetensors_of(tensors: Mapping[str, np.ndarray]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        raw = array.astype("<f4").tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    return with_length(json.dumps(header).encode()) + data


def with_length(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


class Call(NamedTuple):
    """An object in a pickle: the function that builds it, the arguments, and the state."""

    function: str
    arguments: tuple[Any, ...]
    state: Any = None


class Name(NamedTuple):
    """A function or class by name."""

    name: str


class Storage(NamedTuple):
    """A storage that a pickle refers to; before PyTorch 1.6, the reference ends with None."""

    key: str
    count: int
    view: tuple[None, ...] = ()


def program(content: Any) -> bytes:
    """Return the instructions of protocol 2 that build an object."""
    if content is None or isinstance(content, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[content]
    if isinstance(content, int):
        digits = content.to_bytes(11, "little", signed=True)
        return b"\x8a" + bytes([len(digits)]) + digits
    if isinstance(content, float):
        return b"G" + struct.pack(">d", content)
    if isinstance(content, str):
        return b"X" + struct.pack("<I", len(content)) + content.encode()
    if isinstance(content, Name):
        return b"c" + content.name.replace(":", "\n").encode() + b"\n"
    if isinstance(content, Storage):
        kind = Name("torch:FloatStorage")
        identity = ("storage", kind, content.key, "cpu", content.count, *content.view)
        return program(identity) + b"Q"
    if isinstance(content, Call):
        built = program(Name(content.function)) + program(content.arguments) + b"R"
        return built if content.state is None else built + program(content.state) + b"b"
    if isinstance(content, tuple):
        return b"(" + b"".join(map(program, content)) + b"t"
    if isinstance(content, list):
        return b"](" + b"".join(map(program, content)) + b"e"
    pairs = (program(key) + program(value) for key, value in content.items())
    return b"}(" + b"".join(pairs) + b"u"


def pickled(content: Any) -> bytes:
    return b"\x80\x02" + program(content) + b"."


def tensor(storage: Storage, offset: int = 0) -> Call:
    hooks = Call("collections:OrderedDict", ())
    return Call("torch._utils:_rebuild_tensor_v2", (storage, offset, (3,), (1,), False, hooks))


def tensors(first: int = 0) -> dict[str, Call]:
    """Return a tensor for each of a layer's names, with the storages `first`, `first` + 1, ..."""
    return {name: tensor(Storage(str(first + at), 3)) for at, name in enumerate(NAMES)}


def _state(*view: None) -> dict[str, Call]:
    """Return a state dict: layer a has a storage for each tensor, layer b has one for all."""
    state = {f"a.{n}": tensor(Storage(str(i), 3, view)) for i, n in enumerate(NAMES)}
    return state | {f"b.{n}": tensor(Storage("9", 12, view), 3 * i) for i, n in enumerate(NAMES)}


def _checkpoint(state: dict[str, Call]) -> dict[str, Any]:
    return {"state_dict": state, "ema": state, "epoch": 3, "args": [1.5, None, (True,)]}


def torch_module(kind: str, modules: Mapping[str, Call] = {}, **held: Any) -> Call:
    state = {"_parameters": {}, "_buffers": {}, "_modules": dict(modules), **held}
    return Call(kind, (), state)


def torch_norm(tensors: Mapping[str, Call], **settings: Any) -> Call:
    """Return a batch norm of four tensors, the first two of which are parameters."""
    items = [*tensors.items()]
    parts = {"_parameters": dict(items[:2]), "_buffers": dict(items[2:])}
    kind = "torch.nn.modules.batchnorm:BatchNorm2d"
    return torch_module(kind, num_features=3, **settings, **parts)


def pytorch_files() -> dict[str, bytes]:
    arrays = [array.tobytes() for array in values().values()]
    state, storages = _state(), {**dict(zip("0123", arrays, strict=True)), "9": b"".join(arrays)}
    norm = torch_norm(tensors(), eps=1e-5, momentum=0.1)
    net = torch_module("net:Net", {"bn": norm})
    contents = {"state": state, "checkpoint": _checkpoint(state), "whole": {"model": net}}
    files = {f"{name}.pt": pytorch_zip(pickled(each), storages) for name, each in contents.items()}
    return {**files, "legacy.pt": pytorch_legacy(_checkpoint(_state(None)), storages)}


def pytorch_legacy(content: Any, storages: dict[str, bytes]) -> bytes:
    """Return consecutive pickles and storages, as PyTorch wrote them before 1.6."""
    magic = b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"."
    machine = {"protocol_version": 1001, "little_endian": True}
    pickles = map(pickled, (1001, machine, content, list(storages)))
    counted = ((len(data) // 4).to_bytes(8, "little") + data for data in storages.values())
    return b"".join((magic, *pickles, *counted))


def pytorch_zip(content: bytes, storages: dict[str, bytes]) -> bytes:
    members = {"data.pkl": content, "byteorder": b"little", "version": b"3\n"}
    return pytorch_members(members | {f"data/{key}": data for key, data in storages.items()})


def pytorch_members(members: dict[str, bytes]) -> bytes:
    return zipped([(f"m/{name}", data) for name, data in members.items()])


def sharded_files() -> dict[str, bytes]:
    """Return a safetensors model in two parts, and its index."""
    parts = {f"m-0000{i + 1}-of-00002.safetensors": layer(name) for i, name in enumerate("ab")}
    files = {name: safetensors_of(arrays) for name, arrays in parts.items()}
    places = {key: name for name, arrays in parts.items() for key in arrays}
    index = json.dumps({"metadata": {"total_size": 96}, "weight_map": places}).encode()
    return {"m.safetensors.index.json": index, **files}


def tfjs_model(
    topology: Any, arrays: Mapping[str, np.ndarray], shard: int, pack: Pack | None = None
) -> dict[str, bytes]:
    """Return a TensorFlow.js model in shards of so many bytes.

    `pack` returns the bytes of a quantized array, and how it is quantized.
    """
    weights: list[dict[str, Any]] = []
    data = b""
    for name, array in arrays.items():
        entry = {"name": name, "shape": list(array.shape), "dtype": array.dtype.name}
        raw = array.tobytes()
        if pack is not None and array.dtype == np.float32 and array.size > 1:
            raw, entry["quantization"] = pack(array)
        weights.append(entry)
        data += raw
    shards = [data[at : at + shard] for at in range(0, len(data), shard)]
    paths = [f"group1-shard{number}of{len(shards)}.bin" for number in range(1, len(shards) + 1)]
    manifest = [{"paths": paths, "weights": weights}]
    form = "graph-model" if "node" in topology else "layers-model"
    model = {"format": form, "modelTopology": topology, "weightsManifest": manifest}
    return {"model.json": json.dumps(model).encode(), **dict(zip(paths, shards, strict=True))}


def in_bytes(array: np.ndarray) -> tuple[bytes, dict[str, Any]]:
    """Weights as uint8, as TensorFlow.js packs them (affine, from least to greatest)."""
    least, scale = float(array.min()), float(array.max() - array.min()) / 255
    stored = np.rint((array.astype(np.float64) - least) / scale).astype(np.uint8)
    return stored.tobytes(), {"dtype": "uint8", "min": least, "scale": scale}


def tfjs_files(topology: Any, prefix: str, pack: Pack | None = None) -> dict[str, bytes]:
    arrays = {f"{prefix}/{role}": array for role, array in values().items()}
    return tfjs_model(topology, arrays, 6 if pack else 24, pack)


def early_tfjs_files(prefix: str) -> dict[str, bytes]:
    """Return a graph in the format that TensorFlow.js had before version 1.0."""
    files = tfjs_files(tfjs_graph(prefix), prefix)
    model = json.loads(files.pop("model.json"))
    graph = json_format.ParseDict(model["modelTopology"], message_class("GraphDef")())
    manifest = json.dumps(model["weightsManifest"]).encode()
    content = graph.SerializeToString()
    return {"weights_manifest.json": manifest, "tensorflowjs_model.pb": content, **files}


def tfjs_graph(prefix: str) -> dict[str, Any]:
    def node(name: str, op: str, inputs: list[str], **attributes: Any) -> dict[str, Any]:
        return {"name": name, "op": op, "input": inputs, "attr": attributes}

    constants = [f"{prefix}/{role}" for role in values()]
    shape = {"dim": [{"size": "3"}]}
    value = {"tensor": {"dtype": "DT_FLOAT", "tensorShape": shape}}
    return {
        "node": [
            node("x", "Placeholder", []),
            *(node(name, "Const", [], value=value) for name in constants),
            node("bn", "FusedBatchNormV3", ["x", *constants], epsilon={"f": 0.001},
                 is_training={"b": False}),
        ]
    }  # fmt: skip
