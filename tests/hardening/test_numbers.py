"""Numbers that overflow or claim terabytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from tests.builders import tables
from tests.fuzz import handmade, wire
from tests.fuzz.wire import Field, encode
from tests.hardening.support import Judge, layers, write

VAST = (2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def _bundle_with(**changes: Any) -> dict[str, bytes]:
    """A layer with changes to the entry of its gamma."""
    files = handmade.bundle(layers())
    numbers = {"dtype": 1, "shard": 3, "offset": 4, "size": 5}
    more = b"".join(encode([Field(numbers[k], 0, v)]) for k, v in changes.items() if k in numbers)
    for size in changes.get("shape", ()):
        more += encode([Field(2, 2, encode([Field(2, 2, encode([Field(1, 0, size)]))]))])
    entries = [
        (key, value + more * (key == b"bn/gamma"))
        for key, value in wire.read_table(files["m.index"])
    ]
    return {**files, "m.index": wire.write_table(entries)}


@pytest.mark.parametrize("number", VAST)
@pytest.mark.parametrize("what", ["shard", "offset", "size"])
def test_an_entry_outside_its_file(what: str, number: int, tmp_path: Path, judged: Judge) -> None:
    assert judged(write(tmp_path, _bundle_with(**{what: number}))).startswith("error")


@pytest.mark.parametrize(
    "shape",
    [(n,) for n in VAST] + [(2**32, 2**32), (2**21,) * 3, (2,) * 64, (2**63 - 1, 0)],
    ids=str,
)
def test_an_entry_of_an_impossible_shape(
    shape: tuple[int, ...], tmp_path: Path, judged: Judge
) -> None:
    files = _bundle_with(shape=shape)
    assert judged(write(tmp_path, files)).startswith("error") or 0 in shape


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 4])
def test_tensors_that_share_their_bytes_do_not_multiply(
    size: int, tmp_path: Path, judged: Judge
) -> None:
    """50,000 tensors of the same 4 MB would be 200 GB."""
    data = b"\0" * (4 << 20 if size else 0)
    entry = tables.entry(data, shape=(len(data) // 4,))
    names = [f"bn{i}/{role}" for i in range(12_500) for role in handmade.ROLES]
    entries = {b"": tables.header(), **{name.encode(): entry for name in names}}
    files = {
        "m.index": wire.write_table(sorted(entries.items())),
        "m.data-00000-of-00001": data,
    }
    assert judged(write(tmp_path, files)).startswith("error" if size else "answer")


@pytest.mark.parametrize("number", VAST)
def test_a_header_that_claims_any_number_of_shards(
    number: int, tmp_path: Path, judged: Judge
) -> None:
    files = handmade.bundle(layers())
    entries = dict(wire.read_table(files["m.index"]))
    entries[b""] = tables.header(number)
    files["m.index"] = wire.write_table(sorted(entries.items()))
    judged(write(tmp_path, files))


@pytest.mark.parametrize("shards", ["00001-of-99999", "99999-of-99999"])
def test_a_v1_name_that_claims_any_number_of_shards(
    shards: str, tmp_path: Path, judged: Judge
) -> None:
    path = tmp_path / f"m.ckpt-{shards}"
    path.write_bytes(handmade.v1())
    assert judged(path).startswith("error")


@pytest.mark.parametrize("number", VAST)
def test_block_handles_that_point_anywhere(number: int, tmp_path: Path, judged: Judge) -> None:
    files = handmade.bundle(layers())
    index = files["m.index"]
    for handles in (
        tables.varint(0) * 2 + tables.varint(number) + tables.varint(10),
        tables.varint(0) * 2 + tables.varint(10) + tables.varint(number),
    ):
        footer = handles[:40].ljust(40, b"\0") + tables.MAGIC
        files["m.index"] = index[: -tables.FOOTER] + footer
        assert judged(write(tmp_path, files)).startswith("error")


def test_an_index_that_repeats_a_block(tmp_path: Path, judged: Judge) -> None:
    contents = tables.block([(b"key%d" % i, b"x" * 100) for i in range(10_000)])
    data = tables.on_disk(contents)
    handle = tables.varint(0) + tables.varint(len(contents))
    index = tables.block([(b"%08d" % i, handle) for i in range(100_000)], 1)
    footer = tables.varint(0) * 2 + tables.varint(len(data)) + tables.varint(len(index))
    table = data + tables.on_disk(index) + footer.ljust(40, b"\0") + tables.MAGIC
    assert judged(write(tmp_path, {"m.index": table})).startswith("error")


def test_keys_that_grow_by_sharing(tmp_path: Path, judged: Judge) -> None:
    """Each key is the one before and a byte: 4 MB of entries would be terabytes of keys."""
    contents = bytearray()
    for length in range(1_000_000):
        contents += tables.varint(length) + tables.varint(1) + tables.varint(0) + b"a"
    contents += bytes(4) + (1).to_bytes(4, "little")
    table = wire.table([(b"b", bytes(contents))])
    assert judged(write(tmp_path, {"m.index": table})).startswith("error")


@pytest.mark.parametrize("claim", [2**20, 2**32, 2**63])
def test_a_snappy_block_that_claims_more_than_it_makes(
    claim: int, tmp_path: Path, judged: Judge
) -> None:
    block = tables.varint(claim) + b"\0a" + b"\xfe\1\0" * 1000
    whole = wire.table([(b"\xff", block)])
    table = tables.on_disk(block, 1) + whole[len(block) + 5 :]
    assert judged(write(tmp_path, {"m.index": table})).startswith("error")


def test_a_v1_tensor_that_claims_terabytes(tmp_path: Path, judged: Judge) -> None:
    for size in VAST:
        shape = encode([Field(2, 2, encode([Field(1, 0, size)]))])
        meta = [Field(1, 2, b"bn/moving_mean"), Field(2, 2, shape), Field(3, 0, 1)]
        meta += [Field(4, 2, encode([Field(1, 2, b"")]))] * 1000
        header = encode([Field(1, 2, encode([Field(1, 2, encode(meta))]))])
        path = tmp_path / "m.ckpt"
        path.write_bytes(wire.write_table([(b"", header)]))
        judged(path)


def test_variables_that_do_not_fit_together_are_not_broadcast(tmp_path: Path) -> None:
    tensors: dict[str, np.ndarray] = {f"bn/{role}": np.ones(6) for role in handmade.ROLES}
    for shape in ((1,), (2, 3), (6, 6)):
        tensors["bn/gamma"] = np.ones(shape)
        (layer,) = bnstat.load(write(tmp_path, handmade.bundle(tensors)))
        with pytest.raises(bnstat.DamagedError, match="different shapes"):
            layer.scale_and_shift(epsilon=1e-3)
        with pytest.raises(bnstat.DamagedError, match="different shapes"):
            layer.normalize(np.ones((2, 6)), epsilon=1e-3)
    tensors["bn/gamma"] = np.ones((6, 1))
    (layer,) = bnstat.load(write(tmp_path, handmade.bundle(tensors)))
    assert [array.shape for array in layer.scale_and_shift(epsilon=1e-3)] == [layer.shape] * 2
