"""Tensor bundles: the checkpoints of TensorFlow since 0.12 ("V2"), and SavedModels' variables.

    PREFIX.index                   an SSTable; key "" holds a BundleHeaderProto, every other key
                                   names a tensor and holds its BundleEntryProto
    PREFIX.data-00000-of-00002     the tensors' bytes, one file a shard

    BundleHeaderProto := 1 num_shards, 2 endianness (1 is big), 3 version {1 producer,
                         2 min_consumer}
    BundleEntryProto  := 1 dtype, 2 shape {2 dim {1 size}, 3 unknown_rank}, 3 shard_id,
                         4 offset, 5 size, 6 masked crc32c of the bytes, 7 slice ...

Numbers lie row-major at any byte offset. A partitioned tensor's entry lists its slices and has
no bytes; each slice has an entry of its own under `tensor_slice.slice_key`. A string tensor is
the varint lengths of its elements, a masked crc32c of the lengths, the elements' bytes; its
checksum runs over the lengths as 4 bytes each (8 for those that need it), that crc, the bytes.
Source: tensorflow/core/util/tensor_bundle/tensor_bundle.{h,cc}, protobuf/tensor_bundle.proto.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnsupportedError
from bnstat.formats.dtypes import STRING, dtype_name, find_dtype, numpy_dtype
from bnstat.formats.protobuf.wire import WireError, damaged, fields, signed, varint
from bnstat.formats.tensorflow.sstable import Table, masked_crc32c
from bnstat.formats.tensorflow.tensor_slice import (
    FULL,
    TensorSlice,
    assemble,
    parse_slice,
    slice_key,
)
from bnstat.model import Array, Variable
from bnstat.storage.files import File, Folder, Range

_MAX_RANK = 32
_MAX_ELEMENTS = 1 << 58


class Entry(NamedTuple):
    """Where a tensor lies, from its `BundleEntryProto`."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    slices: tuple[TensorSlice, ...]


def parse_entry(message: bytes, where: str) -> Entry:
    """A `BundleEntryProto`; `bundle` tells its fields.

    Raises:
        DamagedError: it is none, or has an impossible shape.
    """
    numbers = dict.fromkeys((1, 3, 4, 5, 6), 0)
    shape: tuple[int, ...] = ()
    slices = []
    try:
        for number, value in fields(message):
            if isinstance(value, int):
                if number in numbers:
                    numbers[number] = signed(value)
            elif number == 2:
                shape = _shape(value)
            elif number == 7:
                slices.append(parse_slice(value))
    except WireError as error:
        raise damaged(where, "its entry", error) from error
    if (
        len(shape) > _MAX_RANK
        or any(size < 0 for size in shape)
        or math.prod(size or 1 for size in shape) > _MAX_ELEMENTS
    ):
        raise DamagedError(where, f"has an impossible shape {list(shape)}")
    return Entry(
        numbers[1],
        shape,
        numbers[3],
        numbers[4],
        numbers[5],
        numbers[6],
        tuple(slices),
    )


def _shape(message: bytes) -> tuple[int, ...]:
    sizes = []
    for number, value in fields(message):
        if number == 2 and isinstance(value, bytes):
            size = dict(fields(value)).get(1, 0)
            if isinstance(size, int):
                sizes.append(signed(size))
    return tuple(sizes)


DATA = re.compile(r"^(?P<prefix>.*)\.data-(?P<shard>\d{5,9})-of-(?P<shards>\d{5,9})$", re.DOTALL)

_MOST_ASKED_FOR = 10_000


def shard_names(folder: Folder, prefix: str, expected: int) -> dict[int, str]:
    """Shard number -> name of its data file, as the folder has them.

    A folder can hold shards of an earlier save of the same name with another number of shards;
    those that the header counts come first. Where a folder does not tell what it holds, the
    names are those that the header implies.

    Args:
        folder: where the files lie.
        prefix: what their names start with.
        expected: how many the bundle's header counts.
    """
    if not folder.can_list:
        shards = range(min(expected, _MOST_ASKED_FOR))
        return {shard: f"{prefix}.data-{shard:05d}-of-{expected:05d}" for shard in shards}
    found: dict[int, tuple[bool, str]] = {}
    for name in folder.matching(prefix + ".data-"):
        match = DATA.match(name)
        if match and match["prefix"] == prefix:
            shard, rank = int(match["shard"]), int(match["shards"]) != expected
            if shard not in found or (rank, name) < found[shard]:
                found[shard] = (rank, name)
    return {shard: name for shard, (_, name) in found.items()}


INDEX = ".index"

_NEWEST_VERSION = 1
_MOST_OPEN = 64


