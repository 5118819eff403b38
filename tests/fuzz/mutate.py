"""Mutations of bytes, texts, JSON and protocol buffers."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from tests.fuzz import wire
from tests.fuzz.wire import Field

Change = Callable[[Random, bytes], bytes]

NUMBERS = (
    0, 1, 2, 7, 31, 32, 33, 63, 64, 127, 128, 255, 256, 1000, 65535, 65536, 10**6,
    2**24, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1,
    2**63, 2**64 - 2, 2**64 - 1,
)  # fmt: skip

NAMES = (
    b"", b"\0", b"/", b"..", b"../../etc/passwd", b"\x1b[31mred\x1b[0m", b"[bold red]markup[/]",
    "\u202eevil".encode(), b"a\nb\r\n", b"=cmd()", b"\xff\xfe\x80",
    "\ud800".encode("utf-8", "surrogatepass"), b"gamma", b"beta", b"moving_mean",
    b"moving_variance", b"bn/moving_mean", b"bn/moving_variance", b"_CHECKPOINTABLE_OBJECT_GRAPH",
    b"global_step", b"layer_with_weights-0/gamma/.ATTRIBUTES/VARIABLE_VALUE", b"A" * 5000,
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**63), 10**400, 0.0, -0.0, 1e308, 1e-320,
    float("nan"), float("inf"), "", "x", "-1", "NaN", [], {}, [[]], [0], [-1, 3], [1] * 40,
    {"class_name": "BatchNormalization", "config": {}}, {"class_name": None, "config": None},
    {"class_name": "Sequential", "config": {"layers": []}},
    "BatchNormalization", "SyncBatchNormalization", "Functional", "Bidirectional",
    "TimeDistributed", "Lambda",
)  # fmt: skip


def flip(rng: Random, data: bytes) -> bytes:
    if not data:
        return b"\0"
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(changed))
        changed[at] = rng.choice(
            (changed[at] ^ 1 << rng.randrange(8), rng.randrange(256), 0, 0xFF, 0x7F, 0x80)
        )
    return bytes(changed)


def set_number(rng: Random, data: bytes) -> bytes:
    number = rng.choice(NUMBERS) + rng.choice((0, 0, len(data)))
    width = rng.choice((1, 2, 4, 8))
    raw = (number % (1 << 8 * width)).to_bytes(width, rng.choice(("little", "big")))
    at = rng.randrange(max(1, len(data) - width + 1))
    return data[:at] + raw + data[at + width :]


def set_float(rng: Random, data: bytes) -> bytes:
    """Write an unusual float32 at a multiple of four."""
    number = rng.choice((float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e-45, 3e38))
    at = 4 * rng.randrange(max(1, len(data) // 4))
    return data[:at] + struct.pack("<f", number) + data[at + 4 :]


def cut(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def splice(rng: Random, data: bytes) -> bytes:
    """Remove, insert or repeat bytes."""
    start, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 100))
    piece = data[start : start + length]
    changed = rng.choice((b"", rng.randbytes(length) + piece, piece * rng.choice((2, 10, 1000))))
    return data[:start] + changed + data[start + length :]


def copy(rng: Random, data: bytes) -> bytes:
    length = rng.choice((1, 4, 8, 24, 64, 256))
    source, target = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    piece = data[source : source + length]
    return data[:target] + piece + data[target + len(piece) :]


IN_PLACE = (flip, flip, flip, set_number, set_number, copy)
ANY = (*IN_PLACE, set_float, cut, splice, splice, splice)


def some_bytes(rng: Random, data: bytes) -> bytes:
    return rng.choice(ANY)(rng, data)


def in_place(rng: Random, data: bytes, start: int, length: int) -> bytes:
    piece = data[start : start + length]
    changed = rng.choice(IN_PLACE)(rng, piece)[: len(piece)].ljust(len(piece), b"\0")
    return data[:start] + changed + data[start + length :]


def places_of(data: bytes, *signatures: bytes) -> list[int]:
    pattern = b"|".join(map(re.escape, signatures))
    return [found.start() for found in re.finditer(pattern, data)]


def text(rng: Random, data: bytes) -> bytes:
    """Move, repeat or remove lines, change line ends, or replace names."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    quoted = lines[at].split(b'"')
    quoted[rng.randrange(len(quoted))] = rng.choice(NAMES)
    changes = (
        rng.sample(lines, len(lines)),
        [*lines[:at], *[lines[at]] * rng.choice((0, 2, 100)), *lines[at + 1 :]],
        [*lines[:at], b'"'.join(quoted), *lines[at + 1 :]],
    )
    return rng.choice((b"\n", b"\n", b"\r\n")).join(rng.choice(changes))


