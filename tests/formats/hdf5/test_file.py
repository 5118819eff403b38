"""The HDF5 reader, compared with h5py for everything that h5py can write."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.hdf5 import arrays
from bnstat.formats.hdf5 import file as hdf5
from bnstat.formats.hdf5.file import Hdf5
from bnstat.storage.local import LocalFile
from tests.builders.memory import MemoryFile
from tests.builders.oracle import same_bits

TYPES = [
    *(f"{order}{kind}{size}" for order in "<>" for kind in "iu" for size in (1, 2, 4, 8)),
    *(f"{order}f{size}" for order in "<>" for size in (2, 4, 8)),
    *("bool", "bfloat16"),
]
STORAGE: list[dict[str, Any]] = [
    {},
    {"chunks": True},
    {"chunks": True, "compression": "gzip"},
    {"chunks": True, "compression": "gzip", "shuffle": True},
    {"chunks": True, "compression": "gzip", "shuffle": True, "fletcher32": True},
    {"chunks": True, "fletcher32": True},
    {"chunks": True, "shuffle": True},
]


def values(dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    end = 2 if dtype == "bool" else 256
    raw = np.random.default_rng(0).integers(0, end, (*shape, kind.itemsize))
    return raw.astype(np.uint8).view(kind)[..., 0]


def write(path: Path, libver: str = "earliest", part: Any = None, **options: Any) -> Any:
    """Write the dataset `a`, or only a part of it; return what h5py reads."""
    with h5py.File(path, "w", libver=libver) as file:
        made = file.create_dataset("a", **options)
        if part is not None:
            made[part] = 1
        return native(np.asarray(made[()]))


def read(path: Path, name: str = "a") -> np.ndarray[Any, Any]:
    variable = Hdf5(LocalFile(path)).variables[name]
    array = variable.read()
    assert (array.shape, array.dtype.name) == (variable.shape, variable.dtype)
    return array


def native(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.astype(array.dtype.newbyteorder("="))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.h5"


@pytest.mark.parametrize("shape", [(), (1,), (7,), (0,), (3, 0, 2), (5, 4, 3)])
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_and_shape(dtype: str, shape: tuple[int, ...], path: Path) -> None:
    data = values(dtype, shape)
    for version in ("earliest", "latest"):
        write(path, version, data=data)
        assert same_bits(read(path), native(data))


@pytest.mark.parametrize("storage", STORAGE, ids=str)
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "bfloat16", "int8"])
def test_chunks_and_filters(storage: dict[str, Any], dtype: str, path: Path) -> None:
    for shape, chunks in (((1000,), (7,)), ((1000,), (1000,)), ((9, 10, 11), (4, 3, 5))):
        data = values(dtype, shape)
        write(path, data=data, **storage | ({"chunks": chunks} if "chunks" in storage else {}))
        assert same_bits(read(path), native(data))


def write_with(path: Path, *calls: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    """Write an array of float32 after calls of h5py's low-level settings; return the array."""
    data = np.arange(5, dtype=np.float32)
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    for name, *arguments in calls:
        getattr(settings, name)(*arguments)
    with h5py.File(path, "w") as file:
        space, kind = h5py.h5s.create_simple(data.shape), h5py.h5t.NATIVE_FLOAT
        dataset = h5py.h5d.create(file.id, b"a", kind, space, settings)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, data)
    return data


def test_a_small_array_in_the_header(path: Path) -> None:
    data = write_with(path, ("set_layout", h5py.h5d.COMPACT))
    assert same_bits(read(path), data)


