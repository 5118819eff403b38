"""Slices of partitioned tensors, against the keys that TensorFlow itself writes."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from bnstat.errors import DamagedError
from bnstat.formats.protobuf.wire import WireError
from bnstat.formats.tensorflow.bundle import (
    FULL,
    TensorSlice,
    assemble,
    parse_slice,
    slice_key,
)
from bnstat.formats.tensorflow.sstable import Table
from bnstat.storage.local import LocalFile
from tests.builders import named

Dim = tuple[int, int, int]


@st.composite
def dims(draw: st.DrawFn) -> Dim:
    """(size, start, length) of one dimension: few elements, possibly far from 0."""
    start = draw(st.one_of(st.integers(0, 300), st.integers(0, 1 << 50)))
    length = draw(st.integers(1, 3))
    return start + length + draw(st.integers(1, 1 << 20)), start, length


def _keys(prefix: Path) -> list[bytes]:
    return [key for key, _ in Table(LocalFile(f"{prefix}.index")).items()]


@settings(deadline=None, max_examples=60)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.lists(dims(), min_size=1, max_size=3),
)
@example("bn/gamma", [(1 << 40, 63, 1)])
@example("bn/gamma", [(1 << 40, 64, 2)])
@example("bn/gamma", [(1 << 40, 8191, 1), (1 << 20, 8192, 1)])
@example("bn/gamma", [(1 << 60, (1 << 55) - 1, 1)])
@example("\u00ff\u0001/gamma", [(5, 2, 3)])
def test_keys_are_the_same_as_tensorflows(name: str, shape: list[Dim]) -> None:
    assume(math.prod(size for size, _, _ in shape) < 1 << 63)
    sizes = " ".join(str(size) for size, _, _ in shape)
    box = ":".join(f"{start},{length}" for _, start, length in shape)
    part = np.zeros([length for _, _, length in shape], np.int8)
    with tempfile.TemporaryDirectory() as folder:
        prefix = named.save_slices(Path(folder) / "m", [(name, f"{sizes} {box}", part)])
        keys = _keys(prefix)
    assert slice_key(name, TensorSlice(tuple((at, length) for _, at, length in shape))) in keys


def test_keys_of_whole_dimensions_and_escapes(tmp_path: Path) -> None:
    parts = [("bn\u00ff/kernel", f"4 6 -:{start},2", np.ones((4, 2))) for start in (0, 2, 4)]
    prefix = named.save_slices(tmp_path / "m", parts)
    expected = {
        slice_key("bn\u00ff/kernel", TensorSlice((FULL, (start, 2)))) for start in (0, 2, 4)
    }
    assert expected <= set(_keys(prefix))


def test_known_keys() -> None:
    assert slice_key("a\0b", TensorSlice((FULL, (78, 309)))) == bytes.fromhex(
        "00 61 00ff 62 0001 01 02 80 7f c04e c135"
    )
    assert slice_key("s", TensorSlice(())) == bytes.fromhex("00 73 0001 00")


@pytest.mark.parametrize(
    ("message", "extents"),
    [
        (b"", ()),
        (b"\x0a\x00", (FULL,)),
        (b"\x0a\x02\x10\x05", ((0, 5),)),
        (b"\x0a\x04\x08\x03\x10\x05\x0a\x00", ((3, 5), FULL)),
    ],
)
def test_parsing(message: bytes, extents: tuple[tuple[int, int], ...]) -> None:
    assert parse_slice(message).extents == extents


@pytest.mark.parametrize(
    "message", [b"\x0a", b"\x0a\x05", b"\x0a\x02\x0a\x00", b"\x0a\x02\x12\x00"]
)
def test_damaged_messages(message: bytes) -> None:
    with pytest.raises(WireError):
        parse_slice(message)


def _parts(*boxes: tuple[int, int]) -> list[tuple[TensorSlice, np.ndarray]]:
    return [
        (TensorSlice(((start, length),)), np.arange(start, start + length, dtype=np.float32))
        for start, length in boxes
    ]


def test_assembling() -> None:
    whole = assemble((9,), np.dtype(np.float32), _parts((5, 4), (0, 2), (2, 3)), "m")
    np.testing.assert_array_equal(whole, np.arange(9, dtype=np.float32))


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([(0, 4)], "do not make up the whole"),
        ([], "do not make up the whole"),
        ([(0, 5), (4, 4)], "overlap"),
        ([(0, 5), (5, 5)], "slice from 5 to 10 of 9"),
        ([(-1, 5), (4, 5)], "slice from -1"),
        ([(0, 9), (3, -2)], "slice from 3 to 1"),
    ],
)
def test_slices_that_do_not_fit(boxes: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(DamagedError, match=message):
        assemble((9,), np.dtype(np.float32), _parts(*boxes), "m")


@pytest.mark.parametrize(
    ("extent", "stop"), [((0, 9), 9), ((9, 0), 9), ((4, 0), 4), (FULL, 9), ((3, -1), 9)]
)
def test_slices_that_fit(extent: tuple[int, int], stop: int) -> None:
    assert TensorSlice((extent,)).box((9,), "m") == (slice(extent[0], stop),)


@pytest.mark.parametrize("extent", [(-1, 3), (0, 10), (9, 1), (10, 0), (3, -2), (10, -1)])
def test_slices_beyond_the_tensor(extent: tuple[int, int]) -> None:
    with pytest.raises(DamagedError, match="a slice from"):
        TensorSlice((extent,)).box((9,), "m")


def test_a_slice_of_another_rank() -> None:
    with pytest.raises(DamagedError, match="2 dimensions"):
        TensorSlice((FULL, FULL)).box((3,), "m")
