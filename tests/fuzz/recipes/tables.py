"""Tables: bundle indexes and V1 checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tests.fuzz import mutate, wire
from tests.fuzz.recipes.common import raw_bytes
from tests.fuzz.seeds import Seed
from tests.fuzz.wire import Field


def _table_of(seed: Seed) -> str | None:
    for name in sorted(seed.files):
        if seed.files[name].endswith(wire.MAGIC):
            return name
    return None


def _in_table(
    rng: Random, seed: Seed, change: Callable[[Random, list[tuple[bytes, bytes]]], None]
) -> Seed:
    name = _table_of(seed)
    if name is None:
        return raw_bytes(rng, seed)
    entries = wire.read_table(seed.files[name])
    change(rng, entries)
    if rng.random() < 0.9:
        entries.sort()
    return seed.changed(name, wire.write_table(entries, rng.choice((1, 2, 3, 1000, 1000))))


def entry_message(rng: Random, seed: Seed) -> Seed:
    """Change a field of an entry's message."""

    def change(rng: Random, entries: list[tuple[bytes, bytes]]) -> None:
        if entries:
            at = rng.randrange(len(entries))
            key, value = entries[at]
            entries[at] = key, mutate.protobuf(rng, value)

    return _in_table(rng, seed, change)


def entry_numbers(rng: Random, seed: Seed) -> Seed:
    """Set the shape, shard, offset or size of an entry to any number."""

    def change(rng: Random, entries: list[tuple[bytes, bytes]]) -> None:
        at = rng.randrange(len(entries)) if entries else 0
        for index in (at, at + 1)[: rng.choice((1, 2))]:
            if index < len(entries):
                key, value = entries[index]
                number = rng.choice((1, 3, 4, 5))
                told = Field(number, 0, rng.choice(mutate.NUMBERS))
                if rng.random() < 0.4:
                    dims = [Field(1, 0, rng.choice(mutate.NUMBERS))]
                    told = Field(2, 2, wire.encode([Field(2, 2, wire.encode(dims))]))
                entries[index] = key, value + wire.encode([told])

    return _in_table(rng, seed, change)


def keys(rng: Random, seed: Seed) -> Seed:
    """Rename, double, remove or swap keys, or add a thousand."""

    def change(rng: Random, entries: list[tuple[bytes, bytes]]) -> None:
        if not entries:
            return
        at, other = rng.randrange(len(entries)), rng.randrange(len(entries))
        (key, value), (other_key, other_value) = entries[at], entries[other]
        choice = rng.randrange(6)
        if choice == 0:
            entries[at] = rng.choice(mutate.NAMES), value
        elif choice == 1:
            entries[at] = key + rng.choice((b"_1", b"/", b"/gamma", b"/Adam")), value
        elif choice == 2:
            del entries[at]
        elif choice == 3:
            entries[at], entries[other] = (key, other_value), (other_key, value)
        elif choice == 4:
            entries[at] = mutate.some_bytes(rng, key), value
        else:
            entries += [(b"%s_%d" % (key, index), value) for index in range(1000)]

    return _in_table(rng, seed, change)


def block_contents(rng: Random, seed: Seed) -> Seed:
    """Change the bytes of a block, with a correct checksum."""
    name = _table_of(seed)
    if name is None:
        return raw_bytes(rng, seed)
    entries = wire.read_table(seed.files[name])
    half = max(1, len(entries) // 2)
    parts = [entries[:half], entries[half:]] if entries[half:] else [entries]
    blocks = [(part[-1][0] if part else b"", wire.block_contents(part)) for part in parts]
    at = rng.randrange(len(blocks))
    last, contents = blocks[at]
    choice = rng.random()
    if choice < 0.6:
        blocks[at] = last, mutate.some_bytes(rng, contents)
    elif choice < 0.7:
        blocks *= rng.choice((2, 100))
    elif choice < 0.8:
        blocks[at] = mutate.some_bytes(rng, last), contents
    else:
        squeezed = rng.choice((_snappy(contents), mutate.some_bytes(rng, _snappy(contents))))
        return seed.changed(name, _one_block(squeezed, kind=1))
    return seed.changed(name, wire.table(blocks))


def _one_block(contents: bytes, kind: int) -> bytes:
    """Return a table of a single block of another kind."""
    whole = wire.table([(b"\xff", contents)])
    block = wire.block(contents, kind)
    return block + whole[len(block) :]


def _snappy(contents: bytes) -> bytes:
    """Return contents as a snappy block: one literal, and one copy of its last byte."""
    length = len(contents) - (contents[-1:] == contents[-2:-1])
    literal = bytes([62 << 2]) + (length - 1).to_bytes(3, "little")
    copy = bytes([2, 1, 0]) * (len(contents) - length)
    return wire.varint(len(contents)) + literal + contents[:length] + copy


def tensor_bytes(rng: Random, seed: Seed) -> Seed:
    """Change the bytes of a tensor, with a correct checksum."""
    data = next((name for name in sorted(seed.files) if ".data-00000" in name), None)
    if data is None:
        return raw_bytes(rng, seed)
    changed = bytearray(seed.files[data])

    def change(rng: Random, entries: list[tuple[bytes, bytes]]) -> None:
        candidates = []
        for index, (_, value) in enumerate(entries):
            told = {field.number: field.value for field in wire.parse(value)}
            start, size = told.get(4, 0), told.get(5, 0)
            if isinstance(start, int) and isinstance(size, int) and start + size <= len(changed):
                candidates.append((index, start, size, told.get(1)))
        if not candidates:
            return
        index, start, size, dtype = rng.choice(candidates)
        key, value = entries[index]
        raw = bytes(changed[start : start + size])
        if dtype == 7:
            raw = _string_tensor(mutate.protobuf(rng, _string_of(raw)))
            start = len(changed)
            changed.extend(raw)
            crc = _string_crc(raw)
        else:
            raw = rng.choice((mutate.set_float, mutate.flip, mutate.copy))(rng, raw)[:size]
            changed[start : start + len(raw)] = raw
            crc = wire.masked_crc32c(raw)
        more = [Field(4, 0, start), Field(5, 0, len(raw)), Field(6, 5, crc.to_bytes(4, "little"))]
        entries[index] = key, value + wire.encode(more)

    return _in_table(rng, seed, change).changed(data, bytes(changed))


def _string_of(raw: bytes) -> bytes:
    _, at = wire.read_varint(raw, 0)
    return raw[at + 4 :]


def _string_tensor(text: bytes) -> bytes:
    packed = len(text).to_bytes(4, "little")
    middle = wire.masked_crc32c(packed).to_bytes(4, "little")
    return wire.varint(len(text)) + middle + text


def _string_crc(raw: bytes) -> int:
    length, at = wire.read_varint(raw, 0)
    return wire.masked_crc32c(length.to_bytes(4, "little") + raw[at:])


def table_bytes(rng: Random, seed: Seed) -> Seed:
    """Change the footer, or any byte of the table."""
    name = _table_of(seed)
    if name is None:
        return raw_bytes(rng, seed)
    data = seed.files[name]
    if rng.random() < 0.5:
        footer = mutate.some_bytes(rng, data[-wire.FOOTER : -8])[:40].ljust(40, b"\0")
        return seed.changed(name, data[: -wire.FOOTER] + footer + wire.MAGIC)
    return seed.changed(name, mutate.some_bytes(rng, data))