@pytest.mark.parametrize("limit", ["_MAX_OBJECTS", "_MAX_NAMES"])
def test_the_tree_has_a_budget(limit: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(path, "w") as file:
        for index in range(30):
            file[f"{index:02}"] = np.float32(index)
    monkeypatch.setattr(hdf5, limit, 20)
    with pytest.raises(DamagedError, match="too many objects, or names that are too long"):
        _ = Hdf5(LocalFile(path)).variables


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("a/b/{:05}", 5000),
        *(("层{}", count) for count in (9, 300)),
        pytest.param("层{}", 20_000, marks=pytest.mark.slow),
    ],
)
def test_many_members(name: str, count: int, path: Path) -> None:
    names = [name.format(index) * (1 + index % 7 * ("/" not in name)) for index in range(count)]
    with h5py.File(path, "w") as file:
        for index, member in enumerate(names):
            file[member] = np.float32(index)
    store = Hdf5(LocalFile(path))
    assert sorted(store.variables) == sorted(names)
    for index in (0, count // 2, count - 1):
        assert store.variables[names[index]].read() == index


@pytest.mark.parametrize("count", [9, 300, 5000])
def test_many_attributes(count: int, path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        for index in range(count):
            file.attrs[f"attribute_{index}"] = f"text {index}"
    store = Hdf5(LocalFile(path))
    for index in (0, count // 2, count - 1):
        assert store.text("", f"attribute_{index}") == f"text {index}"
    assert len(list(store.attributes(""))) == count


@pytest.mark.parametrize("options", [{"chunks": (2,)}, {"compression": "lzf"}], ids=str)
def test_newer_chunks_and_other_filters(options: dict[str, Any], path: Path) -> None:
    expected = write(path, "latest", data=np.arange(10.0), **options)
    opened = LocalFile(str(path))
    inside_an_archive = MemoryFile(path.read_bytes())
    path.unlink()
    for held in (opened, inside_an_archive):
        assert same_bits(Hdf5(held).variables["a"].read(), expected)


def test_a_tree_of_another_type(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        for number in range(20):
            file[f"a{number}"] = 1.0
    data = bytearray(path.read_bytes())
    data[data.index(b"BTHD") + 5] = 8
    with pytest.raises(DamagedError, match="another type"):
        _ = Hdf5(MemoryFile(bytes(data))).variables


def test_an_empty_array_that_numpy_cannot_make(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (0, 2**32, 2**32), "f4", maxshape=(None, 2**32, 2**32))
    with pytest.raises(DamagedError, match="impossible shape"):
        Hdf5(LocalFile(path)).variables["a"].read()


def test_an_enumeration_of_enumerations(path: Path) -> None:
    kind = h5py.enum_dtype({f"m{index:05}": index for index in range(2000)}, basetype="i4")
    write(path, data=np.zeros(3, "i4"), dtype=kind)
    assert read(path).tolist() == [0, 0, 0]
    data = path.read_bytes()
    # The members follow the base type, of 12 bytes.
    base = data.index(b"m00000") - 12
    path.write_bytes(data[:base] + 1900 * data[base - 8 : base] + data[base + 8 * 1900 :])
    with pytest.raises(DamagedError, match="cut short"):
        read(path)


TEXTS: dict[str, tuple[object, list[str] | None]] = {
    "text": ("é" * 100, ["é" * 100]),
    "empty": ("", [""]),
    "list": (["x", "", "yy"], ["x", "", "yy"]),
    "fixed": (np.array([b"ab", b"c"]), ["ab", "c"]),
    "number": (3, None),
    "none": (np.zeros(0), []),
}


@pytest.mark.parametrize("block", [0, 512, 1024, 4096])
@pytest.mark.parametrize("version", ["earliest", "v108", "v110", "latest"])
def test_every_version_and_user_block(version: str, block: int, path: Path) -> None:
    data = np.arange(5, dtype=np.float32)
    with h5py.File(path, "w", libver=version, userblock_size=block) as file:
        file["layers/bn/vars/0"] = data
        file["layers"].create_group("ordered", track_order=True)["x"] = data
        file.create_dataset("chunked", data=data, chunks=(2,), compression="gzip")
        for name, (value, _) in TEXTS.items():
            file.attrs[name] = file["layers/bn"].attrs[name] = value
    store = Hdf5(LocalFile(path))
    assert set(store.groups) == {"", "layers", "layers/bn", "layers/bn/vars", "layers/ordered"}
    assert store.members() == {"layers", "chunked"}
    for name in ("layers/bn/vars/0", "layers/ordered/x", "chunked"):
        assert same_bits(store.variables[name].read(), data)
    for place in ("", "layers/bn"):
        assert [store.texts(place, name) for name in TEXTS] == [each for _, each in TEXTS.values()]
        assert store.texts(place, "missing") is None
        assert store.text(place, "text") == "é" * 100
        assert store.text(place, "list") is None


GZIP = {"compression": "gzip"}
LZF = {"compression": "lzf"}
OTHER_LENGTH = "claims chunks of 4000 bytes, but has one of another length"


@pytest.mark.parametrize(
    ("options", "stored", "message"),
    [
        (GZIP, zlib.compress(bytes(64 << 20)), OTHER_LENGTH),
        (GZIP, zlib.compress(bytes(3999)), OTHER_LENGTH),
        (GZIP, b"not compressed", "cannot be read"),
        (GZIP | {"fletcher32": True}, b"abc", "cannot be read|another length"),
        (LZF, b"\3abcd", OTHER_LENGTH),
        (LZF, b"\0a" + b"\xe0\xff\0" * 1000, OTHER_LENGTH),
        (LZF, b"\xe0", OTHER_LENGTH),
        ({"fletcher32": True}, b"abc", OTHER_LENGTH),
        ({"shuffle": True}, bytes(3999), OTHER_LENGTH),
    ],
)
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_chunks_of_another_length(
    libver: str, options: dict[str, Any], stored: bytes, message: str, path: Path
) -> None:
    """HDF5's library reads beyond the end of a short chunk, and the process may die."""
    with h5py.File(path, "w", libver=libver) as file:
        dataset = file.create_dataset("a", (1000,), "f4", chunks=(1000,), **options)
        dataset.id.write_direct_chunk((0,), stored)
    with pytest.raises(DamagedError, match=message):
        read(path)


@given(st.binary(min_size=1, max_size=50), st.integers(1, 300))
def test_the_length_of_data_that_lzf_compressed(pattern: bytes, repeats: int) -> None:
    data = np.frombuffer(pattern * repeats, np.uint8)
    written = io.BytesIO()
    with h5py.File(written, "w") as file:
        file.create_dataset("a", data=data, chunks=data.shape, compression="lzf")
    assert Hdf5(MemoryFile(written.getvalue())).variables["a"].read().tobytes() == data.tobytes()


@pytest.mark.parametrize("options", [{"scaleoffset": 3}, {"compression": "szip"}], ids=str)
def test_filters_with_which_the_library_can_crash(options: dict[str, Any], path: Path) -> None:
    if options == {"compression": "szip"} and not h5py.h5z.filter_avail(h5py.h5z.FILTER_SZIP):
        pytest.skip("h5py cannot write szip")
    write(path, data=np.arange(1000.0, dtype="f4"), chunks=(1000,), **options)
    with pytest.raises(UnsupportedError, match=r"HDF5's filter \d, .*h5repack -f GZIP=4"):
        read(path)


def test_a_checksum_before_compression(path: Path) -> None:
    expected = write_with(path, ("set_chunk", (5,)), ("set_fletcher32",), ("set_deflate",))
    assert same_bits(read(path), expected)


def test_chunks_that_are_too_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, data=np.arange(1000.0), chunks=(1000,), compression="gzip")
    monkeypatch.setattr(arrays, "_CHUNK_RATIO", 0)
    monkeypatch.setattr(arrays, "_LARGEST_CHUNK", 8000)
    read(path)
    monkeypatch.setattr(arrays, "_LARGEST_CHUNK", 7999)
    with pytest.raises(DamagedError, match=r"claims chunks of 8000 bytes$"):
        read(path)


def test_chunks_whose_size_cannot_be_checked(path: Path) -> None:
    write_with(path, ("set_chunk", (5,)), ("set_deflate",), ("set_shuffle",))
    with pytest.raises(UnsupportedError, match="unusual order"):
        read(path)


def test_a_tree_of_chunks_that_contains_itself(path: Path) -> None:
    """HDF5's library overflows the stack on such a tree, and the process dies."""
    write(path, data=np.arange(1000.0), chunks=(10,))
    data = bytearray(path.read_bytes())
    nodes = [match.start() for match in re.finditer(b"TREE\x01", data)]
    [root] = [node for node in nodes if data[node + 5] == 1]
    # The first child follows the node's head, of 24 bytes, and a key.
    data[root + 48 : root + 56] = root.to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="cyclic or inconsistent tree"):
        read(path)


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)


@settings(deadline=None, suppress_health_check=[*HealthCheck])
@given(
    tree=st.dictionaries(
        st.lists(NAMES.filter(lambda name: name != "."), min_size=1, max_size=4).map("/".join),
        st.lists(st.floats(width=32), max_size=20),
        max_size=20,
    ),
    texts=st.dictionaries(
        NAMES,
        st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))),
        max_size=5,
    ),
)
def test_any_tree(tree: dict[str, list[float]], texts: dict[str, list[str]], path: Path) -> None:
    held: dict[str, list[float]] = {}
    with h5py.File(path, "w") as file:
        for name, numbers in tree.items():
            try:
                file[name] = np.array(numbers, np.float32)
            except (ValueError, OSError):
                # A group or an array of that name is there already.
                continue
            held[name] = numbers
        for name, text in texts.items():
            file.attrs[name] = text if text else np.zeros(0)
    store = Hdf5(LocalFile(path))
    assert set(store.variables) == set(held)
    for name, numbers in held.items():
        assert same_bits(store.variables[name].read(), np.array(numbers, np.float32))
    for name, text in texts.items():
        assert store.texts("", name) == text