class Bundle:
    """The tensors of one checkpoint.

    The index is read whole; the data files are opened so that they can be read even when the
    checkpoint is deleted meanwhile, and read only for the tensors that are asked for.

    Args:
        folder: where the files lie.
        prefix: what their names start with, such as `model.ckpt-1200`; may be empty.
        data: whether tensors will be read; if not, the data files need not exist.

    Attributes:
        path: folder and prefix, for messages.

    Raises:
        NotFoundError: there is no such index.
        DamagedError: the index is damaged.
        UnsupportedError: it needs a newer reader.
        BnstatError: the bundle was written on a big-endian machine.
    """

    def __init__(self, folder: Folder, prefix: str, data: bool) -> None:
        self._folder = folder
        index = folder.file(prefix + INDEX)
        if index is None:
            raise NotFoundError(
                f"{folder.path}/{prefix}{INDEX}", "the checkpoint's index file is missing"
            )
        self.path = index.path.removesuffix(INDEX)
        self._index_path = index.path
        index.prefetch([(0, index.size)])
        self._table = Table(index)
        self._table.load()
        self._shards_of_header = self._read_header(self._table.get(b""))
        self._files: dict[int, File] = {}
        self._read: set[tuple[str, int, int]] = set()
        self._taken: Counter[int] = Counter()
        self._shards = shard_names(folder, prefix, self._shards_of_header)
        if data:
            opened = list(self._shards)[:_MOST_OPEN]
            folder.expect(self._shards[shard] for shard in opened)
            for shard in opened:
                self._file(shard)

    @property
    def keys(self) -> Collection[str]:
        """All checkpoint keys, in the index's order; slices have none of their own."""
        return _Keys(self._table)

    def variables(self, names: Mapping[str, str]) -> Mapping[str, Variable]:
        """The numeric tensors by key; `names` gives those their best names that have one."""
        return _Variables(self, names)

    def entry(self, key: str) -> Entry:
        """Where the tensor of that key lies.

        Raises:
            DamagedError: the entry is damaged, or not found where the index should have it.
        """
        stored = self._table.get(_encoded(key))
        if stored is None:
            raise DamagedError(f"{self._index_path}, {key}", "the index has no such entry")
        return parse_entry(stored, f"{self._index_path}, {key}")

    def read(self, key: str) -> Array:
        """The numeric tensor of that key, bit for bit as it was saved.

        Raises:
            NotFoundError: its data file is missing.
            DamagedError: its bytes are not all there, or fail their checksum.
            UnsupportedError: its elements are not numbers.
        """
        return self.read_entry(key, self.entry(key))

    def read_entry(self, key: str, entry: Entry) -> Array:
        """As `read`, where the entry is known already."""
        where = f"{self.path}, {key}"
        dtype = numpy_dtype(dtype_name(entry.dtype), where)
        if not entry.slices:
            return self._read_numbers(entry, dtype, entry.shape, where)
        parts = []
        for part, found in self._parts(key, entry, where):
            shape = tuple(range_.stop - range_.start for range_ in part.box(entry.shape, where))
            parts.append((part, self._read_numbers(found, dtype, shape, where)))
        return assemble(entry.shape, dtype, parts, where)

    def extents(self, key: str, entry: Entry) -> list[Range]:
        """Where a tensor's bytes lie: one range, or one a slice; none where it holds no numbers.

        Raises:
            NotFoundError: a data file is missing.
            DamagedError: the index contradicts itself.
        """
        where = f"{self.path}, {key}"
        if find_dtype(dtype_name(entry.dtype)) is None:
            return []
        whole = TensorSlice((FULL,) * len(entry.shape))
        parts = self._parts(key, entry, where) if entry.slices else [(whole, entry)]
        places = (
            self._file(found.shard).place(found.offset, found.size, part.box(entry.shape, where))
            for part, found in parts
        )
        return [place for place in places if place is not None]

    def _parts(self, key: str, entry: Entry, where: str) -> Iterator[tuple[TensorSlice, Entry]]:
        """The slices of a partitioned tensor, and where each lies."""
        for part in entry.slices:
            stored = self._table.get(slice_key(key, part))
            if stored is None:
                raise DamagedError(where, "a slice of it is missing from the index")
            yield part, parse_entry(stored, f"{self._index_path}, {key}")

    def read_string(self, key: str) -> bytes:
        """The one element of a scalar string tensor. Raises as `read` does."""
        entry = self.entry(key)
        where = f"{self.path}, {key}"
        if entry.dtype != STRING or entry.shape != ():
            raise DamagedError(where, "is not a single string")
        data = self._bytes(entry, where)
        try:
            length, start = varint(data, 0)
        except WireError as error:
            raise damaged(where, "the string's length", error) from error
        if start + 4 + length != len(data):
            raise DamagedError(where, "the string's length does not fit its tensor")
        packed = length.to_bytes(4 if length < 1 << 32 else 8, "little")
        stored, text = data[start : start + 4], data[start + 4 :]
        if masked_crc32c(packed, stored, text) != entry.crc32c:
            raise DamagedError(where, "the data fails its checksum", "copy or download it again")
        return text

    def _read_header(self, header: bytes | None) -> int:
        if header is None:
            raise DamagedError(self._index_path, "is an SSTable, but no checkpoint's index")
        try:
            found = dict(fields(header))
            version = found.get(3, b"")
            needs = dict(fields(version)).get(2, 0) if isinstance(version, bytes) else 0
        except WireError as error:
            raise damaged(self._index_path, "the header", error) from error
        if found.get(2, 0) != 0:
            raise BnstatError(
                self._index_path,
                "the checkpoint was written on a big-endian machine",
                "load it there and save it again, or convert it on a little-endian machine",
            )
        if isinstance(needs, int) and needs > _NEWEST_VERSION:
            raise UnsupportedError(self._index_path, f"needs a reader of bundle version {needs}")
        shards = found.get(1, 0)
        return shards if isinstance(shards, int) else 0

    def _read_numbers(
        self, entry: Entry, dtype: np.dtype[np.generic], shape: tuple[int, ...], where: str
    ) -> Array:
        if math.prod(shape) * dtype.itemsize != entry.size:
            raise DamagedError(
                where, f"{entry.size} bytes cannot hold {dtype.name} of shape {list(shape)}"
            )
        data = self._bytes(entry, where)
        if masked_crc32c(data) != entry.crc32c:
            self._file(entry.shard).refuse_lfs_pointer()
            self._file(entry.shard).refuse_changed()
            raise DamagedError(
                f"{self._file(entry.shard).path}, {where.partition(', ')[2]}",
                "the data fails its checksum",
                "the file is damaged, or belongs to another checkpoint",
            )
        return np.frombuffer(data, dtype).reshape(shape)

    def _bytes(self, entry: Entry, where: str) -> bytes:
        """The bytes of an entry. Tensors do not share bytes, so that no file can claim more
        of them than it has.
        """
        file = self._file(entry.shard)
        data = file.read(entry.offset, entry.size)
        if (where, entry.shard, entry.offset) not in self._read:
            self._read.add((where, entry.shard, entry.offset))
            self._taken[entry.shard] += entry.size
        if self._taken[entry.shard] > file.size:
            raise DamagedError(where, "shares its bytes with other tensors")
        return data

    def _file(self, shard: int) -> File:
        file = self._files.get(shard)
        if file is None:
            file = self._folder.file(self._shards[shard]) if shard in self._shards else None
            if file is None:
                raise NotFoundError(
                    f"{self.path}.data-{shard:05d}-of-{max(self._shards_of_header, 1):05d}",
                    "the checkpoint's data file is missing",
                    "copy it beside the index, or use --no-values for names and shapes alone",
                )
            if len(self._files) < _MOST_OPEN:
                self._files[shard] = file
        return file


