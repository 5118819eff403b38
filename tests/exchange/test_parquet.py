"""Values in Parquet tables, also of other writers, and hostile tables."""

from __future__ import annotations

import contextlib
import io
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.exchange import parquet as exported_parquet
from tests.builders.memory import MemoryFile
from tests.mending.exported import fitted, layer, model

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TWO = {"layer": ["bn", "bn"], "channel": ["0", "1"], "gamma": [1.0, 2.0]}
TWICE = {**TWO, "channel": ["0", "0"]}


def table(columns: Any) -> MemoryFile:
    written = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), written, compression="zstd")
    return MemoryFile(written.getvalue(), "v.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1]}, "no columns 'layer' and 'channel'"),
        (TWICE, "row 2: channel '0' is listed a second time"),
        ({**TWO, "gamma": ["a", "b"]}, "not a number"),
        ({**TWO, "gamma": [1, 2]}, "row 1: has a cell that is not a number"),
        ({**TWO, "gamma": [[1.0], [2.0]]}, "column 'gamma' contains neither text nor numbers"),
        ({**TWO, "gamma": [b"1", b"2"]}, "column 'gamma' contains neither text nor numbers"),
        ({**TWO, "channel": [0, 1]}, "its layer or channel is missing or is not text"),
        ({**TWO, "layer": ["bn", None]}, "its layer or channel is missing or is not text"),
        ({**TWO, "gamma": [None, 1.0]}, "gamma is empty"),
    ],
)
def test_invalid_tables(columns: Any, message: str, tmp_path: Path) -> None:
    of = model(layer("bn", gamma=np.ones(2, "f4")))
    path = tmp_path / "v.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(bnstat.DamagedError, match=message):
        fitted(of, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(bnstat.DamagedError, match="not a valid Parquet file"):
        fitted(of, path)


def test_without_pyarrow(monkeypatch: Any) -> None:
    file = table(TWO)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(bnstat.UnsupportedError, match="pip install pyarrow"):
        exported_parquet.read(file)


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_all_types_of_text(kind: str) -> None:
    names = pyarrow.array(["bn", "bn"])
    of_kind = names.dictionary_encode() if kind == "dictionary" else names.cast(kind)
    columns = {**TWO, "layer": of_kind, "beta": pyarrow.nulls(2), "moving_mean": ["0.1", " 2 "]}
    given = exported_parquet.read(table(columns)).layers["bn"]
    assert {role: each.array.tolist() for role, each in given.items()} == {
        "gamma": [1.0, 2.0],
        "moving_mean": ["0.1", "2"],
    }


def test_a_long_text_of_many_rows_is_in_memory_once() -> None:
    rows = 256
    columns = {"layer": ["a" * (1 << 20)] * rows, "channel": [str(row) for row in range(rows)]}
    file = table({**columns, "gamma": np.ones(rows)})
    assert file.size < 1 << 13
    tracemalloc.start()
    try:
        (name,) = exported_parquet.read(file).layers
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(name) == 1 << 20
    assert peak < 16 << 20


@pytest.mark.parametrize("is_hidden", [False, True])
def test_texts_that_are_too_large(is_hidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that claims to be small is refused as soon as more has been read."""
    monkeypatch.setattr(exported_parquet, "_MOST_BYTES", 1 << 19)
    file = table({**TWO, "layer": ["a" * (1 << 20)] * 2})
    data = file.read()
    claimed = parquet.read_metadata(io.BytesIO(data)).row_group(0).total_byte_size
    if is_hidden:
        before, after = varint(2 * claimed), b"\x80\x80\x80\x00"
        start, found, end = data.rpartition(before)
        assert found
        file = MemoryFile(start + after + end, "v.parquet")
        assert parquet.read_metadata(io.BytesIO(file.read())).row_group(0).total_byte_size == 0
    with pytest.raises(bnstat.UnsupportedError, match=r"v\.parquet: is above the limit of 1 GiB"):
        exported_parquet.read(file)


def test_every_damaged_byte_of_the_columns() -> None:
    """pyarrow itself does not notice an index beyond the end of a dictionary."""
    rows = 40
    columns = {"layer": ["bn"] * rows, "channel": [str(row) for row in range(rows)]}
    data = table({**columns, "gamma": np.ones(rows, "f4")}).read()
    footer = int.from_bytes(data[-8:-4], "little")
    problems = []
    for at in range(4, len(data) - 8 - footer):
        damaged = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        with contextlib.suppress(bnstat.UnsupportedError):
            try:
                exported_parquet.read(MemoryFile(damaged, "v.parquet"))
            except bnstat.DamagedError as error:
                problems.append(str(error))
    assert any("indices invalid" in problem for problem in problems)


def varint(number: int) -> bytes:
    """A number of Thrift's compact protocol, 7 bits per byte."""
    more = bytearray()
    while number > 0x7F:
        more.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*more, number])
