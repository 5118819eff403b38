"""Tensor bundles: the checkpoints of TensorFlow since 0.12 ("V2"), and SavedModels' variables.

    PREFIX.index                 an SSTable: "" -> BundleHeaderProto, name of a tensor ->
                                 BundleEntryProto of the tensor
    PREFIX.data-00000-of-00002   the bytes of tensors; one file per shard

    BundleHeaderProto := 1 num_shards, 2 endianness (1 is big), 3 version {1 producer,
                         2 min_consumer}
    BundleEntryProto  := 1 dtype, 2 shape {2 dim {1 size}, 3 unknown_rank}, 3 shard_id,
                         4 offset, 5 size, 6 masked crc32c of the bytes, 7 slice ...

Arrays are row-major, at any byte offset. A string tensor is stored as the varint lengths of its
elements, a masked crc32c of the lengths, and the bytes of the elements. The checksum in its entry
covers the lengths as 4 bytes each (8 for lengths from 2**32), their crc32c, and the bytes.

The entry of a partitioned variable lists slices, and locates no bytes. Each slice has its own entry
under the key below. For a dimension that the slice covers completely, start is 0, length is -1:

    key    := 00, name, rank as NumIncreasing, (start, length) of each dim as SignedNumIncreasing
    name   := bytes of the name, with 00 escaped as 00 FF and FF as FF 00, then 00 01
    NumIncreasing(n)       := number of bytes, then n big-endian in as few as possible
    SignedNumIncreasing(n) := n in two's complement, big-endian, in the fewest bytes whose
                              leading bits can hold the count: 7 bits of n per byte, the first
                              bits (1, 11, 111, ...) counting the bytes, inverted for n < 0

Sources: tensorflow/core/util/tensor_bundle/tensor_bundle.{h,cc}, protobuf/tensor_bundle.proto,
`EncodeTensorNameSlice` in util/saved_tensor_slice_util.cc; tsl/lib/strings/ordered_code.cc.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from bnstat.errors import DamagedError, NotFoundError, UnsupportedError
from bnstat.formats.dtypes import as_shape, bytes_needed, dtype_name, find_dtype, numpy_dtype
from bnstat.formats.protobuf.wire import Decoding, WireError, fields, signed, varint
from bnstat.formats.tensorflow.sstable import Table, masked_crc32c
from bnstat.model import Array, Variable
from bnstat.storage.files import File, Folder, Range

INDEX = ".index"
DATA = re.compile(r"^(?P<prefix>.*)\.data-(?P<shard>\d{5,9})-of-(?P<shards>\d{5,9})$", re.DOTALL)

BINARY = "saved_model.pb"
TEXT = "saved_model.pbtxt"
VARIABLES = "variables"
"""The names of a SavedModel's graph file, and of the folder of its bundle (also the prefix)."""
TEXT_START = re.compile(
    rb"\s*(?:#[^\n]*\n\s*)*(saved_model_schema_version\s*:|meta_graphs\s*:?\s*{)"
)
"""The start of a SavedModel's graph file in text form."""

_NEWEST_VERSION = 1
_MAX_OPEN = 64
_MAX_GUESSED_SHARDS = 10_000

TensorSlice = tuple[tuple[int, int], ...]
"""A part of a tensor: (start, length) in each dimension; length -1 means up to the end."""

Box = tuple[slice, ...]
"""The indices of a part of a tensor."""


def box_of(part: TensorSlice, shape: Sequence[int], where: str) -> Box:
    """Convert a stored slice to Python slices; raise `DamagedError` for a slice outside `shape`."""
    if len(part) != len(shape):
        problem = f"has a slice of {len(part)} dimensions in a tensor of shape {shape}"
        raise DamagedError(where, problem)
    box = []
    for (start, length), size in zip(part, shape, strict=True):
        stop = size if length == -1 else start + length
        if not 0 <= start <= stop <= size:
            problem = f"has a slice from {start} to {stop} in a dimension of {size}"
            raise DamagedError(where, problem)
        box.append(slice(start, stop))
    return tuple(box)