@pytest.mark.parametrize("dtype", ["<f4", ">i2"])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("fill", [None, 3.0])
@pytest.mark.parametrize("time", [{}, {"fill_time": "ifset"}], ids=str)
@pytest.mark.parametrize("options", STORAGE[:3], ids=str)
def test_datasets_that_were_never_written(options, time, fill, libver, dtype, path):
    expected = write(path, libver, shape=(5, 3), dtype=dtype, fillvalue=fill, **time, **options)
    assert same_bits(read(path), expected)
    assert same_bits(expected, np.full((5, 3), fill or 0, expected.dtype))
    assert not Hdf5(LocalFile(path)).variables["a"].extents()


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("fill", [None, -1.5])
@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"fletcher32": True}], ids=str)
def test_chunks_that_were_never_allocated(
    options: dict[str, Any], fill: float | None, libver: str, path: Path
) -> None:
    part = (slice(2, 4), slice(1, 3))
    shape = {"shape": (7, 5), "chunks": (2, 2)}
    expected = write(path, libver, part, dtype="f4", fillvalue=fill, **shape, **options)
    assert same_bits(read(path), expected)
    places = Hdf5(LocalFile(path)).variables["a"].extents()
    assert all(place.part is None for place in places), "chunks are written through the library"


def _with_message(path: Path, kind: int, old: bytes, new_kind: int, new: bytes) -> None:
    """Replace a message of an object header of version 1, padded to its size."""
    data = path.read_bytes()
    start = data.index(struct.pack("<HH", kind, len(old)), 96)
    while data[start + 8 : start + 8 + len(old)] != old:
        start = data.index(struct.pack("<HH", kind, len(old)), start + 1)
    body = new.ljust(len(old), b"\0")
    assert len(body) == len(old)
    flags = data[start + 4 : start + 8]
    message = struct.pack("<HH", new_kind, len(old)) + flags + body
    path.write_bytes(data[:start] + message + data[start + len(message) :])


