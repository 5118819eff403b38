"""SSTables and snappy blocks: round trips, searches, and damage."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bnstat
from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.protobuf.wire import WireError
from bnstat.formats.tensorflow.sstable import Table, decompress, is_table
from tests.builders import tables
from tests.builders.memory import MemoryFile
from tests.builders.oracle import assert_as_tensorflow_reads

ENTRIES = {f"layer_{number:03}/gamma".encode(): bytes(number) for number in range(60)}


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.binary(max_size=300), st.binary(max_size=400), min_size=1, max_size=60),
    st.integers(1, 20),
    st.integers(1, 20),
    st.lists(st.binary(max_size=8), max_size=5),
    st.booleans(),
)
def test_round_trip(
    entries: dict[bytes, bytes], per_block: int, interval: int, others: list[bytes], loaded: bool
) -> None:
    table = Table(MemoryFile(tables.table(entries, per_block, interval)))
    if loaded:
        table.load()
    assert list(table.items()) == sorted(entries.items())
    for key in [*entries, *others]:
        assert table.get(key) == entries.get(key)


def test_tables_without_entries() -> None:
    for data in (tables.assemble([]), _with_block(bytes(4) + b"\1\0\0\0")):
        assert (_read(data), Table(MemoryFile(data)).get(b"gamma")) == ([], None)


def test_index_keys_need_only_separate_the_blocks() -> None:
    blocks = [
        (b"b", tables.on_disk(tables.block([(b"a1", b"1"), (b"a2", b"2")]))),
        (b"z", tables.on_disk(tables.block([(b"c1", b"3")]))),
    ]
    table = Table(MemoryFile(tables.assemble(blocks)))
    assert [table.get(key) for key in (b"a2", b"c1", b"b", b"zz")] == [b"2", b"3", None, None]


def test_all_blocks_are_fetched_together() -> None:
    file = MemoryFile(tables.table(ENTRIES, per_block=10))
    table = Table(file)
    file.reads.clear()
    entries = table.items()
    next(entries)
    assert len(file.reads) == 1
    assert len(list(entries)) == len(ENTRIES) - 1
    assert file.fetched == file.reads


def test_a_search_reads_one_block() -> None:
    file = MemoryFile(tables.table(ENTRIES, per_block=10))
    table = Table(file)
    place = table.place(b"layer_025/gamma")
    assert place is not None
    file.reads.clear()
    for _ in range(9):
        assert table.get(b"layer_025/gamma") == bytes(25)
    assert set(file.reads) == {(place.offset, place.length)}
    assert table.place(b"z") is None


def test_recognition() -> None:
    for data in (tables.table(ENTRIES), tables.MAGIC.rjust(48)):
        assert is_table(MemoryFile(data))
    for data in (tables.MAGIC.rjust(47), b"", tables.MAGIC, bytes(100)):
        assert not is_table(MemoryFile(data))
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    with pytest.raises(DamagedError, match="git-lfs pointer"):
        Table(MemoryFile(text))


def _read(data: bytes) -> list[tuple[bytes, bytes]]:
    return list(Table(MemoryFile(data)).items())


def _with_block(contents: bytes, kind: int = 0) -> bytes:
    return tables.assemble([(b"z", tables.on_disk(contents, kind))])


def _restarts(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in numbers)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "too short"),
        (b"\x00\x00\x00", "too short"),
        (b"\x00\x00\x00" + _restarts(1), "too short for 1 restart points"),
        (_restarts(0, 5), "too short for 5 restart points"),
        (_restarts(0, 0xFFFFFFFF), "too short for 4294967295 restart points"),
        (b"\x00\x01\x7fa" + _restarts(0, 1), "longer than its block"),
        (b"\x05\x01\x00a" + _restarts(0, 1), "longer than its block"),
        (b"\x00\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x00a" + _restarts(0, 1), "longer than"),
        (b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01" + _restarts(0, 1), "varint"),
    ],
)
def test_damage_with_a_valid_checksum(contents: bytes, message: str) -> None:
    with pytest.raises(DamagedError, match=message):
        _read(_with_block(contents))


@pytest.mark.parametrize("keys", [(b"b", b"a"), (b"a", b"a"), (b"", b"")])
def test_keys_out_of_order_or_twice(keys: tuple[bytes, bytes]) -> None:
    one, other = ((key, b"") for key in keys)
    blocks = [(b"z", tables.on_disk(tables.block([each]))) for each in (one, other)]
    for data in (_with_block(tables.block([one, other], interval=1)), tables.assemble(blocks)):
        with pytest.raises(DamagedError, match="out of order"):
            _read(data)


def test_blocks_that_share_a_byte() -> None:
    stored = tables.on_disk(tables.block([(b"a", bytes(99))]))
    first, second = (tables.varint(at) + tables.varint(20) for at in (0, 20 + 5 - 1))
    with pytest.raises(DamagedError, match="overlapping"):
        Table(MemoryFile(stored + tables.tail(len(stored), [(b"a", first), (b"b", second)])))


def test_invalid_handles_and_unknown_compression() -> None:
    with pytest.raises(DamagedError, match="the index block"):
        Table(MemoryFile(tables.tail(0, [(b"a", b"\xff")])))
    beyond = tables.varint(1 << 60) * 2
    with pytest.raises(DamagedError, match="truncated"):
        _read(tables.tail(0, [(b"a", beyond)]))
    with pytest.raises(UnsupportedError, match="compression 7"):
        _read(_with_block(tables.block([(b"a", b"")]), kind=7))


@pytest.mark.parametrize(
    ("count", "length", "readable"), [(500, 0, True), (1000, 0, False), (1000, 60, True)]
)
def test_keys_that_repeat_each_other(count: int, length: int, readable: bool) -> None:
    """All keys of a block may have a megabyte, or more if the block is large."""
    start = b"k" * 1998
    entries = [(start + number.to_bytes(2, "big"), bytes(length)) for number in range(count)]
    contents = tables.block(entries, interval=count)
    if readable:
        assert _read(_with_block(contents)) == entries
    else:
        with pytest.raises(DamagedError, match="the keys exceed the length limit"):
            _read(_with_block(contents))


def test_a_table_that_is_held_is_read_and_parsed_once() -> None:
    file = MemoryFile(tables.table(ENTRIES, per_block=10))
    table = Table(file)
    table.load()
    file.reads.clear()
    assert {key: table.get(key) for key in (*ENTRIES, b"none")} == {**ENTRIES, b"none": None}
    assert not file.reads
    assert table.get(max(ENTRIES)) is table.get(max(ENTRIES))


def test_a_block_that_cannot_be_decompressed_is_damage() -> None:
    table = Table(MemoryFile(_with_block(b"\x7f\x00a", kind=1)))
    for read in (table.load, lambda: table.get(b"a"), lambda: list(table.items())):
        with pytest.raises(DamagedError, match="block at byte 0"):
            read()


def block(size: int, *elements: bytes) -> bytes:
    return tables.varint(size) + b"".join(elements)


def literal(text: bytes) -> bytes:
    """A literal element of any length."""
    length = len(text) - 1
    if length < 60:
        return bytes([length << 2]) + text
    width = (length.bit_length() + 7) // 8
    return bytes([59 + width << 2]) + length.to_bytes(width, "little") + text


def copy(length: int, offset: int, width: int) -> bytes:
    """A copy element whose offset takes `width` bytes (1, 2 or 4)."""
    if width == 1:
        return bytes([offset >> 8 << 5 | length - 4 << 2 | 1, offset & 0xFF])
    kind = 2 if width == 2 else 3
    return bytes([length - 1 << 2 | kind]) + offset.to_bytes(width, "little")


def compress(text: bytes) -> bytes:
    """A block of the text, with a copy for each 8 bytes that repeat."""
    block = tables.varint(len(text))
    for at in range(0, len(text), 8):
        part = text[at : at + 8]
        before = text.rfind(part, 0, at + len(part) - 1)
        width = 1 if len(part) > 3 and at - before < 2048 else 2 if at - before < 1 << 16 else 4
        block += literal(part) if before < 0 else copy(len(part), at - before, width)
    return block


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        (block(0), b""),
        (block(3, b"\x08abc"), b"abc"),
        (block(8, literal(b"abcd"), b"\x01\x04"), b"abcdabcd"),
        *((block(7, literal(b"ab"), copy(5, 2, width)), b"abababa") for width in (1, 2, 4)),
        (block(65, literal(b"x"), copy(64, 1, 2)), b"x" * 65),
        (block(3, literal(b"a"), literal(b"bc")), b"abc"),
        *((block(size, literal(b"y" * size)), b"y" * size) for size in (60, 61, 70000)),
        (block(5, b"\xf4\x04\x00abcde"), b"abcde"),
        (block(5, b"\xfc\x04\x00\x00\x00abcde"), b"abcde"),
        (block(304, literal(bytes(range(256)) + b"!" * 44), copy(4, 300, 1)),
         bytes(range(256)) + b"!" * 44 + bytes(range(4))),
    ],
)  # fmt: skip
def test_snappy_blocks(stored: bytes, text: bytes) -> None:
    assert decompress(stored) == text


@settings(deadline=None)
@given(st.binary(max_size=50).flatmap(lambda part: st.just(part * 7 + part[::-1] * 3)))
@example(bytes(range(256)) * 300)
def test_snappy_round_trip(text: bytes) -> None:
    assert decompress(compress(text)) == text


@pytest.mark.parametrize(
    "stored",
    [
        *(block(size, literal(b"abcd")) for size in (1000, 1 << 40, 1 << 63)),
        b"",
        b"\x80",
        block(3, b"\x08ab"),
        block(3, b"\x08abc", b"\x00d"),
        block(4, b"\x08abc"),
        block(8, b"\x01\x04"),
        block(8, literal(b"abcd"), b"\x01\x00"),
        block(8, literal(b"abcd"), copy(4, 5, 2)),
        block(8, literal(b"abcd"), b"\x01"),
        block(8, literal(b"abcd"), b"\x0f\x00\x00"),
        block(5, b"\xf4\x04"),
    ],
)
def test_damaged_snappy_blocks(stored: bytes) -> None:
    with pytest.raises(WireError):
        decompress(stored)


def test_tensorflow_reads_the_same_snappy_blocks(tmp_path: Path) -> None:
    arrays = {
        f"net/block_{number}/bn/{role}": np.arange(3, dtype=np.float32) + number
        for number in range(40)
        for role in ("moving_mean", "moving_variance")
    }
    data = BytesIO()
    entries = {name.encode(): tables.append(data, array) for name, array in arrays.items()}
    entries[b""] = tables.header()
    ordered = sorted(entries.items())
    blocks = [(part[-1][0], compress(tables.block(part))) for part in (ordered[:30], ordered[30:])]
    index = tables.assemble((last, tables.on_disk(block, 1)) for last, block in blocks)
    assert len(index) < len(tables.table(entries))
    (tmp_path / "m.index").write_bytes(index)
    (tmp_path / "m.data-00000-of-00001").write_bytes(data.getvalue())
    model = bnstat.load(tmp_path / "m")
    assert set(model.stored) == set(arrays)
    assert_as_tensorflow_reads(model, tmp_path / "m")
