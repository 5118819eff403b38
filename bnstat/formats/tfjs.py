"""TensorFlow.js: `model.json` with a topology and a manifest, and shards of weights.

The manifest lists groups. The joined shards of a group contain the group's weights in order. A
quantized weight is stored as float16, or as integers with the values `integer * scale + min` in
float64. The topology is Keras's configuration, or a GraphDef as JSON, whose `Const` nodes lack
values. Before version 1.0, the GraphDef was a binary file and the manifest a separate JSON file.

Sources: tfjs-core/src/io/types.ts (`ModelJSON`, `WeightsManifestEntry`) and io_utils.ts
(`decodeWeights`); tfjs-converter/python/tensorflowjs, also its version 0.8.0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite, prod
from typing import Any, Final, NamedTuple

import numpy as np

from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.formats.contents import Contents, Graph
from bnstat.formats.dtypes import as_shape, bytes_needed, from_little_endian, numpy_dtype
from bnstat.formats.finders import GRAPH
from bnstat.formats.keras.config import layers_by_scope
from bnstat.model import Array, Source, Variable
from bnstat.storage.files import File, Range
from bnstat.text import parse_json

_DTYPES: Final = frozenset({"float32", "int32", "bool", "complex64", "float16", "uint8", "uint16"})
"""The types of TensorFlow.js (`DTYPE_VALUE_SIZE_MAP` in types.ts), under NumPy's names."""
_MOST_SMALL: Final = 1 << 12
"""Weights with at most this many elements are read as constants of the graph, such as epsilons."""
_HINT: Final = "copy it, too"
_HINT_WITH_LAYERS: Final = f"{_HINT}; inspect --no-values shows names and settings"


class _Quantization(NamedTuple):
    """How a weight is stored: as numbers of `dtype`, with the values `number * scale + minimum`."""

    dtype: np.dtype[np.generic]
    minimum: float
    scale: float


def open_model(file: File, source: Source) -> Contents:
    """Return the weights of a model, with its layers or its graph."""
    document = parse_json(file.read(), file.path)
    if not isinstance(document, dict):
        raise DamagedError(file.path, "is not a TensorFlow.js model")
    writers = (document.get(key) for key in ("convertedBy", "generatedBy"))
    writer = next((text for text in writers if isinstance(text, str) and text), None)
    topology = document.get("modelTopology")
    graph = topology.get("node") if isinstance(topology, dict) else None
    has_layers = isinstance(topology, dict) and not isinstance(graph, list)
    source = replace(source, writer=writer)
    contents = _contents(file, document.get("weightsManifest"), source, has_layers)
    variables = contents.variables
    if not isinstance(topology, dict):
        return contents
    if not has_layers:
        return _with_graph(contents, _parsed(topology, file.path))
    model, names = topology.get("model_config", topology), {key: key for key in variables}
    return replace(contents, layers=tuple(layers_by_scope(model, names, file.path)))


def open_manifest(file: File, source: Source) -> Contents:
    """Return the weights that a manifest lists, and the graph if there is a file for it."""
    from bnstat.formats.protobuf.protos import skeleton

    contents = _contents(file, parse_json(file.read(), file.path), source)
    if (graph := file.sibling(GRAPH)) is None:
        return contents
    return _with_graph(contents, skeleton(graph, 0, graph.size, "GraphDef", "the graph"))


def _contents(model: File, manifest: object, source: Source, has_layers: bool = False) -> Contents:
    """Return the weights that a manifest lists, with notes about quantized weights."""
    variables: dict[str, Variable] = {}
    kinds: Counter[str] = Counter()
    for variable, quantization in _weights(model, manifest, has_layers):
        variables[variable.key] = variable
        if quantization is not None:
            kinds[quantization.dtype.name] += 1
    notes = [
        f"{'1 weight is' if count == 1 else f'{count} weights are'} stored as {kind}; "
        "the numbers shown are dequantized, and no more precise"
        for kind, count in sorted(kinds.items())
    ]
    return Contents(replace(source, format="tfjs"), variables, notes=notes)


def _weights(
    model: File, manifest: object, has_layers: bool
) -> Iterator[tuple[Variable, _Quantization | None]]:
    """Yield (weight, quantization or None) for each weight in a manifest; skip string weights.

    If a shard is missing, a model with layers (`has_layers`) still shows names, shapes and
    settings, and reading a weight raises the error. A graph needs the constants in the shards.
    """
    for group in manifest if isinstance(manifest, list) else ():
        fields = group if isinstance(group, dict) else {}
        paths, entries = fields.get("paths"), fields.get("weights")
        if not isinstance(paths, list) or not isinstance(entries, list):
            problem = "a group in its weightsManifest has no list of paths or of weights"
            raise DamagedError(model.path, problem)
        model.expect(path for path in paths if isinstance(path, str))
        shards, error = _shards(model, paths, _HINT_WITH_LAYERS if has_layers else _HINT)
        if error is not None and not has_layers:
            raise error
        at = 0
        for entry in entries:
            fields = entry if isinstance(entry, dict) else {}
            name, shape = fields.get("name"), as_shape(fields.get("shape"))
            if not isinstance(name, str) or shape is None:
                problem = "a weight in its weightsManifest has no valid name or shape"
                raise DamagedError(model.path, problem)
            if fields.get("dtype") == "string":
                if error is not None:
                    continue
                at = _after_strings(shards, at, prod(shape), model.path)
                continue
            where = f"{model.path}: {name}"
            dtype = _dtype(fields.get("dtype"), where)
            packed = _quantization(fields.get("quantization"), where)
            length = bytes_needed(shape, packed.dtype if packed else dtype)
            if error is not None:
                yield _unreadable(name, dtype, shape, error), packed
                continue
            places = [*_places(shards, at, length)]
            if sum(place.length for place in places) != length:
                problem = f"needs bytes {at} to {at + length} of its shards, which have fewer"
                raise DamagedError(where, problem, "copy or download the shards again")
            yield _variable(name, dtype, shape, packed, places), packed
            at += length


