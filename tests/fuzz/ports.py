"""Small models in the formats of other frameworks, written by hand."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tests.fuzz.handmade import values, zipped
from tests.fuzz.wire import Field, encode

NAMES = ("weight", "bias", "running_mean", "running_var")


def _text(number: int, text: str) -> Field:
    return Field(number, 2, text.encode())


def onnx_tensor(name: str, array: np.ndarray, listed: bool = False, external: int = -1) -> bytes:
    """Return a TensorProto of float32: raw, as a list, or at an offset of another file."""
    fields = [Field(1, 0, size) for size in array.shape] + [Field(2, 0, 1)]
    if listed:
        fields.append(Field(4, 2, array.astype("<f4").tobytes()))
    fields.append(_text(8, name))
    if external >= 0:
        for key, value in (("location", "w.bin"), ("offset", str(external)), ("length", "12")):
            fields.append(Field(13, 2, encode([_text(1, key), _text(2, value)])))
        fields.append(Field(14, 0, 1))
    elif not listed:
        fields.append(Field(9, 2, array.astype("<f4").tobytes()))
    return encode(fields)


def onnx_node(kind: str, inputs: list[str], outputs: list[str], *attributes: bytes) -> Field:
    """Return a NodeProto, as a field of a graph."""
    fields = [_text(1, name) for name in inputs] + [_text(2, name) for name in outputs]
    fields += [_text(3, f"node_{outputs[0]}"), _text(4, kind)]
    fields += [Field(5, 2, attribute) for attribute in attributes]
    return Field(1, 2, encode(fields))


def onnx_norm(x: str, prefix: str, y: str) -> Field:
    """Return a BatchNormalization node."""
    epsilon = encode([_text(1, "epsilon"), Field(2, 5, struct.pack("<f", 1e-3)), Field(20, 0, 1)])
    return onnx_node("BatchNormalization", [x, *(f"{prefix}.{n}" for n in NAMES)], [y], epsilon)


def onnx_tensors(prefix: str, **options: Any) -> list[Field]:
    """Return the initializers of a BatchNormalization."""
    arrays = zip(NAMES, values().values(), strict=True)
    return [Field(5, 2, onnx_tensor(f"{prefix}.{n}", array, **options)) for n, array in arrays]


def onnx_model(graph: list[Field], *more: Field) -> bytes:
    """Return a ModelProto."""
    opset = encode([_text(1, ""), Field(2, 0, 15)])
    head = [Field(1, 0, 8), _text(2, "hand"), _text(3, "1.0")]
    return encode([*head, Field(7, 2, encode(graph)), Field(8, 2, opset), *more])


def onnx_files() -> dict[str, dict[str, bytes]]:
    """Return name -> files of an ONNX model, the model itself first."""
    plain = [onnx_norm("x", "a", "t"), onnx_norm("t", "b", "y")]
    plain += onnx_tensors("a") + onnx_tensors("b", listed=True)
    nested = encode(
        [onnx_norm("x", "a", "t"), *onnx_tensors("a"), Field(12, 2, encode([_text(1, "t")]))]
    )
    branches = [
        encode([_text(1, name), Field(6, 2, nested), Field(20, 0, 5)])
        for name in ("then_branch", "else_branch")
    ]
    value = encode(
        [_text(1, "value"), Field(5, 2, onnx_tensor("", values()["beta"])), Field(20, 0, 4)]
    )
    called = encode(
        [
            _text(1, "Own"),
            *(_text(4, name) for name in ("X", *NAMES)),
            _text(5, "Y"),
            onnx_node("BatchNormalization", ["X", *NAMES], ["Y"])._replace(number=7),
            _text(10, "own"),
        ]
    )
    inputs = ("t", "b.weight", "c", "b.running_mean", "b.running_var")
    rest = (_text(2, "y"), _text(4, "Own"), _text(7, "own"))
    call = encode([*(_text(1, name) for name in inputs), *rest])
    structured = [
        onnx_node("If", ["flag"], ["t"], *branches),
        onnx_node("Constant", [], ["c"], value),
        Field(1, 2, call),
        *onnx_tensors("b"),
    ]
    outside = [onnx_norm("x", "a", "y"), *onnx_tensors("a", external=12)]
    return {
        "plain": {"m.onnx": onnx_model(plain)},
        "structured": {"m.onnx": onnx_model(structured, Field(25, 2, called))},
        "outside": {"m.onnx": onnx_model(outside), "w.bin": bytes(range(48))},
    }


def safetensors() -> bytes:
    """Return a safetensors file of two layers."""
    pairs = [(layer, zip(NAMES, values().values(), strict=True)) for layer in ("a", "b")]
    return safetensors_of({f"{layer}.{n}": array for layer, both in pairs for n, array in both})


def safetensors_of(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return a safetensors file of float32 tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        raw = array.astype("<f4").tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    return with_length(json.dumps(header).encode()) + data


def with_length(header: bytes) -> bytes:
    """Return the header of a safetensors file after its length."""
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
    """Return a pickle."""
    return b"\x80\x02" + program(content) + b"."


def tensor(storage: Storage, offset: int = 0) -> Call:
    """Return a tensor of three numbers in a storage."""
    hooks = Call("collections:OrderedDict", ())
    return Call("torch._utils:_rebuild_tensor_v2", (storage, offset, (3,), (1,), False, hooks))


def _storages() -> dict[str, bytes]:
    """Return key -> bytes of a storage."""
    arrays = [array.astype("<f4").tobytes() for array in values().values()]
    return {str(index): raw for index, raw in enumerate(arrays)} | {"9": b"".join(arrays)}


def _state(*view: None) -> dict[str, Call]:
    """Return a state dict: layer a has a storage for each tensor, layer b has one for all."""
    state = {f"a.{n}": tensor(Storage(str(i), 3, view)) for i, n in enumerate(NAMES)}
    return state | {f"b.{n}": tensor(Storage("9", 12, view), 3 * i) for i, n in enumerate(NAMES)}


def _checkpoint(state: dict[str, Call]) -> dict[str, Any]:
    return {"state_dict": state, "ema": state, "epoch": 3, "args": [1.5, None, (True,)]}


def pytorch_files() -> dict[str, bytes]:
    """Return name -> content of a PyTorch file."""
    state, storages = _state(), _storages()
    attributes: dict[str, Any] = {"num_features": 3, "eps": 1e-5, "momentum": 0.1, "_modules": {}}
    attributes["_parameters"] = {name: state[f"a.{name}"] for name in NAMES[:2]}
    attributes["_buffers"] = {name: state[f"a.{name}"] for name in NAMES[2:]}
    norm = Call("torch.nn.modules.batchnorm:BatchNorm2d", (), attributes)
    net = Call("net:Net", (), {"_modules": {"bn": norm}, "_parameters": {}, "_buffers": {}})
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
    """Return the zip that PyTorch makes of a pickle and its storages."""
    members = {"data.pkl": content, "byteorder": b"little", "version": b"3\n"}
    return pytorch_members(members | {f"data/{key}": data for key, data in storages.items()})


def pytorch_members(members: dict[str, bytes]) -> bytes:
    """Return a zip of these files in a folder."""
    return zipped([(f"m/{name}", data) for name, data in members.items()])


def sharded_files() -> dict[str, bytes]:
    """Return a safetensors model in two parts, and its index."""
    parts = {f"m-0000{i + 1}-of-00002.safetensors": layer for i, layer in enumerate(("a", "b"))}
    arrays = dict(zip(NAMES, values().values(), strict=True))
    files = {
        name: safetensors_of({f"{layer}.{role}": array for role, array in arrays.items()})
        for name, layer in parts.items()
    }
    places = {f"{layer}.{role}": name for name, layer in parts.items() for role in NAMES}
    index = json.dumps({"metadata": {"total_size": 96}, "weight_map": places}).encode()
    return {"m.safetensors.index.json": index, **files}


def tfjs_files(topology: Any, prefix: str) -> dict[str, bytes]:
    """Return a TensorFlow.js model of one layer, half of it quantized, in two shards."""
    weights: list[dict[str, Any]] = []
    data = b""
    for role, array in values().items():
        entry: dict[str, Any] = {"name": f"{prefix}/{role}", "shape": [3], "dtype": "float32"}
        if role.startswith("moving"):
            entry["quantization"] = {"dtype": "uint8", "min": 0.5, "scale": 0.25}
            data += bytes(range(3))
        else:
            data += array.astype("<f4").tobytes()
        weights.append(entry)
    paths = ["group1-shard1of2.bin", "group1-shard2of2.bin"]
    manifest = [{"paths": paths, "weights": weights}]
    model = {"format": "x", "modelTopology": topology, "weightsManifest": manifest}
    shards = dict(zip(paths, (data[:14], data[14:]), strict=True))
    return {"model.json": json.dumps(model).encode(), **shards}


def tfjs_graph(prefix: str) -> dict[str, Any]:
    """Return the topology of a graph model."""

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