class _Keys(Collection[str]):
    """The keys of an index's tensors."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __contains__(self, key: object) -> bool:
        is_key = isinstance(key, str) and key[:1] not in ("", "\0")
        return is_key and self._table.get(_encoded(str(key))) is not None

    def __iter__(self) -> Iterator[str]:
        for key, _ in self._table.items():
            if key[:1] not in (b"", b"\0"):
                yield key.decode("utf-8", "surrogateescape")

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _encoded(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


class _Variables(Mapping[str, Variable]):
    """A bundle's numeric tensors; an entry is parsed when its variable is asked for."""

    def __init__(self, bundle: Bundle, names: Mapping[str, str]) -> None:
        self._bundle = bundle
        self._names = names
        self._made: dict[str, Variable] = {}

    def __getitem__(self, key: str) -> Variable:
        if key not in self._made:
            entry = self._bundle.entry(key)
            self._made[key] = Variable(
                key,
                self._names.get(key, key),
                dtype_name(entry.dtype),
                entry.shape,
                partial(self._bundle.read_entry, key, entry),
                partial(self._bundle.extents, key, entry),
            )
        return self._made[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The variable of that key, or `default`."""
        if key not in self:
            return default
        return self[key]

    def __contains__(self, key: object) -> bool:
        return key in self._bundle.keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._bundle.keys)

    def __len__(self) -> int:
        return len(self._bundle.keys)
