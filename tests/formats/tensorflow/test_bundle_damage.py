"""Damaged and hand-made bundles, and the names of their data files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnsupportedError
from bnstat.formats.tensorflow.bundle import Bundle, shard_names
from bnstat.storage.local import LocalFolder
from tests.builders import named, tables
from tests.builders.oracle import same_bits
from tests.formats.tensorflow.test_bundle import assert_reads_alike, opened


class Unlisted(LocalFolder):
    """A folder that cannot be listed, like a web server's."""

    can_list = False


def names_in(folder: Path, names: list[str], expected: int, prefix: str = "m") -> dict[int, str]:
    for name in names:
        (folder / name).touch()
    return shard_names(LocalFolder(str(folder)), prefix, expected)


def test_other_files_are_not_shards(tmp_path: Path) -> None:
    name = "m.data-00000-of-00001"
    beside = [f"{name}.tempstate123", "m.data-of", f"{name}.data-00000-of-00001", f"n{name[1:]}"]
    assert names_in(tmp_path, [name, *beside], 1) == {0: name}
    assert names_in(tmp_path, [], 1, prefix=name) == {0: f"{name}.data-00000-of-00001"}


def test_the_number_of_shards_in_the_header_is_preferred(tmp_path: Path) -> None:
    names = [f"m.data-{shard:05d}-of-{count:05d}" for count in (1, 2, 3) for shard in range(count)]
    assert names_in(tmp_path, names, 2) == {0: names[1], 1: names[2], 2: names[5]}
    assert names_in(tmp_path, [], 9) == {0: names[0], 1: names[2], 2: names[5]}


@pytest.mark.parametrize(("expected", "count"), [(2, 2), (1 << 40, 10_000)])
def test_names_in_a_folder_without_listing(tmp_path: Path, expected: int, count: int) -> None:
    names = shard_names(Unlisted(str(tmp_path)), "m", expected)
    assert list(names) == list(range(count))
    assert names[1] == f"m.data-00001-of-{expected:05d}"


FLOATS = np.arange(3, dtype=np.float32)
DATA = FLOATS.tobytes()


def test_a_hand_made_bundle(tmp_path: Path) -> None:
    prefix = tables.bundle(tmp_path, {"x": tables.entry(DATA, shape=[3])}, DATA)
    assert same_bits(assert_reads_alike(prefix).read("x"), FLOATS)


def test_big_endian_is_refused(tmp_path: Path) -> None:
    prefix = tables.bundle(
        tmp_path, {"x": tables.entry(DATA, shape=[3])}, DATA, tables.header(endianness=1)
    )
    with pytest.raises(BnstatError, match="big-endian"):
        opened(prefix)
    with pytest.raises(BnstatError, match="big-endian"):
        bnstat.load(prefix)


@pytest.mark.parametrize("reader", ["native", "auto"])
def test_a_bundle_for_newer_readers(tmp_path: Path, reader: Any) -> None:
    newer = tables.header(min_consumer=2)
    prefix = tables.bundle(tmp_path, {"x": tables.entry(DATA, shape=[3])}, DATA, newer)
    # No TensorFlow knows a version 2 yet: it cannot help either.
    with pytest.raises(UnsupportedError, match="needs a reader of bundle version 2"):
        bnstat.load(prefix, reader=reader)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (tables.entry(DATA, shape=[4]), "cannot hold"),
        (tables.entry(DATA, shape=[1 << 20, 1 << 20]), "cannot hold"),
        (tables.entry(DATA, shape=[1 << 40, 1 << 40]), "impossible shape"),
        (tables.entry(b"", shape=[0, 1 << 62]), "impossible shape"),
        (tables.entry(DATA, shape=[-3]), "impossible shape"),
        (tables.entry(DATA, shape=[-1]), "impossible shape"),
        (tables.entry(DATA, shape=[3] * 300), "impossible shape"),
        (tables.entry(DATA[:4], shape=[1] * 33), "impossible shape"),
        (tables.entry(DATA, shape=[1 << 29, 1 << 29]), "cannot hold"),
        (tables.entry(DATA, shape=[1 << 29, (1 << 29) + 1]), "impossible shape"),
        (tables.entry(DATA, shape=[3], offset=1), "truncated"),
        (tables.entry(DATA, shape=[3], offset=1 << 62), "truncated"),
        (tables.entry(DATA, shape=[3], offset=-1), "truncated"),
        (tables.entry(DATA, shape=[1 << 40], size=1 << 42), "truncated"),
        (tables.entry(DATA, shape=[3], crc=1), "fails its checksum"),
        (tables.entry(DATA, shape=[3], shard=1), "data file is missing"),
        (tables.entry(DATA, shape=[3], shard=-1), "data file is missing"),
        (tables.entry(DATA, shape=[3], dtype=99), "type 99"),
        (tables.entry(DATA, shape=[3], dtype=20), "resource"),
        (tables.entry(DATA, shape=[3])[:-1], "damaged"),
        (b"\x0f", "damaged"),
        (tables.entry(DATA, shape=[3]) + b"\x3a\x02\x0a\x00", "slice of it is missing"),
        (tables.entry(DATA, shape=[3]) + b"\x3a\x04\x0a\x02\x0a\x00", "damaged"),
    ],
)
def test_hostile_entries(tmp_path: Path, entry: bytes, message: str) -> None:
    prefix = tables.bundle(tmp_path, {"x": entry}, DATA)
    with pytest.raises(BnstatError, match=message):
        opened(prefix).read("x")


