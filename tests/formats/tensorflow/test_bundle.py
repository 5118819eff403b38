"""Tensor bundles: read bit for bit as TensorFlow writes them, in slices, and damaged."""

from __future__ import annotations

import math
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import bnstat
from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnsupportedError
from bnstat.formats.tensorflow.bundle import Bundle, assemble, box_of, shard_names, slice_key
from bnstat.formats.tensorflow.sstable import Table
from bnstat.storage.files import File
from bnstat.storage.local import LocalFile, LocalFolder
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
    variables = bundle.variables()
    shapes = reader.get_variable_to_shape_map()
    assert set(variables) == set(shapes)
    for key, shape in shapes.items():
        expected = reader.get_tensor(key)
        if isinstance(expected, bytes) or expected.dtype == object:
            continue
        assert variables[key].shape == tuple(shape)
        assert variables[key].dtype == expected.dtype.name
        assert same_bits(bundle.read(key), expected), key
    return bundle


# Keys that start with NUL are of slices.
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
    values = np.arange(7).astype(tf.as_dtype(dtype).as_numpy_dtype)
    tensors = {"x": values, "flag": np.bool_(1), "y": values.reshape(7, 1)}
    assert_reads_alike(named.save(tmp_path / "m", tensors))


@pytest.mark.parametrize("name", ["qint8", "quint8", "qint16", "quint16", "qint32"])
def test_quantized_types_are_read_as_integers(tmp_path: Path, name: str) -> None:
    values = np.arange(-3, 4).astype(name.removeprefix("q"))
    bundle = opened(named.save(tmp_path / "m", {"x": tf.bitcast(values, getattr(tf, name))}))
    assert bundle.variables()["x"].dtype == name
    assert same_bits(bundle.read("x"), values)


@pytest.mark.parametrize("text", [b"te\0\xff", *(b"x" * size for size in (0, 1, 127, 128, 70000))])
def test_strings(tmp_path: Path, text: bytes) -> None:
    prefix = named.save(tmp_path / "m", {"one": text, "two": np.array([b"a", b"b"])})
    bundle = opened(prefix)
    assert bundle.variables()["one"].dtype == "string"
    assert bundle.variables()["one"].extents() == []
    assert bundle.read_string("one") == text
    with pytest.raises(DamagedError, match="not a single string"):
        bundle.read_string("two")
    with pytest.raises(UnsupportedError, match="string"):
        bundle.read("one")


def test_slices_in_several_shards(tmp_path: Path) -> None:
    whole = np.arange(6 * 5, dtype=np.float64).reshape(6, 5)
    (tmp_path / "parts").mkdir()
    parts = []
    for at, size in ((0, 2), (2, 1), (3, 3)):
        part = ("kernel", f"6 5 {at},{size}:-", whole[at : at + size])
        parts.append(str(named.save_slices(tmp_path / f"parts/{at}", [part])))
    prefix = tmp_path / "m"
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(prefix))
    assert same_bits(assert_reads_alike(prefix).read("kernel"), whole)


def test_slices_of_half_that_tensorflow_cannot_assemble(tmp_path: Path) -> None:
    whole = np.arange(6).astype(np.float16)
    parts = [("x", f"6 {start},3", whole[start : start + 3]) for start in (0, 3)]
    prefix = named.save_slices(tmp_path / "m", parts)
    assert same_bits(opened(prefix).read("x"), whole)


def test_only_requested_tensors_are_read(tmp_path: Path) -> None:
    prefix = named.save(tmp_path / "m", {"a": np.ones(10), "big": np.ones(1 << 18)})
    data = Path(f"{prefix}.data-00000-of-00001")
    damaged = bytearray(data.read_bytes())
    other = opened(prefix).entry("big").offset
    damaged[other : other + 100] = bytes(100)
    data.write_bytes(damaged)
    assert same_bits(opened(prefix).read("a"), np.ones(10))
    with pytest.raises(DamagedError, match="fails its checksum"):
        opened(prefix).read("big")


def test_a_checkpoint_that_is_overwritten_or_deleted_is_still_read(tmp_path: Path) -> None:
    bundle = opened(named.save(tmp_path / "m", {"a": np.ones(10)}))
    index = tmp_path / "m.index"
    index.write_bytes(bytes(index.stat().st_size))
    for file in tmp_path.iterdir():
        file.unlink()
    assert list(bundle.variables()) == ["a"]
    assert same_bits(bundle.read("a"), np.ones(10))


