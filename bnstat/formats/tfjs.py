"""TensorFlow.js: `model.json` with a topology and a manifest, and shards of weights.

The weights of a TensorFlow.js model, by its manifest.

A group is the bytes of its shards, one after the other; its weights lie in it in the order in
which they are listed. A quantized weight is `number * scale + min`, computed in float64 and kept
as float32, or is a float16.

Source: tfjs-core/src/io/types.ts (`WeightsManifestEntry`) and io_utils.ts (`decodeWeights`).

What a TensorFlow.js model holds: its weights, and its layers or its graph.

A layers model's topology is Keras's configuration; a graph model's is a GraphDef as JSON, whose
`Const` nodes have the weights' names and none of their numbers.

Source: tfjs-core/src/io/types.ts (`ModelJSON`); tfjs-converter/python/tensorflowjs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.formats.contents import Contents, Graph
from bnstat.formats.dtypes import TFJS, bytes_needed, from_little_endian, numpy_dtype
from bnstat.formats.json_text import parse_json
from bnstat.formats.keras.config import layers_by_scope
from bnstat.model import Source, Variable
from bnstat.storage.files import File, Range

_STRING: Final = "string"
_MOST_DIMS: Final = 32


class Quantization(NamedTuple):
    """How numbers are packed: their type; the number that 0 stands for and what 1 adds to it."""

    dtype: np.dtype[np.generic]
    minimum: float
    scale: float


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight, and where its bytes lie.

    Attributes:
        name: its name.
        dtype: of its numbers once they are unpacked.
        shape: its shape.
        quantization: how it is packed; None where it is not.
        places: its bytes, from one or more shards.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    quantization: Quantization | None
    places: Sequence[Range]

    def read(self) -> NDArray[np.generic]:
        """The numbers, unpacked. Raises `DamagedError` where they are not in the file."""
        data = b"".join(place.read() for place in self.places)
        packed = self.quantization
        stored = from_little_endian(data, packed.dtype if packed else self.dtype, self.shape)
        if packed is None or packed.dtype.kind == "f":
            return stored.astype(self.dtype)
        values = stored.astype(np.float64) * packed.scale + packed.minimum
        with np.errstate(over="ignore", invalid="ignore"):
            return (values if self.dtype.kind == "f" else np.rint(values)).astype(self.dtype)

    def step(self) -> NDArray[np.generic]:
        """How far apart packed numbers are, to be broadcast; of float16, by their size."""
        if self.quantization is None:
            return np.zeros(())
        if self.quantization.dtype.kind == "f":
            return np.abs(np.spacing(self.read().astype(np.float16)))
        return np.array(abs(self.quantization.scale))

    def extents(self) -> Sequence[Range]:
        """Where the bytes are stored; see `Variable.extents`."""
        found = []
        for each in self.places:
            part = tuple(slice(0, size) for size in self.shape)
            is_plain = self.quantization is None and len(self.places) == 1
            found.append(each.file.place(each.offset, each.length, part if is_plain else None))
        return [place for place in found if place is not None]


def read_manifest(model: File, manifest: object) -> list[Weight]:
    """Return the weights that a manifest lists; strings are left out.

    Args:
        model: the file that has the manifest; the shards are in its folder or below.
        manifest: `weightsManifest`, parsed.

    Raises:
        DamagedError: the manifest contradicts itself or its shards.
        NotFoundError: a shard is missing.
        BnstatError: a shard is a link that leads out of the folder.
    """
    where = model.path
    weights = []
    for group in manifest if isinstance(manifest, list) else ():
        paths, entries = (_list(group, key, where) for key in ("paths", "weights"))
        shards = [_shard(model, path) for path in paths]
        at = 0
        for entry in entries:
            name, shape = _described(entry, where)
            if entry.get("dtype") == _STRING:
                at = _after_strings(shards, at, prod(shape), where)
                continue
            dtype, packed = _types(entry, f"{where}: {name}")
            length = bytes_needed(shape, packed.dtype if packed else dtype)
            places = [*_places(shards, at, length)]
            if sum(place.length for place in places) != length:
                raise DamagedError(
                    f"{where}: {name}",
                    f"needs bytes {at} to {at + length} of its shards, which have fewer",
                    "copy or download them again",
                )
            weights.append(Weight(name, dtype, shape, packed, places))
            at += length
    return weights


def _list(group: object, key: str, where: str) -> list[Any]:
    found = group.get(key) if isinstance(group, dict) else None
    if not isinstance(found, list):
        raise DamagedError(where, "its weightsManifest is not one")
    return found


def _shard(model: File, path: object) -> File:
    if not isinstance(path, str):
        raise DamagedError(model.path, "names a shard by something that is not a text")
    if (file := model.part(path)) is None:
        raise NotFoundError(f"{model.path}: {path}", "this shard of the weights is missing")
    file.refuse_lfs_pointer()
    return file


def _described(entry: object, where: str) -> tuple[str, tuple[int, ...]]:
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    name, shape = fields.get("name"), fields.get("shape")
    is_shape = isinstance(shape, list) and len(shape) <= _MOST_DIMS
    if not isinstance(name, str) or not is_shape or not all(map(_is_size, shape or ())):
        raise DamagedError(where, "an entry of its weightsManifest is none of a weight")
    return name, tuple(shape or ())


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _types(
    entry: Mapping[str, Any], where: str
) -> tuple[np.dtype[np.generic], Quantization | None]:
    """The dtype of a weight, and how it is packed."""
    dtype = _dtype(entry.get("dtype"), where)
    told = entry.get("quantization")
    if told is None:
        return dtype, None
    if not isinstance(told, dict):
        raise DamagedError(where, "its quantization is not one")
    minimum, scale = (told.get(key, default) for key, default in (("min", 0), ("scale", 1)))
    numbers = [value for value in (minimum, scale) if type(value) in (int, float)]
    if len(numbers) != 2 or not all(abs(n) < 1e308 and isfinite(n) for n in numbers):
        raise DamagedError(where, "its quantization has no numbers")
    return dtype, Quantization(_dtype(told.get("dtype"), where), float(minimum), float(scale))


def _dtype(name: object, where: str) -> np.dtype[np.generic]:
    if not isinstance(name, str) or name not in TFJS:
        raise DamagedError(where, f"is of a type that TensorFlow.js does not have: {name!r:.40}")
    return numpy_dtype(name)


def _places(shards: Sequence[File], at: int, length: int) -> Iterator[Range]:
    """The bytes of a group from one on, as far as there are any."""
    for file in shards:
        taken = min(length, file.size - at)
        if at < file.size and taken > 0:
            yield Range(file, at, taken)
            length -= taken
        at = max(0, at - file.size)


def _after_strings(shards: Sequence[File], at: int, count: int, where: str) -> int:
    """The position behind so many strings, each a u32 length and its bytes."""
    size = sum(file.size for file in shards)
    if count > size:
        raise DamagedError(where, "lists more texts than its shards can hold")
    for _ in range(count):
        length = b"".join(place.read() for place in _places(shards, at, 4))
        at += 4 + int.from_bytes(length, "little")
        if at > size:
            raise DamagedError(where, "its shards end within a text")
    return at


_MOST_SMALL: Final = 1 << 12
"""Elements of a weight that can be part of a graph's structure, such as an epsilon."""