@pytest.mark.parametrize(
    ("entry", "shape"),
    [
        (tables.entry(shape=[1] * 32), (1,) * 32),
        (tables.entry(shape=[0, 1 << 58]), (0, 1 << 58)),
        # Dimensions of wrong types are omitted, or have size 0.
        (b"\x08\x01\x12\x02\x10\x05", ()),
        (b"\x08\x01\x12\x04\x12\x02\x0a\x00", ()),
        (b"\x08\x01\x12\x02\x12\x00", (0,)),
    ],
)
def test_extreme_shapes(tmp_path: Path, entry: bytes, shape: tuple[int, ...]) -> None:
    assert opened(tables.bundle(tmp_path, {"x": entry}, DATA)).entry("x").shape == shape


def test_many_tensors_over_the_same_bytes(tmp_path: Path) -> None:
    shared = np.zeros(1 << 16, np.float32).tobytes()
    entries = {f"x{number}": tables.entry(shared, shape=[1 << 16]) for number in range(9)}
    bundle = opened(tables.bundle(tmp_path, entries, shared))
    bundle.read("x0")
    bundle.read("x0")
    with pytest.raises(DamagedError, match="shares its bytes"):
        [bundle.read(key) for key in entries]


@pytest.mark.parametrize("head", [b"\x08", b"\x1a\x05", b"\x0f"])
def test_damaged_headers(tmp_path: Path, head: bytes) -> None:
    with pytest.raises(DamagedError, match="header"):
        opened(tables.bundle(tmp_path, {}, b"", head))


@pytest.mark.parametrize("head", [b"\x0a\x00", b"\x18\x05", b"\x1a\x02\x12\x00", b""])
def test_header_fields_of_other_types_are_ignored(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "m.index").write_bytes(
        tables.table({b"": head, b"x": tables.entry(DATA, shape=[3])})
    )
    (tmp_path / "m.data-00000-of-00001").write_bytes(DATA)
    assert same_bits(opened(tmp_path / "m").read("x"), FLOATS)
    assert Bundle(Unlisted(str(tmp_path)), "m", data=True).entry("x").shape == (3,)


def test_a_bundle_of_the_current_version(tmp_path: Path) -> None:
    head = tables.header(min_consumer=1)
    prefix = tables.bundle(tmp_path, {"x": tables.entry(DATA, shape=[3])}, DATA, head)
    assert same_bits(opened(prefix).read("x"), FLOATS)


def test_the_file_that_fails_its_checksum_is_named(tmp_path: Path) -> None:
    prefix = tables.bundle(tmp_path, {"a/x": tables.entry(DATA, shape=[3], crc=1)}, DATA)
    with pytest.raises(DamagedError, match=r"/m\.data-00000-of-00001, a/x: the data fails its"):
        opened(prefix).read("a/x")


def test_a_missing_index(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"/none\.index: .*index file is missing"):
        opened(tmp_path / "none")


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"\xff", {}, "the string's length"),
        (b"", {}, "the string's length"),
        (tables.varint(4) + b"abc", {}, "does not fit its tensor"),
        (DATA, {"dtype": 1}, "is not a single string"),
        (DATA, {"shape": [1]}, "is not a single string"),
    ],
)
def test_damaged_strings(tmp_path: Path, data: bytes, options: Any, message: str) -> None:
    entry = tables.entry(data, **{"dtype": 7, **options})
    with pytest.raises(DamagedError, match=message):
        opened(tables.bundle(tmp_path, {"s": entry}, data)).read_string("s")


def test_a_table_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "m.index").write_bytes(tables.table({b"x": b""}))
    with pytest.raises(DamagedError, match="not a checkpoint's index"):
        opened(tmp_path / "m")


def test_pointers_instead_of_data(tmp_path: Path) -> None:
    prefix = named.save(tmp_path / "m", {"a": np.ones(1000)})
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    Path(f"{prefix}.data-00000-of-00001").write_bytes(text)
    with pytest.raises(DamagedError, match="git-lfs pointer"):
        opened(prefix).read("a")
    prefix = named.save(tmp_path / "n", {"a": np.ones(2)})
    Path(f"{prefix}.data-00000-of-00001").write_bytes(text)
    with pytest.raises(DamagedError, match="git-lfs pointer"):
        opened(prefix).read("a")


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    tensors = {"a": np.arange(5.0), "b": np.arange(3, dtype=np.int8), "s": b"string"}
    prefix = named.save(tmp_path / "m", tensors)
    data = Path(f"{prefix}.data-00000-of-00001")
    whole = data.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 0x10
        data.write_bytes(changed)
        failed = 0
        bundle = opened(prefix)
        for key in tensors:
            try:
                bundle.read_string(key) if key == "s" else bundle.read(key)
            except DamagedError:
                failed += 1
        assert failed == 1


def test_a_key_that_cannot_be_names_in(tmp_path: Path) -> None:
    """A damaged index may list a key where no search finds it."""
    bundle = opened(named.save(tmp_path / "m", {"a": [1.0]}))
    with pytest.raises(DamagedError, match="b: the index has no such entry"):
        bundle.entry("b")
    variables = bundle.variables({})
    assert variables.get("b") is None
    assert variables.get("b", 1) == 1
    assert variables.get("a") == variables["a"]
