"""Protocol buffers: SavedModels, graphs, ONNX."""

from __future__ import annotations

from random import Random

from tests.fuzz import mutate, wire
from tests.fuzz.recipes.common import any_file
from tests.fuzz.seeds import Seed
from tests.fuzz.wire import Field


def protobuf(rng: Random, seed: Seed) -> Seed:
    """Change a field of a `.pb`, `.meta` or `.onnx` at any depth, or JSON in one."""
    endings = [end for end in (".pb", ".meta", ".onnx") if any(n.endswith(end) for n in seed.files)]
    ending = rng.choice(endings) if endings else ".pb"
    return any_file(rng, seed, lambda rng, data: mutate.protobuf(rng, data, _leaf), ending)


def _leaf(rng: Random, value: bytes) -> bytes:
    is_json = value[:1] == b"{"
    return mutate.json_text(rng, value) if is_json else mutate.some_bytes(rng, value)


def graph_wiring(rng: Random, seed: Seed) -> Seed:
    """Swap texts of a graph: inputs, functions, ops, names."""
    ending = {"graph-beside": ".meta", "onnx": ".onnx"}.get(seed.format, ".pb")

    def change(rng: Random, data: bytes) -> bytes:
        words: list[bytes] = []
        _collect(data, words, 0)
        if not words:
            return data
        for _ in range(rng.choice((1, 1, 3, 10))):
            data = _swap(rng, data, rng.choice(words), rng.choice(words))
        return data

    return any_file(rng, seed, change, ending)


def _collect(message: bytes, words: list[bytes], depth: int) -> None:
    """Return short texts anywhere in a message."""
    try:
        fields = wire.parse(message)
    except ValueError:
        return
    for field in fields:
        if field.kind == 2 and isinstance(field.value, bytes) and len(words) < 3000:
            if 2 < len(field.value) < 200 and field.value.isascii() and field.value[0] > 32:
                words.append(field.value)
            elif depth < 8:
                _collect(field.value, words, depth + 1)


def _swap(rng: Random, message: bytes, old: bytes, new: bytes) -> bytes:
    """Replace one `old` by `new`, with correct lengths around it."""
    fields = wire.parse(message)
    places = [
        index
        for index, field in enumerate(fields)
        if isinstance(field.value, bytes) and field.kind == 2 and old in field.value
    ]
    if not places:
        return message
    at = rng.choice(places)
    number, kind, value = fields[at]
    assert isinstance(value, bytes)
    if value == old:
        fields[at] = Field(number, kind, new)
    else:
        fields[at] = Field(number, kind, _swap(rng, value, old, new))
    return wire.encode(fields)