_VALUE = struct.pack("<d", 2.5)
_FILLS = {
    "the old one alone": (0x00, b"", 9),
    "version 1": (0x05, struct.pack("<BBBBI", 1, 2, 2, 1, 8) + _VALUE, 2.5),
    "version 1, default": (0x05, struct.pack("<BBBBI", 1, 2, 2, 1, 0), 0),
    "version 2": (0x05, struct.pack("<BBBBI", 2, 2, 2, 1, 8) + _VALUE, 2.5),
    "version 2, default": (0x05, struct.pack("<BBBBI", 2, 2, 2, 1, 0), 0),
    "version 3": (0x05, struct.pack("<BBI", 3, 0x2A, 8) + _VALUE, 2.5),
    "version 3, default": (0x05, struct.pack("<BB", 3, 0x0A), 0),
}


_STORED = struct.pack("<BBBBI", 2, 2, 2, 1, 8) + struct.pack("<d", 9)


@pytest.mark.parametrize("name", _FILLS)
def test_every_version_of_the_fill_value(name: str, path: Path) -> None:
    write(path, shape=(3,), dtype="<f8", fillvalue=9)
    kind, body, expected = _FILLS[name]
    _with_message(path, 0x05, _STORED, kind, body)
    with h5py.File(path) as file:
        oracle = file["a"][()]
    assert read(path).tolist() == oracle.tolist() == [expected] * 3


def test_a_fill_value_of_another_size(path: Path) -> None:
    write(path, shape=(3,), dtype="<f8", fillvalue=9)
    _with_message(path, 0x05, _STORED, 0x05, struct.pack("<BBBBIf", 2, 2, 2, 1, 4, 9))
    with pytest.raises(DamagedError, match="fill value"):
        read(path)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("is_written", [True, False])
def test_layouts_of_early_hdf5(is_written: bool, version: int, path: Path) -> None:
    part = slice(None) if is_written else None
    write(path, part=part, shape=(2,), dtype="<f8", fillvalue=9)
    with h5py.File(path) as file:
        address = file["a"].id.get_offset()
    where = (1 << 64) - 1 if address is None else address
    stored = struct.pack("<BBQQ", 3, 1, where, 16).ljust(24, b"\0")
    older = struct.pack("<BBB5xQI", version, 1, 1, where, 2)
    _with_message(path, 0x08, stored, 0x08, older)
    with h5py.File(path) as file:
        oracle = file["a"][()]
    assert read(path).tolist() == oracle.tolist() == ([1, 1] if is_written else [9, 9])
