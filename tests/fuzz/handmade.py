"""Small models written by hand, for the parts of the formats that need no TensorFlow."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from functools import partial
from typing import Any

import h5py
import numpy as np

from tests.builders.tables import append, append_string, header, table
from tests.fuzz.wire import Field, encode

OBJECT_GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"
ROLES = ("gamma", "beta", "moving_mean", "moving_variance")


def values(channels: int = 3) -> dict[str, np.ndarray]:
    ramp = np.arange(1, channels + 1, dtype="<f4")
    return {role: ramp * (index + 1) / 4 for index, role in enumerate(ROLES)}


def shape_message(shape: tuple[int, ...]) -> bytes:
    return encode(Field(2, 2, [Field(1, 0, size)] if size else b"") for size in shape)


def bundle(
    tensors: dict[str, np.ndarray], shards: int = 1, per_block: int = 1000, prefix: str = "m"
) -> dict[str, bytes]:
    """Return the files of a bundle of float32 tensors, distributed over shards in turn."""
    data = [io.BytesIO() for _ in range(shards)]
    entries = {b"": header(shards)}
    for index, key in enumerate(sorted(tensors)):
        shard = index % shards
        stored = append(data[shard], tensors[key], shard)
        entries[key.encode("utf-8", "surrogateescape")] = stored
    files = {f"{prefix}.index": table(entries, per_block)}
    for shard, content in enumerate(data):
        files[f"{prefix}.data-{shard:05d}-of-{shards:05d}"] = content.getvalue()
    return files


def object_bundle(graph: bytes, tensors: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Return the files of a bundle of float32 tensors with an object graph."""
    data = io.BytesIO()
    entries = {b"": header(), OBJECT_GRAPH: append_string(data, graph)}
    entries |= {name.encode(): append(data, array) for name, array in tensors.items()}
    return {"m.index": table(entries), "m.data-00000-of-00001": data.getvalue()}


def node(children: dict[str, int], key: str | None = None, full_name: str = "") -> Field:
    """Return a TrackableObject, as a field of a TrackableObjectGraph."""
    fields = [
        Field(1, 2, [Field(1, 0, child), Field(2, 2, name.encode())])
        for name, child in children.items()
    ]
    if key is not None:
        texts = (b"VARIABLE_VALUE", full_name.encode(), key.encode())
        fields.append(Field(2, 2, [Field(at, 2, text) for at, text in enumerate(texts, 1)]))
    return Field(1, 2, encode(fields))


def bn_graph() -> tuple[bytes, dict[str, np.ndarray]]:
    """Return an object graph with one batch norm, and its tensors by key."""
    keys = {role: f"bn/{role}/.ATTRIBUTES/VARIABLE_VALUE" for role in ROLES}
    nodes = [node({"bn": 1}), node({role: index + 2 for index, role in enumerate(ROLES)})]
    nodes += [node({}, keys[role], f"bn/{role}") for role in ROLES]
    return encode(nodes), {keys[role]: array for role, array in values().items()}


def bundles() -> dict[str, dict[str, bytes]]:
    named = {f"bn{i}/{role}": array for i in range(3) for role, array in values().items()}
    return {
        "by-name": bundle(named),
        "two-shards": bundle(named, shards=2, per_block=2),
        "by-object": object_bundle(*bn_graph()),
    }


def v1() -> bytes:
    from bnstat.formats.tensorflow.bundle import slice_key

    metas, entries = [], {}
    full = [Field(1, 2, b"")]
    for role, array in values().items():
        name = Field(1, 2, f"bn/{role}".encode())
        shape = Field(2, 2, shape_message(array.shape))
        metas.append(Field(1, 2, [name, shape, Field(3, 0, 1), Field(4, 2, full)]))
        saved = [name, Field(2, 2, full), Field(3, 2, [Field(5, 2, array.tobytes())])]
        entries[slice_key(f"bn/{role}", ((0, -1),))] = encode([Field(2, 2, saved)])
    return table({**entries, b"": encode([Field(1, 2, metas)])})


def config(layers: int = 2) -> dict[str, Any]:
    """Return the configuration of a Sequential model."""
    settings = {"axis": [-1], "epsilon": 0.001, "momentum": 0.99}
    norms = [
        {"class_name": "BatchNormalization", "config": {"name": f"bn{at}", **settings}}
        for at in range(layers)
    ]
    return {"class_name": "Sequential", "config": {"name": "net", "layers": norms}}