def open_model(file: File, source: Source) -> Contents:
    """The weights of a model, with its layers or its graph.

    Raises:
        DamagedError: the file or its shards contradict themselves.
        NotFoundError: a shard is missing.
    """
    parsed = parse_json(file.read(), file.path)
    if not isinstance(parsed, dict):
        raise DamagedError(file.path, "is no TensorFlow.js model")
    weights = read_manifest(file, parsed.get("weightsManifest"))
    variables = {
        each.name: Variable(
            each.name,
            each.name,
            each.dtype.name,
            each.shape,
            each.read,
            each.extents,
            each.step if each.quantization else None,
        )
        for each in weights
    }
    topology = parsed.get("modelTopology")
    contents = Contents(
        replace(source, format="tfjs", writer=_writer(parsed)),
        variables,
        notes=[*_unpacked(weights)],
    )
    if not isinstance(topology, dict):
        return contents
    if isinstance(topology.get("node"), list):
        graph = _graph(topology, variables, file.path)
        return replace(contents, graphs=lambda: (graph,))
    model, names = topology.get("model_config", topology), {key: key for key in variables}
    return replace(contents, layers=tuple(layers_by_scope(model, names, file.path)))


def _writer(parsed: Mapping[str, Any]) -> str | None:
    told = [parsed.get(key) for key in ("convertedBy", "generatedBy")]
    return next((text for text in told if isinstance(text, str) and text), None)


def _unpacked(weights: Sequence[Weight]) -> Iterator[str]:
    kinds = Counter(each.quantization.dtype.name for each in weights if each.quantization)
    for kind, count in sorted(kinds.items()):
        stored = "1 weight is" if count == 1 else f"{count} weights are"
        yield f"{stored} stored as {kind}: the numbers shown are unpacked, and as coarse as that"


def _graph(topology: Mapping[str, Any], variables: Mapping[str, Variable], where: str) -> Graph:
    from google.protobuf import json_format

    from bnstat.formats.protobuf.protos import message_class
    from bnstat.formats.tensorflow.graph_def import inlined

    message = message_class("GraphDef")()
    try:
        json_format.ParseDict(dict(topology), message, ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(where, "its modelTopology is no graph") from error
    ops = inlined(message)

    def constant(name: str) -> NDArray[np.generic] | None:
        if name not in variables or prod(variables[name].shape) > _MOST_SMALL:
            return None
        try:
            return variables[name].read()
        except BnstatError:
            return None

    return Graph("", ops, {name: name for name in variables if name in ops}, constant)