_ESCAPES = {0x00: b"\x00\xff", 0xFF: b"\xff\x00"}


def slice_key(name: str, part: TensorSlice) -> bytes:
    """Return the key under which the index lists a slice of the variable `name`."""
    escaped = b"".join(_ESCAPES.get(byte, bytes((byte,))) for byte in _encoded(name))
    numbers = b"".join(_signed_increasing(number) for extent in part for number in extent)
    rank = len(part)
    width = (rank.bit_length() + 7) // 8
    return b"\0" + escaped + b"\0\1" + bytes((width,)) + rank.to_bytes(width, "big") + numbers


def _signed_increasing(number: int) -> bytes:
    width = 1
    while not -(1 << (7 * width - 1)) <= number < 1 << (7 * width - 1):
        width += 1
    # The sign fills the bits above the number's own 7 * width. Inverting the first `width` of all
    # 8 * width bits writes the count of bytes into them.
    header = ((1 << width) - 1) << (7 * width)
    return ((number & ((1 << 8 * width) - 1)) ^ header).to_bytes(width, "big")


def assemble(
    shape: tuple[int, ...], dtype: np.dtype[Any], parts: Sequence[tuple[Box, Array]], where: str
) -> Array:
    """Join parts, which may be flat arrays; raise `DamagedError` if they overlap or do not fit."""
    if sum(array.size for _, array in parts) != math.prod(shape):
        raise DamagedError(where, "its slices do not make up the whole tensor")
    tensor = np.empty(shape, dtype)
    covered = np.zeros(shape, bool)
    for box, array in parts:
        part = covered[box]
        if part.any():
            raise DamagedError(where, "its slices overlap")
        if part.size != array.size:
            problem = f"has {array.size} values in a slice of shape {list(part.shape)}"
            raise DamagedError(where, problem)
        tensor[box] = array.reshape(part.shape)
        covered[box] = True
    return tensor


