"""Tables: bundle indexes and V1 checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tests.builders import tables
from tests.fuzz import mutate, wire
from tests.fuzz.seeds import Seed
from tests.fuzz.wire import Field

Entries = list[tuple[bytes, bytes]]


def _on_entries(change: Callable[[Random, Entries], None]) -> mutate.Change:
    """Return a mutation of a table by a function that changes its entries, mostly kept sorted."""

    def mutation(rng: Random, data: bytes) -> bytes:
        entries = wire.read_table(data)
        if entries:
            change(rng, entries)
        if rng.random() < 0.9:
            entries.sort()
        return wire.write_table(entries, rng.choice((1, 2, 3, 1000, 1000)))

    return mutation


def _message(rng: Random, entries: Entries) -> None:
    at = rng.randrange(len(entries))
    key, value = entries[at]
    entries[at] = key, mutate.protobuf(rng, value)


def _numbers(rng: Random, entries: Entries) -> None:
    """Set the shape, shard, offset or size of one or two entries to any number."""
    at = rng.randrange(len(entries))
    for index, (key, value) in enumerate(entries[at : at + rng.choice((1, 2))], at):
        field = Field(rng.choice((1, 3, 4, 5)), 0, rng.choice(mutate.NUMBERS))
        if rng.random() < 0.4:
            dim = wire.encode([Field(1, 0, rng.choice(mutate.NUMBERS))])
            field = Field(2, 2, wire.encode([Field(2, 2, dim)]))
        entries[index] = key, value + wire.encode([field])


def _keys(rng: Random, entries: Entries) -> None:
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


def _block(rng: Random, data: bytes) -> bytes:
    """Change the bytes of a block, with a correct checksum."""
    entries = wire.read_table(data)
    half = max(1, len(entries) // 2)
    parts = [entries[:half], entries[half:]] if entries[half:] else [entries]
    blocks = [(part[-1][0] if part else b"", tables.block(part)) for part in parts]
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
        return tables.assemble([(b"\xff", tables.on_disk(squeezed, kind=1))])
    return wire.table(blocks)


def _snappy(contents: bytes) -> bytes:
    """Return contents as a snappy block: one literal, and one copy of its last byte."""
    length = len(contents) - (contents[-1:] == contents[-2:-1])
    literal = bytes([62 << 2]) + (length - 1).to_bytes(3, "little")
    copy = bytes([2, 1, 0]) * (len(contents) - length)
    return tables.varint(len(contents)) + literal + contents[:length] + copy


def _any_byte(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.5:
        footer = mutate.some_bytes(rng, data[-tables.FOOTER : -8])[:40].ljust(40, b"\0")
        return data[: -tables.FOOTER] + footer + tables.MAGIC
    return mutate.some_bytes(rng, data)


CHANGES: tuple[mutate.Change, ...] = (
    *map(_on_entries, (_message, _message, _numbers, _keys)),
    *(_block, _any_byte),
)
"""The mutations of a table's file; repeated ones are more likely."""


def tensor_bytes(rng: Random, seed: Seed) -> Seed:
    """Change the bytes of a tensor in the data file of a bundle, with a correct checksum."""
    names = sorted(seed.files)
    data = rng.choice([name for name in names if ".data-00000" in name])
    index = rng.choice([name for name in names if name.endswith(".index")])
    stored = bytearray(seed.files[data])

    def change(rng: Random, entries: Entries) -> None:
        at = rng.randrange(len(entries))
        key, value = entries[at]
        fields = {field.number: field.value for field in wire.parse(value)}
        start, size = fields.get(4, 0), fields.get(5, 0)
        raw = bytes(stored[start : start + size])
        if fields.get(1) == tables.STRING:
            raw, crc = tables.string_tensor(mutate.protobuf(rng, _text_of(raw)))
            start = len(stored)
        else:
            raw = rng.choice((mutate.set_float, mutate.flip, mutate.copy))(rng, raw)[:size]
            crc = tables.masked(raw)
        stored[start : start + len(raw)] = raw
        more = [Field(4, 0, start), Field(5, 0, len(raw)), Field(6, 5, crc.to_bytes(4, "little"))]
        entries[at] = key, value + wire.encode(more)

    changed = _on_entries(change)(rng, seed.files[index])
    return seed.changed(index, changed).changed(data, bytes(stored))


def _text_of(raw: bytes) -> bytes:
    """Return the text of a string tensor: what follows the varint of its length, and a checksum."""
    last = 0
    while raw[last] >= 0x80:
        last += 1
    return raw[last + 5 :]