@pytest.mark.parametrize("data", [True, False])
def test_without_data_files(tmp_path: Path, data: bool) -> None:
    prefix = named.save(tmp_path / "m", {"a": np.ones(10)})
    (tmp_path / "m.data-00000-of-00001").unlink()
    bundle = opened(prefix, data)
    assert bundle.variables()["a"].shape == (10,)
    with pytest.raises(NotFoundError, match=r"data-00000-of-00001: .*data file is missing"):
        bundle.read("a")


def test_few_of_many_shards_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnstat.formats.tensorflow.bundle._MAX_OPEN", 2)
    made: list[weakref.ref[File]] = []
    expected: list[str] = []

    class Watched(LocalFolder):
        def expect(self, names: Iterable[str]) -> None:
            expected.extend(names)

        def file(self, name: str) -> File | None:
            file = super().file(name)
            if file is not None and ".data-" in name:
                made.append(weakref.ref(file))
            return file

    shards = [{f"x{number}": np.full(3, number)} for number in range(5)]
    prefix = named.save_shards(tmp_path / "m", shards).name
    assert len(Bundle(Watched(str(tmp_path)), prefix, data=False).variables()) == 5
    assert made == expected == []
    bundle = Bundle(Watched(str(tmp_path)), prefix, data=True)
    assert expected == [f"m.data-0000{number}-of-00005" for number in range(2)]
    for number in range(5):
        assert same_bits(bundle.read(f"x{number}"), np.full(3, number))
    assert len(made) == 2 + 3, "the others are opened when they are read"
    assert sum(each() is not None for each in made) == 2


def test_shards_of_an_earlier_save_beside_it(tmp_path: Path) -> None:
    prefix = named.save(tmp_path / "m", {"a": np.zeros(3), "b": np.zeros(3)})
    named.save_shards(tmp_path / "m", [{"a": np.ones(3)}, {"b": np.full(3, 2.0)}])
    assert len(list(tmp_path.glob("m.data-*"))) == 3
    assert_reads_alike(prefix)


def test_keys(tmp_path: Path) -> None:
    halves = [("x", f"6 {start},3", np.arange(3.0)) for start in (0, 3)]
    bundle = opened(named.save_slices(tmp_path / "m", halves))
    stored = dict(Table(LocalFile(tmp_path / "m.index")).items())
    assert [key[:1] for key in stored] == [b"", b"\0", b"\0", b"x"]
    keys = bundle.variables()
    assert (list(keys), len(keys)) == (["x"], 1)
    for key in stored:
        assert (key.decode("utf-8", "surrogateescape") in keys) is (key == b"x")
    assert not any(key in keys for key in ("y", "", b"x", 1, None))


Dim = tuple[int, int, int]


@st.composite
def dims(draw: st.DrawFn) -> Dim:
    """(size, start, length) of one dimension: few elements, possibly far from 0."""
    start = draw(st.one_of(st.integers(0, 300), st.integers(0, 1 << 50)))
    length = draw(st.integers(1, 3))
    return start + length + draw(st.integers(1, 1 << 20)), start, length


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
        keys = [key for key, _ in Table(LocalFile(f"{prefix}.index")).items()]
    assert slice_key(name, tuple((at, length) for _, at, length in shape)) in keys


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([(0, 4, 4)], "do not make up the whole"),
        ([], "do not make up the whole"),
        ([(0, 5, 5), (4, 8, 4)], "overlap"),
        ([(0, 5, 4), (5, 9, 5)], r"m: has 4 values in a slice of shape \[5\]"),
    ],
)
def test_parts_that_do_not_fit(parts: list[tuple[int, int, int]], message: str) -> None:
    stored = [((slice(start, stop),), np.zeros(count, "f4")) for start, stop, count in parts]
    with pytest.raises(DamagedError, match=message):
        assemble((9,), np.dtype("f4"), stored, "m")


@pytest.mark.parametrize(
    ("extent", "stop"),
    [((0, 9), 9), ((9, 0), 9), ((4, 0), 4), ((0, -1), 9), ((3, -1), 9), ((-1, 3), None),
     ((0, 10), None), ((9, 1), None), ((10, 0), None), ((3, -2), None), ((10, -1), None)],
)  # fmt: skip
def test_slices_are_within_the_tensor(extent: tuple[int, int], stop: int | None) -> None:
    if stop is not None:
        assert box_of((extent,), (9,), "m") == (slice(extent[0], stop),)
        return
    with pytest.raises(DamagedError, match="a slice from"):
        box_of((extent,), (9,), "m")
    with pytest.raises(DamagedError, match="2 dimensions"):
        box_of((extent, extent), (9,), "m")