def _variable(
    name: str,
    dtype: np.dtype[np.generic],
    shape: tuple[int, ...],
    packed: _Quantization | None,
    places: Sequence[Range],
) -> Variable:
    """Return the weight whose bytes are stored in the ranges `places` of one or more shards."""

    def read() -> Array:
        data = b"".join(place.read() for place in places)
        stored = from_little_endian(data, packed.dtype if packed else dtype, shape)
        if packed is None or packed.dtype.kind == "f":
            return stored.astype(dtype)
        values = stored.astype(np.float64) * packed.scale + packed.minimum
        with np.errstate(over="ignore", invalid="ignore"):
            return (values if dtype.kind == "f" else np.rint(values)).astype(dtype)

    def step() -> Array:
        assert packed is not None
        if packed.dtype.kind == "f":
            return np.abs(np.spacing(read().astype(np.float16)))
        return np.array(abs(packed.scale))

    def find() -> Sequence[Range]:
        is_plain = packed is None and len(places) == 1
        part = tuple(slice(0, size) for size in shape) if is_plain else None
        ranges = (place.file.place(place.offset, place.length, part) for place in places)
        return [extent for extent in ranges if extent is not None]

    return Variable(name, name, dtype.name, shape, read, find, step if packed else None)


def _unreadable(
    name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...], error: BnstatError
) -> Variable:
    """Return a weight whose values raise `error`."""

    def read() -> Array:
        raise error

    return Variable(name, name, dtype.name, shape, read)


def _shards(
    model: File, paths: Sequence[object], hint: str
) -> tuple[Sequence[File], BnstatError | None]:
    """Return the shards of a group, or the error for a shard that cannot be read."""
    shards = []
    for path in paths:
        if not isinstance(path, str):
            raise DamagedError(model.path, "the path of a shard is not a string")
        if (file := model.part(path)) is None:
            return (), NotFoundError(f"{model.path}: {path}", "this shard is missing", hint)
        try:
            file.refuse_lfs_pointer()
        except BnstatError as error:
            return (), error
        shards.append(file)
    return shards, None


def _quantization(fields: object, where: str) -> _Quantization | None:
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise DamagedError(where, "its quantization is invalid")
    minimum, scale = fields.get("min", 0), fields.get("scale", 1)
    for number in (minimum, scale):
        if type(number) not in (int, float) or not abs(number) < 1e308 or not isfinite(number):
            raise DamagedError(where, "its quantization has an invalid min or scale")
    return _Quantization(_dtype(fields.get("dtype"), where), float(minimum), float(scale))


def _dtype(name: object, where: str) -> np.dtype[np.generic]:
    if not isinstance(name, str) or name not in _DTYPES:
        raise DamagedError(where, f"has a dtype that TensorFlow.js does not support: {name!r:.40}")
    return numpy_dtype(name)


def _places(shards: Sequence[File], at: int, length: int) -> Iterator[Range]:
    """Yield the ranges of up to `length` bytes at offset `at` of the joined shards."""
    for file in shards:
        taken = min(length, file.size - at)
        if at < file.size and taken > 0:
            yield Range(file, at, taken)
            length -= taken
        at = max(0, at - file.size)


def _after_strings(shards: Sequence[File], at: int, count: int, where: str) -> int:
    """Return the offset after `count` strings, which are stored as a length (u32) and bytes."""
    size = sum(file.size for file in shards)
    if count > size:
        raise DamagedError(where, "lists more strings than its shards can contain")
    for _ in range(count):
        length = b"".join(place.read() for place in _places(shards, at, 4))
        at += 4 + int.from_bytes(length, "little")
        if at > size:
            raise DamagedError(where, "its shards end within a string")
    return at


def _parsed(topology: Mapping[str, Any], where: str) -> Any:
    """Return the GraphDef that a topology in JSON describes."""
    from google.protobuf import json_format

    from bnstat.formats.protobuf.protos import message_class

    message = message_class("GraphDef")()
    try:
        json_format.ParseDict(dict(topology), message, ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(where, "its modelTopology is not a graph") from error
    return message


def _with_graph(contents: Contents, graph_def: Any) -> Contents:
    """Return the contents with a graph; the graph's constants have the values of the weights."""
    from bnstat.formats.tensorflow.frozen_graph import notes_on_folding
    from bnstat.formats.tensorflow.graph_def import inlined

    variables, ops = contents.variables, inlined(graph_def)

    def constant(name: str) -> Array | None:
        if name not in variables or prod(variables[name].shape) > _MOST_SMALL:
            return None
        try:
            return variables[name].read()
        except BnstatError:
            return None

    graph = Graph("", ops, {name: name for name in variables if name in ops}, constant)
    notes = [*contents.notes, *notes_on_folding(ops)]
    return replace(contents, graphs=lambda: (graph,), notes=notes)
