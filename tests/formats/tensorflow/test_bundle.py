"""Tensor bundles: what TensorFlow writes is read to the bit, whatever else comes is refused."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import bnstat
from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnsupportedError
from bnstat.formats.tensorflow.bundle import Bundle
from bnstat.storage.local import LocalFolder
from tests.builders import named, tables
from tests.builders.oracle import same_bits

DTYPES = [
    "float32", "float64", "int32", "uint8", "int16", "int8", "complex64", "int64", "bool",
    "bfloat16", "uint16", "complex128", "float16", "uint32", "uint64", "float8_e5m2",
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz", "float8_e5m2fnuz", "int4", "uint4",
]  # fmt: skip


def opened(prefix: Path, data: bool = True) -> Bundle:
    return Bundle(LocalFolder(str(prefix.parent)), prefix.name, data)


def assert_reads_alike(prefix: Path) -> Bundle:
    """The bundle has the keys, shapes, types and bits that TensorFlow reads."""
    reader = tf.train.load_checkpoint(str(prefix))
    bundle = opened(prefix)
    variables = bundle.variables({})
    shapes = reader.get_variable_to_shape_map()
    assert set(bundle.keys) == set(shapes)
    for key, shape in shapes.items():
        expected = reader.get_tensor(key)
        if isinstance(expected, bytes) or expected.dtype == object:
            continue
        assert variables[key].shape == tuple(shape)
        assert variables[key].dtype == expected.dtype.name
        assert same_bits(bundle.read(key), expected), key
    return bundle


# A key that starts with NUL is a slice's.
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda name: name[0] != "\0"
)
ARRAYS = st.sampled_from(["f4", "f8", "i4", "u1", "i2", "i8", "c8", "?"]).flatmap(
    lambda kind: arrays_of.arrays(
        np.dtype(kind), arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    )
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=8))
def test_round_trip_through_tensorflow(tensors: Mapping[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = assert_reads_alike(named.save(Path(folder) / "m", tensors))
        for name, array in tensors.items():
            assert same_bits(bundle.read(name), array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_types(tmp_path: Path, dtype: str) -> None:
    kind = tf.as_dtype(dtype).as_numpy_dtype
    values = np.arange(7).astype(kind)
    prefix = named.save(
        tmp_path / "m", {"x": values, "flag": np.bool_(1), "y": values.reshape(7, 1)}
    )
    assert_reads_alike(prefix)


def test_quantized_types_are_the_integers_that_they_are_stored_as(tmp_path: Path) -> None:
    values = np.arange(-3, 4)
    tensors = {
        name: tf.bitcast(tf.constant(values.astype(plain)), getattr(tf, name))
        for name, plain in [("qint8", "int8"), ("quint8", "uint8"), ("qint16", "int16"),
                            ("quint16", "uint16"), ("qint32", "int32")]
    }  # fmt: skip
    prefix = named.save(tmp_path / "m", tensors)
    bundle = opened(prefix)
    for name in tensors:
        plain = name.removeprefix("q")
        assert bundle.variables({})[name].dtype == name
        assert same_bits(bundle.read(name), values.astype(plain))


def test_numbers_at_odd_offsets(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {"a": np.int8(1)}
    for number, kind in enumerate(("f8", "f4", "c16", "i8")):
        tensors[f"b{number}"] = np.arange(3).astype(kind)
        tensors[f"b{number}x"] = np.int8(number)
    bundle = assert_reads_alike(named.save(tmp_path / "m", tensors))
    assert {bundle.entry(key).offset % 2 for key in bundle.keys} == {0, 1}


def test_strings_are_listed_but_are_no_numbers(tmp_path: Path) -> None:
    prefix = named.save(tmp_path / "m", {"one": b"text\0\xff", "two": np.array([b"a", b"b"])})
    bundle = opened(prefix)
    assert bundle.variables({})["one"].dtype == "string"
    assert bundle.read_string("one") == b"text\0\xff"
    with pytest.raises(DamagedError, match="not a single string"):
        bundle.read_string("two")
    with pytest.raises(UnsupportedError, match="string"):
        bundle.read("one")


def test_long_strings(tmp_path: Path) -> None:
    for length in (0, 1, 127, 128, 70000):
        prefix = named.save(tmp_path / f"m{length}", {"s": b"x" * length})
        assert opened(prefix).read_string("s") == b"x" * length


def test_slices_in_several_shards(tmp_path: Path) -> None:
    whole = np.arange(6 * 5, dtype=np.float64).reshape(6, 5)
    folder = tmp_path / "m_temp"
    folder.mkdir()
    parts = []
    for number, rows in enumerate((slice(0, 2), slice(2, 3), slice(3, 6))):
        part = str(folder / f"part-{number:05d}-of-00003")
        spec = f"6 5 {rows.start},{rows.stop - rows.start}:-"
        named.save_slices(part, [("kernel", spec, whole[rows])])
        parts.append(part)
    prefix = tmp_path / "m"
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(prefix))
    assert same_bits(assert_reads_alike(prefix).read("kernel"), whole)


def test_slices_of_half_that_tensorflow_cannot_put_together(tmp_path: Path) -> None:
    whole = np.arange(6).astype(np.float16)
    parts = [("x", f"6 {start},3", whole[start : start + 3]) for start in (0, 3)]
    prefix = named.save_slices(tmp_path / "m", parts)
    assert same_bits(opened(prefix).read("x"), whole)


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    prefix = named.save(tmp_path / "m", {"a": np.ones(10), "big": np.ones(1 << 18)})
    bundle = opened(prefix)
    entry = bundle.entry("a")
    data = Path(f"{prefix}.data-00000-of-00001")
    damaged = bytearray(data.read_bytes())
    other = bundle.entry("big").offset
    damaged[other : other + 100] = bytes(100)
    data.write_bytes(damaged)
    assert entry.size == 80
    assert same_bits(opened(prefix).read("a"), np.ones(10))
    with pytest.raises(DamagedError, match="fails its checksum"):
        opened(prefix).read("big")


def test_a_deleted_checkpoint_is_still_read_whole(tmp_path: Path) -> None:
    prefix = named.save(tmp_path / "m", {"a": np.ones(10)})
    bundle = opened(prefix)
    for file in tmp_path.iterdir():
        file.unlink()
    assert same_bits(bundle.read("a"), np.ones(10))


def test_without_data_files(tmp_path: Path) -> None:
    prefix = named.save(tmp_path / "m", {"a": np.ones(10)})
    Path(f"{prefix}.data-00000-of-00001").unlink()
    for data in (True, False):
        bundle = opened(prefix, data)
        assert bundle.variables({})["a"].shape == (10,)
        with pytest.raises(NotFoundError, match=r"data-00000-of-00001: .*data file is missing"):
            bundle.read("a")


def test_a_missing_shard(tmp_path: Path) -> None:
    prefix = named.save_shards(tmp_path / "m", [{"a": np.ones(3)}, {"b": np.zeros(3)}])
    Path(f"{prefix}.data-00001-of-00002").unlink()
    bundle = opened(prefix)
    assert same_bits(bundle.read("a"), np.ones(3))
    with pytest.raises(NotFoundError, match="data-00001-of-00002"):
        bundle.read("b")


def test_shards_of_an_earlier_save_beside_it(tmp_path: Path) -> None:
    prefix = named.save(tmp_path / "m", {"a": np.zeros(3), "b": np.zeros(3)})
    named.save_shards(tmp_path / "m", [{"a": np.ones(3)}, {"b": np.full(3, 2.0)}])
    assert len(list(tmp_path.glob("m.data-*"))) == 3
    assert_reads_alike(prefix)


@pytest.mark.parametrize(
    "prefix", ["", "a.b.pth.tar", "with space", "ä\u4e2d", "m.data-00000-of-00001"]
)
def test_prefixes(tmp_path: Path, prefix: str) -> None:
    saved = named.save(tmp_path / "saved", {"a": np.ones(3)})
    for ending in (".index", ".data-00000-of-00001"):
        Path(f"{saved}{ending}").rename(tmp_path / f"{prefix}{ending}")
    bundle = Bundle(LocalFolder(str(tmp_path)), prefix)
    assert same_bits(bundle.read("a"), np.ones(3))


FLOATS = np.arange(3, dtype=np.float32)
DATA = FLOATS.tobytes()


def test_a_hand_made_bundle_is_what_tensorflow_reads(tmp_path: Path) -> None:
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
        (tables.entry(DATA, shape=[3] * 300), "impossible shape"),
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


def test_a_table_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "m.index").write_bytes(tables.table({b"x": b""}))
    with pytest.raises(DamagedError, match="no checkpoint's index"):
        opened(tmp_path / "m")


def test_pointers_in_place_of_the_data(tmp_path: Path) -> None:
    prefix = named.save(tmp_path / "m", {"a": np.ones(1000)})
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    Path(f"{prefix}.data-00000-of-00001").write_bytes(text)
    with pytest.raises(DamagedError, match="git-lfs pointer"):
        opened(prefix).read("a")
    prefix = named.save(tmp_path / "n", {"a": np.ones(2)})
    Path(f"{prefix}.data-00000-of-00001").write_bytes(text)
    with pytest.raises(DamagedError, match="git-lfs pointer"):
        opened(prefix).read("a")


def test_every_changed_byte_of_the_data_is_noticed(tmp_path: Path) -> None:
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


def test_a_key_that_cannot_be_found(tmp_path: Path) -> None:
    """Damage can list a key where no search comes to it."""
    bundle = opened(named.save(tmp_path / "m", {"a": [1.0]}))
    with pytest.raises(DamagedError, match="b: the index has no such entry"):
        bundle.entry("b")
    variables = bundle.variables({})
    assert variables.get("b") is None
    assert variables.get("a") is variables["a"]