# Damaged and hand-made bundles, and the names of their data files


class Unlisted(LocalFolder):
    """A folder that cannot be listed, like a web server's."""

    can_list = False


SHARDS = [f"m.data-{shard:05d}-of-{count:05d}" for count in (1, 2, 3) for shard in range(count)]
ONE = SHARDS[0]
BESIDE = [f"{ONE}.tempstate123", "m.data-of", f"{ONE}.data-00000-of-00001", f"n{ONE[1:]}"]


@pytest.mark.parametrize(
    ("names", "prefix", "count", "expected"),
    [
        ([ONE, *BESIDE], "m", 1, [ONE]),
        ([ONE, *BESIDE], ONE, 1, [f"{ONE}.data-00000-of-00001"]),
        (SHARDS, "m", 2, [SHARDS[1], SHARDS[2], SHARDS[5]]),
        (SHARDS, "m", 9, [SHARDS[0], SHARDS[2], SHARDS[5]]),
    ],
)
def test_names_of_shards(tmp_path, names, prefix, count, expected):
    for name in names:
        (tmp_path / name).touch()
    assert shard_names(LocalFolder(str(tmp_path)), prefix, count) == dict(enumerate(expected))


@pytest.mark.parametrize(("expected", "count"), [(2, 2), (1 << 40, 10_000)])
def test_names_in_a_folder_without_listing(tmp_path: Path, expected: int, count: int) -> None:
    names = shard_names(Unlisted(str(tmp_path)), "m", expected)
    assert list(names) == list(range(count))
    assert names[1] == f"m.data-00001-of-{expected:05d}"


VAST = (2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63), -1)
QUARTERS = [n >> 2 for n in VAST]
IMPOSSIBLE = ([1 << 40, 1 << 40], [-3], [-1], [3] * 300, [1 << 29, (1 << 29) + 1])
FLOATS = np.arange(3, dtype=np.float32)
DATA = FLOATS.tobytes()
HEADS = [b"\x0a\x00", b"\x18\x05", b"\x1a\x02\x12\x00", b"", tables.header(min_consumer=1)]


def test_tensorflow_reads_a_big_endian_bundle(tmp_path: Path) -> None:
    header, data = tables.header(endianness=1), FLOATS.astype(">f4").tobytes()
    prefix = tables.bundle(tmp_path, {"x": tables.entry(data, shape=[3])}, data, header)
    with pytest.raises(UnsupportedError, match=r"big-endian.*--reader tensorflow"):
        bnstat.load(prefix, reader="native")
    assert same_bits(bnstat.load(prefix).stored["x"].read(), FLOATS)


def test_a_bundle_for_newer_readers(tmp_path: Path) -> None:
    newer = tables.header(min_consumer=2)
    prefix = tables.bundle(tmp_path, {"x": tables.entry(DATA, shape=[3])}, DATA, newer)
    # No TensorFlow knows a version 2 yet: the reader "auto" cannot help either.
    with pytest.raises(UnsupportedError, match="has bundle version 2, which bnstat cannot read"):
        bnstat.load(prefix)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (tables.entry(DATA, shape=[4]), "cannot hold"),
        (tables.entry(DATA, shape=[1 << 20, 1 << 20]), "cannot hold"),
        *((tables.entry(DATA, shape=shape), "impossible shape") for shape in IMPOSSIBLE),
        (tables.entry(b"", shape=[0, 1 << 62]), "impossible shape"),
        (tables.entry(DATA[:4], shape=[1] * 33), "impossible shape"),
        (tables.entry(DATA, shape=[1 << 29, 1 << 29]), "cannot hold"),
        (tables.entry(DATA, shape=[1 << 40], size=1 << 42), "truncated"),
        (tables.entry(DATA, shape=[3], crc=1), "fails its checksum"),
        *((tables.entry(DATA, shape=[3], shard=n), "file is missing") for n in (1, *VAST)),
        *((tables.entry(DATA, shape=[3], offset=n), "truncated") for n in (1, *VAST)),
        *((tables.entry(DATA, shape=[n], size=4 * n), "truncated|impossible") for n in QUARTERS),
        *((tables.entry(DATA, shape=[n]), "impossible|cannot hold") for n in VAST),
        (tables.entry(DATA, shape=[3], dtype=99), "type 99"),
        (tables.entry(DATA, shape=[3], dtype=20), "resource"),
        (tables.entry(DATA, shape=[3])[:-1], "damaged"),
        (b"\x08\x01\x12\x04\x12\x02\x0a\x00", "a size or position is not a number"),
        (b"\x0f", "damaged"),
        (tables.entry(DATA, shape=[3]) + b"\x3a\x02\x0a\x00", "slice of this tensor is missing"),
        *(
            (tables.entry(DATA, shape=[3]) + slices, "damaged")
            for slices in (b"\x3a\x04\x0a\x02\x0a\0", b"\x3a\x04\x0a\x02\x12\0", b"\x3a\2\x0a\5")
        ),
    ],
)
def test_hostile_entries(tmp_path: Path, entry: bytes, message: str) -> None:
    prefix = tables.bundle(tmp_path, {"x": entry}, DATA)
    with pytest.raises(BnstatError, match=message):
        opened(prefix).read("x")