def hdf5(fill: Any, *, libver: str | tuple[str, str] = "earliest", user_block: int = 0) -> bytes:
    image = io.BytesIO()
    with h5py.File(image, "w", libver=libver, userblock_size=user_block) as file:
        fill(file)
    return image.getvalue()


def legacy(file: Any) -> None:
    """Write a full model in Keras's first HDF5 format."""
    file.attrs["keras_version"] = "2.4.0"
    file.attrs["backend"] = "tensorflow"
    file.attrs["model_config"] = json.dumps(config())
    weights = file.create_group("model_weights")
    weights.attrs["layer_names"] = [b"bn0", b"bn1"]
    for name in ("bn0", "bn1"):
        group = weights.create_group(name)
        group.attrs["weight_names"] = [f"{name}/{role}:0".encode() for role in ROLES]
        for role, array in values().items():
            group[f"{name}/{role}:0"] = array


def numbered(file: Any, place: str, channels: int = 3, **options: Any) -> Any:
    group = file.create_group(place)
    for index, array in enumerate(values(channels).values()):
        group.create_dataset(str(index), data=array, **options)
    return group


def weights(file: Any) -> None:
    for name, place in (("bn0", "batch_normalization"), ("bn1", "batch_normalization_1")):
        numbered(file, f"layers/{place}/vars").attrs["name"] = name


def sharded() -> dict[str, bytes]:
    """Return a `.weights.h5` in two shards, with one layer each, and the index."""
    files, shards = {}, {}
    for number, name in enumerate(("batch_normalization", "batch_normalization_1")):
        place, shard = f"layers/{name}/vars", f"m_{number:05d}.weights.h5"
        files[shard] = hdf5(partial(numbered, place=place))
        shards[f"/{place}"] = [shard]
    index = {"metadata": {"total_size": 96.0}, "weight_map": shards}
    return {"m.weights.json": json.dumps(index, indent=4).encode(), **files}


def chunked(file: Any) -> None:
    """Write compressed, chunked and shuffled datasets."""
    compressed = {"chunks": (16,), "compression": "gzip", "shuffle": True, "fletcher32": True}
    numbered(file, "layers/batch_normalization/vars", 64, **compressed)


def growing(file: Any) -> None:
    """Write datasets that may grow along one and two axes, and with another compression."""
    growing = {"maxshape": (None,), "chunks": (8,)}
    numbered(file, "layers/batch_normalization/vars", 64, **growing)
    numbered(file, "layers/batch_normalization_1/vars", 64, **growing, compression="lzf")
    file.create_dataset("x/vars/0", data=np.ones((9, 9)), maxshape=(None, None), chunks=(2, 2))


def arrays(file: Any) -> None:
    for role, array in values().items():
        file[f"stem/bn/{role}"] = array


def hdf5_files() -> dict[str, bytes]:
    files = {"arrays.h5": hdf5(arrays), "user-block.h5": hdf5(weights, user_block=512)}
    files["weights.weights.h5"] = hdf5(weights)
    for name, fill in (("legacy", legacy), ("chunked", chunked), ("growing", growing)):
        files[f"{name}.h5"] = hdf5(fill)
        files[f"{name}-latest.h5"] = hdf5(fill, libver="latest")
    return files


def npz_files() -> dict[str, bytes]:
    scopes = ("stem/bn", "head/bn")
    arrays = {f"{scope}/{role}": array for scope in scopes for role, array in values(5).items()}
    files = {"m.npz": io.BytesIO(), "deflated.npz": io.BytesIO()}
    np.savez(files["m.npz"], **arrays)
    np.savez_compressed(files["deflated.npz"], **arrays)
    return {name: stream.getvalue() for name, stream in files.items()}


def keras_archive(
    model: Any = None, fill: Any = weights, compression: int = zipfile.ZIP_STORED
) -> bytes:
    config_ = json.dumps(config() if model is None else model).encode()
    members = [("metadata.json", b'{"keras_version": "3.15.1"}'), ("config.json", config_)]
    return zipped([*members, ("model.weights.h5", hdf5(fill))], compression)


def zipped(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    image = io.BytesIO()
    with zipfile.ZipFile(image, "w", compression) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            archive.writestr(info, content, compression)
    return image.getvalue()


def tar(files: dict[str, bytes], mode: str) -> bytes:
    image = io.BytesIO()
    with tarfile.open(fileobj=image, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return image.getvalue()