class Entry(NamedTuple):
    """A `BundleEntryProto`: where the bytes of a tensor are stored, or which slices it has."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    slices: tuple[TensorSlice, ...]


def _parse_entry(message: bytes, where: str) -> Entry:
    numbers = dict.fromkeys((1, 3, 4, 5, 6), 0)
    shape: tuple[int, ...] = ()
    slices = []
    with Decoding(where, "its entry"):
        for number, value in fields(message):
            if isinstance(value, int):
                if number in numbers:
                    numbers[number] = signed(value)
            elif number == 2:
                shape = _shape(value)
            elif number == 7:
                extents = _messages(value, 1)
                slices.append(tuple((_number(dim, 1, 0), _number(dim, 2, -1)) for dim in extents))
    dtype, shard, offset, size, crc32c = numbers.values()
    return Entry(dtype, shape, shard, offset, size, crc32c, tuple(slices))


# A large model has few different shapes.
@lru_cache(maxsize=1024)
def _shape(message: bytes) -> tuple[int, ...]:
    shape = tuple(_number(dim, 1, 0) for dim in _messages(message, 2))
    if as_shape(shape) is None:
        raise WireError(f"it has an impossible shape {list(shape)}")
    return shape


def _messages(message: bytes, field: int) -> Iterator[dict[int, int | bytes]]:
    """Yield each message in the repeated field `field`, as a dict of field numbers to values."""
    for number, value in fields(message):
        if number == field and isinstance(value, bytes):
            yield dict(fields(value))


def _number(message: Mapping[int, int | bytes], field: int, default: int) -> int:
    value = message.get(field)
    if value is None:
        return default
    if not isinstance(value, int):
        raise WireError("a size or position is not a number")
    return signed(value)


def shard_names(folder: Folder, prefix: str, shards: int) -> dict[int, str]:
    """Return a dict of shard numbers to the names of the data files."""
    # There can be files of an earlier save with another number of shards.
    if not folder.can_list:
        guessed = range(min(shards, _MAX_GUESSED_SHARDS))
        return {shard: f"{prefix}.data-{shard:05d}-of-{shards:05d}" for shard in guessed}
    names: dict[int, str] = {}
    matches = filter(None, map(DATA.match, folder.matching(prefix + ".data-")))
    for match in sorted(matches, key=lambda match: int(match["shards"]) != shards):
        if match["prefix"] == prefix:
            names.setdefault(int(match["shard"]), match[0])
    return names


class Bundle:
    """The tensors of a checkpoint. `prefix`, such as `model.ckpt-1200`, may be empty.

    The index is read completely. Data files are opened immediately, so that they can be read even
    if the checkpoint is deleted later. With `data=False`, only the index needs to exist.
    """

    def __init__(self, folder: Folder, prefix: str, data: bool) -> None:
        self._folder = folder
        index = folder.file(prefix + INDEX)
        if index is None:
            path = f"{folder.path}/{prefix}{INDEX}"
            raise NotFoundError(path, "the checkpoint's index file is missing", "copy it, too")
        self.path = index.path.removesuffix(INDEX)
        self._index_path = index.path
        index.prefetch([(0, index.size)])
        self.table = Table(index)
        self.table.load()
        self._shard_count = self._read_header(self.table.get(b""))
        self._files: dict[int, File] = {}
        self._read: set[tuple[str, int, int]] = set()
        self._bytes_read: Counter[int] = Counter()
        self._shards = shard_names(folder, prefix, self._shard_count)
        if data:
            first = list(self._shards)[:_MAX_OPEN]
            folder.expect(self._shards[shard] for shard in first)
            for shard in first:
                self._file(shard)

    def _read_header(self, header: bytes | None) -> int:
        if header is None:
            raise DamagedError(self._index_path, "is an SSTable, but not a checkpoint's index")
        with Decoding(self._index_path, "the header"):
            message = dict(fields(header))
            version = message.get(3, b"")
            needs = dict(fields(version)).get(2, 0) if isinstance(version, bytes) else 0
        if message.get(2, 0) != 0:
            problem = "the checkpoint was written on a big-endian machine"
            remedy = "read it with --reader tensorflow, which swaps the bytes"
            raise UnsupportedError(self._index_path, problem, remedy)
        if isinstance(needs, int) and needs > _NEWEST_VERSION:
            problem = f"has bundle version {needs}, which bnstat cannot read"
            raise UnsupportedError(self._index_path, problem)
        shards = message.get(1, 0)
        return shards if isinstance(shards, int) else 0

    def variables(self, names: Mapping[str, str] | None = None) -> Mapping[str, Variable]:
        """Return the variables by key. `names` maps keys to names; the default name is the key."""
        return _Variables(self, {} if names is None else names)

    def entry(self, key: str) -> Entry:
        """Return the entry of a tensor; raise `DamagedError` if the entry is damaged or missing."""
        stored = self.table.get(_encoded(key))
        if stored is None:
            raise DamagedError(self._index_path, f"the index has no entry for the key {key}")
        return _parse_entry(stored, f"{self._index_path}, {key}")

    def read(self, key: str, entry: Entry | None = None) -> Array:
        """Return a numeric tensor, bit for bit as it was saved."""
        entry = entry or self.entry(key)
        where = f"{self.path}, {key}"
        dtype = numpy_dtype(dtype_name(entry.dtype), where)
        parts = []
        for box, stored in self._parts(key, entry, where):
            shape = tuple(indices.stop - indices.start for indices in box)
            if bytes_needed(shape, dtype) != stored.size:
                problem = f"{stored.size} bytes cannot hold {dtype.name} of shape {list(shape)}"
                raise DamagedError(where, problem)
            data = self._read_bytes(stored, where)
            self._check(stored, where, data)
            parts.append((box, np.frombuffer(data, dtype).reshape(shape)))
        return assemble(entry.shape, dtype, parts, where) if entry.slices else parts[0][1]

    def extents(self, key: str, entry: Entry) -> list[Range]:
        """Return the ranges of a numeric tensor's bytes, one per slice; [] for a string tensor."""
        if find_dtype(dtype_name(entry.dtype)) is None:
            return []
        places = (
            self._file(stored.shard).place(stored.offset, stored.size, box)
            for box, stored in self._parts(key, entry, f"{self.path}, {key}")
        )
        return [*filter(None, places)]

    def _parts(self, key: str, entry: Entry, where: str) -> Iterator[tuple[Box, Entry]]:
        """Yield (box, entry) for each slice of a tensor; an unsliced tensor counts as one slice."""
        if not entry.slices:
            yield tuple(slice(0, size) for size in entry.shape), entry
        for part in entry.slices:
            stored = self.table.get(slice_key(key, part))
            if stored is None:
                raise DamagedError(where, "a slice of this tensor is missing from the index")
            slice_entry = _parse_entry(stored, f"{self._index_path}, {key}")
            yield box_of(part, entry.shape, where), slice_entry

    def read_string(self, key: str) -> bytes:
        """Return the bytes of a tensor that stores a single string."""
        entry = self.entry(key)
        where = f"{self.path}, {key}"
        if dtype_name(entry.dtype) != "string" or entry.shape != ():
            raise DamagedError(where, "is not a single string")
        data = self._read_bytes(entry, where)
        with Decoding(where, "the string's length"):
            length, start = varint(data, 0)
        if start + 4 + length != len(data):
            raise DamagedError(where, "the string's length does not fit the tensor's size")
        packed = length.to_bytes(4 if length < 1 << 32 else 8, "little")
        stored, text = data[start : start + 4], data[start + 4 :]
        self._check(entry, where, packed, stored, text)
        return text

    def _read_bytes(self, entry: Entry, where: str) -> bytes:
        file = self._file(entry.shard)
        data = file.read(entry.offset, entry.size)
        # Tensors do not share bytes: a small file must not claim huge tensors.
        if (where, entry.shard, entry.offset) not in self._read:
            self._read.add((where, entry.shard, entry.offset))
            self._bytes_read[entry.shard] += entry.size
        if self._bytes_read[entry.shard] > file.size:
            raise DamagedError(where, "its bytes overlap those of other tensors")
        return data

    def _check(self, entry: Entry, where: str, *parts: bytes) -> None:
        if masked_crc32c(*parts) == entry.crc32c:
            return
        file = self._file(entry.shard)
        file.refuse_lfs_pointer()
        file.refuse_changed()
        place = f"{file.path}, {where.partition(', ')[2]}"
        hint = "the file is damaged, or belongs to another checkpoint"
        raise DamagedError(place, "the data fails its checksum", hint)

    def _file(self, shard: int) -> File:
        if shard in self._files:
            return self._files[shard]
        file = self._folder.file(self._shards[shard]) if shard in self._shards else None
        if file is None:
            path = f"{self.path}.data-{shard:05d}-of-{max(self._shard_count, 1):05d}"
            hint = "copy it beside the index, or use --no-values for names and shapes alone"
            raise NotFoundError(path, "the checkpoint's data file is missing", hint)
        if len(self._files) < _MAX_OPEN:
            self._files[shard] = file
        return file


def _encoded(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, eq=False)
class _Variables(Mapping[str, Variable]):
    """The tensors of a bundle; an entry is parsed each time that its variable is requested."""

    bundle: Bundle
    names: Mapping[str, str]

    def __getitem__(self, key: str) -> Variable:
        entry = self.bundle.entry(key)
        return Variable(
            key,
            self.names.get(key, key),
            dtype_name(entry.dtype),
            entry.shape,
            partial(self.bundle.read, key, entry),
            partial(self.bundle.extents, key, entry),
        )

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self:
            return default
        return self[key]

    def __contains__(self, key: object) -> bool:
        is_key = isinstance(key, str) and key[:1] not in ("", "\0")
        return is_key and self.bundle.table.get(_encoded(str(key))) is not None

    def __iter__(self) -> Iterator[str]:
        for key, _ in self.bundle.table.items():
            if key[:1] not in (b"", b"\0"):
                yield key.decode("utf-8", "surrogateescape")

    def __len__(self) -> int:
        return sum(1 for _ in self)