def protobuf(rng: Random, message: bytes, leaf: Change = some_bytes) -> bytes:
    """Change a field anywhere in a message, with correct lengths around it.

    The function `leaf` changes values that are not messages.
    """
    fields = _fields(message)
    if not fields:
        return leaf(rng, message)
    at = rng.randrange(len(fields))
    number, kind, value = fields[at]
    if kind == 2 and isinstance(value, bytes) and rng.random() < 0.75:
        if not is_message(value) and rng.random() < 0.3:
            value = rng.choice(NAMES)
        else:
            value = protobuf(rng, value, leaf)
        fields[at] = Field(number, kind, value)
    else:
        _change(rng, fields, at)
    return wire.encode(fields)


def _fields(message: bytes) -> list[Field]:
    with suppress(ValueError):
        return wire.parse(message)
    return []


def is_message(data: bytes) -> bool:
    return bool(_fields(data))


def _change(rng: Random, fields: list[Field], at: int) -> None:
    number, kind, value = fields[at]
    other = rng.randrange(len(fields))
    choice = rng.randrange(9)
    if choice == 0:
        del fields[at]
    elif choice == 1:
        fields[at:at] = [fields[at]] * rng.choice((1, 1, 2, 100, 2000))
    elif choice == 2:
        fields[at], fields[other] = fields[other], fields[at]
    elif choice == 3:
        fields[at] = Field(rng.randrange(1, 20), kind, value)
    elif choice == 4:
        fields[at] = Field(number, 0, rng.choice(NUMBERS))
    elif choice == 5:
        fields[at] = Field(number, 2, rng.choice(NAMES))
    elif choice == 6:
        fields[at] = fields[other]._replace(number=number)
    elif isinstance(value, int):
        fields[at] = Field(number, 0, value + rng.choice((-1, 1, 2, 1 << 32)))
    elif choice == 7:
        for _ in range(rng.choice((1, 10, 200))):
            value = wire.encode([Field(number, 2, value)])
        fields[at] = Field(number, 2, value)
    elif kind == 2:
        fields[at] = Field(number, kind, some_bytes(rng, value))
    else:
        fields[at] = Field(number, kind, in_place(rng, value, 0, len(value)))


def wiring(rng: Random, data: bytes) -> bytes:
    """Replace texts of a graph by others of its texts: inputs, functions, ops, names."""
    texts: list[tuple[list[Field], int]] = []
    graph = _parsed(data, texts)
    for _ in range(rng.choice((1, 1, 3, 10)) if texts else 0):
        (fields, at), (others, other) = rng.choice(texts), rng.choice(texts)
        fields[at] = fields[at]._replace(value=others[other].value)
    return wire.encode(graph)


def _parsed(message: bytes, texts: list[tuple[list[Field], int]], depth: int = 0) -> list[Field]:
    """Return the fields of a message and of messages in it; add the places of texts to `texts`."""
    fields = _fields(message)
    for at, (number, kind, value) in enumerate(fields):
        if kind == 2 and isinstance(value, bytes) and len(texts) < 3000:
            if 2 < len(value) < 200 and value.isascii() and value[0] > 32:
                texts.append((fields, at))
            elif depth < 8 and (inner := _parsed(value, texts, depth + 1)):
                fields[at] = Field(number, kind, inner)
    return fields


def json_text(rng: Random, data: bytes) -> bytes:
    """Replace, remove, repeat or move a value anywhere in a JSON text."""
    try:
        value = json.loads(data)
    except ValueError:
        return some_bytes(rng, data)
    if rng.random() < 0.1:
        return some_bytes(rng, data)
    for _ in range(rng.choice((1, 1, 1, 3))):
        value = _json(rng, value)
    dumped = json.dumps(value)
    if rng.random() < 0.03:
        depth = rng.choice((60, 70, 990, 100_000))
        dumped = dumped.replace("null", "[" * depth + "]" * depth, 1)
    return dumped.encode("utf-8", "surrogatepass")


def _json(rng: Random, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return rng.choice(VALUES)
    at: Any = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    choice = rng.random()
    if choice < 0.65:
        value[at] = _json(rng, value[at])
    elif choice < 0.75:
        del value[at]
    elif choice < 0.8:
        value[at] = rng.choice(VALUES)
    elif isinstance(value, dict):
        value[rng.choice([*value, "name", "layers", "layer", "axis"])] = value[at]
    elif choice < 0.9:
        value[at:at] = [value[at]] * rng.choice((1, 3, 300))
    else:
        rng.shuffle(value)
    return value
