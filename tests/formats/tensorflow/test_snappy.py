"""Snappy blocks, against the format's description and against TensorFlow's own decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bnstat
from bnstat.formats.protobuf.wire import WireError
from bnstat.formats.tensorflow.sstable import decompress
from tests.builders import tables


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
    """A block of the text, with a copy wherever four bytes or more repeat."""
    block, at, start = tables.varint(len(text)), 0, 0
    while at < len(text):
        offset = at - text.rfind(text[at : at + 4], 0, at + 3) if at + 4 <= len(text) else 0
        length = 0
        while 0 < offset <= at and length < 64 and at + length < len(text):
            if text[at + length] != text[at + length - offset]:
                break
            length += 1
        if length < 4:
            at += 1
            continue
        block += literal(text[start:at]) if at > start else b""
        width = 1 if length < 12 and offset < 2048 else 2 if offset < 1 << 16 else 4
        block += copy(length, offset, width)
        at += length
        start = at
    return block + (literal(text[start:]) if start < len(text) else b"")


def block(size: int, *elements: bytes) -> bytes:
    return tables.varint(size) + b"".join(elements)


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        (block(0), b""),
        (block(3, b"\x08abc"), b"abc"),
        (block(8, literal(b"abcd"), b"\x01\x04"), b"abcdabcd"),
        (block(7, literal(b"ab"), copy(5, 2, 1)), b"abababa"),
        (block(7, literal(b"ab"), copy(5, 2, 2)), b"abababa"),
        (block(7, literal(b"ab"), copy(5, 2, 4)), b"abababa"),
        (block(65, literal(b"x"), copy(64, 1, 2)), b"x" * 65),
        (block(3, literal(b"a"), literal(b"bc")), b"abc"),
        (block(60, literal(b"y" * 60)), b"y" * 60),
        (block(61, literal(b"y" * 61)), b"y" * 61),
        (block(70000, literal(b"z" * 70000)), b"z" * 70000),
        (block(5, b"\xf4\x04\x00abcde"), b"abcde"),
        (block(5, b"\xfc\x04\x00\x00\x00abcde"), b"abcde"),
        (block(304, literal(bytes(range(256)) + b"!" * 44), copy(4, 300, 1)),
         bytes(range(256)) + b"!" * 44 + bytes(range(4))),
    ],
)  # fmt: skip
def test_known_blocks(stored: bytes, text: bytes) -> None:
    assert decompress(stored) == text


@settings(deadline=None)
@given(st.binary(max_size=50).flatmap(lambda part: st.just(part * 7 + part[::-1] * 3)))
@example(bytes(range(256)) * 300)
def test_round_trip(text: bytes) -> None:
    assert decompress(compress(text)) == text


@pytest.mark.parametrize(
    "stored",
    [
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
def test_damage(stored: bytes) -> None:
    with pytest.raises(WireError):
        decompress(stored)


@pytest.mark.parametrize("size", [1000, 1 << 40, 1 << 63])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(WireError, match=f"compressed bytes cannot make {size}"):
        decompress(block(size, literal(b"abcd")))


def test_tensorflow_reads_the_same(tmp_path: Path) -> None:
    arrays = {
        f"net/block_{number}/bn/{role}": np.arange(3, dtype=np.float32) + number
        for number in range(40)
        for role in ("moving_mean", "moving_variance")
    }
    data, entries = b"", {b"": tables.header()}
    for name, array in arrays.items():
        entries[name.encode()] = tables.entry(array.tobytes(), shape=[3], offset=len(data))
        data += array.tobytes()
    ordered = sorted(entries.items())
    chunks = [ordered[:30], ordered[30:]]
    index = tables.assemble(
        (chunk[-1][0], tables.on_disk(compress(tables.block(chunk)), 1)) for chunk in chunks
    )
    assert len(index) < len(tables.table(entries))
    (tmp_path / "m.index").write_bytes(index)
    (tmp_path / "m.data-00000-of-00001").write_bytes(data)
    reader = tf.train.load_checkpoint(str(tmp_path / "m"))
    model = bnstat.load(tmp_path / "m")
    assert len(model) == 40
    for layer in model:
        for variable in layer.variables.values():
            np.testing.assert_array_equal(reader.get_tensor(variable.key), arrays[variable.key])
            np.testing.assert_array_equal(variable.read(), arrays[variable.key])