@pytest.mark.parametrize("shape", [(1,) * 32, (0, 1 << 58)])
def test_extreme_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    entries = {"x": tables.entry(shape=shape)}
    assert opened(tables.bundle(tmp_path, entries, DATA)).entry("x").shape == shape


def test_many_tensors_over_the_same_bytes(tmp_path: Path) -> None:
    shared = np.zeros(1 << 16, np.float32).tobytes()
    entries = {f"x{number}": tables.entry(shared, shape=[1 << 16]) for number in range(9)}
    bundle = opened(tables.bundle(tmp_path, entries, shared))
    assert same_bits(bundle.read("x0"), bundle.read("x0"))
    with pytest.raises(DamagedError, match="bytes overlap those"):
        [bundle.read(key) for key in entries]


@pytest.mark.parametrize("head", [b"\x08", b"\x1a\x05", b"\x0f"])
def test_damaged_headers(tmp_path: Path, head: bytes) -> None:
    with pytest.raises(DamagedError, match="header"):
        opened(tables.bundle(tmp_path, {}, b"", head))
    (tmp_path / "m.index").write_bytes(tables.table({b"x": b""}))
    with pytest.raises(DamagedError, match="not a checkpoint's index"):
        opened(tmp_path / "m")


@pytest.mark.parametrize("head", HEADS)
def test_header_fields_of_other_types_are_ignored(tmp_path: Path, head: bytes) -> None:
    tables.bundle(tmp_path, {"": head, "x": tables.entry(DATA, shape=[3])}, DATA)
    assert same_bits(opened(tmp_path / "m").read("x"), FLOATS)
    assert Bundle(Unlisted(str(tmp_path)), "m", data=True).entry("x").shape == (3,)


def test_the_file_that_fails_its_checksum_or_is_missing_is_named(tmp_path: Path) -> None:
    prefix = tables.bundle(tmp_path, {"a/x": tables.entry(DATA, shape=[3], crc=1)}, DATA)
    with pytest.raises(DamagedError, match=r"/m\.data-00000-of-00001, a/x: the data fails its"):
        opened(prefix).read("a/x")
    with pytest.raises(NotFoundError, match=r"/none\.index: .*index file is missing"):
        opened(tmp_path / "none")


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"\xff", {}, "the string's length"),
        (b"", {}, "the string's length"),
        (tables.varint(4) + b"abc", {}, "does not fit the tensor"),
        (DATA, {"dtype": 1}, "is not a single string"),
        (DATA, {"shape": [1]}, "is not a single string"),
    ],
)
def test_damaged_strings(tmp_path: Path, data: bytes, options: Any, message: str) -> None:
    entry = tables.entry(data, **{"dtype": 7, **options})
    with pytest.raises(DamagedError, match=message):
        opened(tables.bundle(tmp_path, {"s": entry}, data)).read_string("s")


def test_pointers_instead_of_data(tmp_path: Path) -> None:
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    for size in (2, 1000):
        prefix = named.save(tmp_path / "m", {"a": np.ones(size)})
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


def test_a_key_that_cannot_be_found(tmp_path: Path) -> None:
    """A damaged index may list a key where no search finds it."""
    bundle = opened(named.save(tmp_path / "m", {"a": [1.0]}))
    with pytest.raises(DamagedError, match="the index has no entry for the key b"):
        bundle.entry("b")
    variables = bundle.variables()
    assert variables.get("b") is None
    assert variables.get("b", 1) == 1
    assert variables.get("a") == variables["a"]
