"""The objects of an HDF5 file: where they are, and the messages that describe them.

    superblock v0, v1  signature, 5 bytes, size of addresses, size of lengths, ..., addresses of
                       the start, the free space, the end, the driver; the root's name and header
    superblock v2, v3  signature, version, the two sizes, flags, addresses of the start, the
                       extension, the end and the root's header
    object header v1   version, messages (u16), references (u32), size (u32), then messages of
                       type (u16), size (u16), flags, 3 unused; data
    object header v2   "OHDR", version, flags, ..., then messages of type (u8), size (u16),
                       flags, [order (u16)]; data; a checksum at the end of each block

What the messages say is in `file`, `attributes` and `datasets`. None of these modules
uses the HDF5 library: damaged files make it loop forever or allocate without a bound.

Source: HDF5 File Format Specification 3.0, sections II.A, IV.A.1 and IV.A.2,
https://docs.hdfgroup.org/hdf5/develop/_f_m_t3.html
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.storage.files import File
from bnstat.storage.ranges import Range

SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"

DATASPACE: Final = 0x01
LINK_INFO: Final = 0x02
DATATYPE: Final = 0x03
OLD_FILL: Final = 0x04
FILL: Final = 0x05
LINK: Final = 0x06
EXTERNAL: Final = 0x07
LAYOUT: Final = 0x08
FILTERS: Final = 0x0B
ATTRIBUTE: Final = 0x0C
ATTRIBUTE_INFO: Final = 0x15
SYMBOL_TABLE: Final = 0x11
_EMPTY: Final = 0x00
_CONTINUATION: Final = 0x10
_SHARED: Final = 0x02

_WASTE: Final = 0.01
_WASTE_AT_LEAST: Final = 1 << 20
"""So much of a file that is far away may be fetched without being needed, to save requests."""

_READ_RATIO: Final = 8
_READ_FLOOR: Final = 16 << 20


def signature_offset(file: File) -> int | None:
    """Where HDF5 begins: at byte 0 or, after a user block, at 512, 1024, 2048, ...

    An HDF5 file that is a member of a tar or a zip can stand there as well; that is not it. Of a
    file that is far away, no more than the beginning is searched.
    """
    head = file.head(512)
    if head[257:262] == b"ustar" or head.startswith(b"PK\x03\x04"):
        return None
    offset = 0
    while offset + len(SIGNATURE) <= file.size and file.has(offset, len(SIGNATURE)):
        if file.read(offset, len(SIGNATURE)) == SIGNATURE:
            return offset
        offset = offset * 2 or 512
    return None


class Cursor:
    """Bytes that are consumed from the front; asking for more than there are is damage."""

    def __init__(self, data: bytes, path: str) -> None:
        self.data = data
        self.path = path
        self.at = 0

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self.data) - self.at

    def take(self, length: int) -> bytes:
        """The next bytes."""
        if length > self.left:
            raise DamagedError(self.path, "damaged HDF5: a structure is cut short")
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, length: int) -> int:
        """The next little-endian number of `length` bytes."""
        return int.from_bytes(self.take(length), "little")


@dataclass(frozen=True, slots=True)
class Message:
    """A message of an object header.

    Attributes:
        kind: its type, one of this module's numbers.
        is_shared: whether `body` but tells where the message is.
        body: its data.
    """

    kind: int
    is_shared: bool
    body: bytes


class AbsentError(Exception):
    """Bytes that would have to be fetched first.

    Attributes:
        spans: the address and length of each piece.
    """

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        self.spans = spans
        super().__init__(spans)


class Objects:
    """The objects of one file, by the addresses of their headers.

    Attributes:
        path: the file, for messages.
        size: the file's size.
        root: the address of the root group's header.
        offset_size, length_size: how many bytes an address and a length take.
    """

    def __init__(self, file: File) -> None:
        """Read the superblock.

        Raises:
            DamagedError: it is not HDF5, or cut short.
        """
        self.path = file.path
        self.size = file.size
        self._file = file
        self._makes_trips = True
        file.allow_waste(max(int(self.size * _WASTE), _WASTE_AT_LEAST))
        self._unread = _READ_RATIO * file.size + _READ_FLOOR
        start = signature_offset(file)
        if start is None:
            raise self.damage("its signature is missing")
        self._start = start
        head = self.cursor(8, min(128, file.size - start - 8))
        version = head.number(1)
        if version > 3:
            raise UnsupportedError(self.path, f"is HDF5 of a newer version ({version})")
        head.take(4 if version < 2 else 0)
        self.offset_size, self.length_size = head.number(1), head.number(1)
        if not {self.offset_size, self.length_size} <= {4, 8}:
            raise self.damage("its addresses have no valid size")
        head.take({0: 9, 1: 13, 2: 1, 3: 1}[version])
        base = self.address(head)
        head.take(self.offset_size)
        end = self.address(head)
        head.take(2 * self.offset_size if version < 2 else 0)
        self.root = self.address(head)
        stored = end - base + start
        if stored > file.size:
            raise DamagedError(
                self.path,
                f"truncated: it has {file.size} of {stored} bytes",
                "copy or download it again",
            )

    def damage(self, what: str) -> DamagedError:
        """The error to raise where the file contradicts itself."""
        return DamagedError(self.path, f"damaged HDF5: {what}")

    def address(self, cursor: Cursor) -> int:
        """The next address."""
        return cursor.number(self.offset_size)

    def is_undefined(self, address: int) -> bool:
        """Whether an address stands for none."""
        return address == (1 << 8 * self.offset_size) - 1

    def cursor(self, address: int, length: int) -> Cursor:
        """The bytes at an address.

        Structures do not overlap in a sound file; a file in which thousands of them share one
        large block is given up once it was read several times over.
        """
        if not self._makes_trips:
            self.expect([(address, length)])
        self._unread -= length
        if self._unread < 0:
            raise self.damage("its structures overlap")
        return Cursor(self._file.read(self._start + address, length), self.path)

    @contextmanager
    def no_trips(self) -> Iterator[None]:
        """Raise `AbsentError` where bytes would have to be fetched."""
        self._makes_trips = False
        try:
            yield
        finally:
            self._makes_trips = True

    def fetch(self, spans: Iterable[tuple[int, int]]) -> None:
        """Fetch the bytes at these addresses of these lengths, and some between them."""
        self._file.prefetch([(self._start + address, length) for address, length in spans])

    def expect(self, spans: Iterable[tuple[int, int]]) -> None:
        """Say what will be read next, by addresses and lengths.

        Raises:
            AbsentError: some of it is lacking, and no trips are to be made.
        """
        if self._makes_trips:
            return
        lacking = [span for span in spans if not self._file.has(self._start + span[0], span[1])]
        if lacking:
            raise AbsentError(lacking)

    def array_bytes(self, address: int, length: int) -> bytes:
        """The bytes of an array's elements."""
        return self._file.read(self._start + address, length)

    def place(self, address: int, length: int, part: tuple[slice, ...] | None) -> Range | None:
        """Where bytes at an address lie in the file; see `File.place`."""
        return self._file.place(self._start + address, length, part)

    def messages(self, header: int) -> Iterator[Message]:
        """The messages of the object whose header is at that address."""
        prefix = self.cursor(header, 12).data
        is_v2 = prefix.startswith(b"OHDR")
        if is_v2:
            flags = prefix[5]
            at = header + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 3)
            pending = [(at + width, self.cursor(at, width).number(width))]
            head = struct.Struct("<BHB2x" if flags & 0x04 else "<BHB")
        else:
            pending = [(header + 16, int.from_bytes(prefix[8:12], "little"))]
            head = struct.Struct("<HHB3x")
        while pending:
            data = self.cursor(*pending.pop(0)).data
            at = 0
            while at + head.size <= len(data):
                kind, size, flags = head.unpack_from(data, at)
                at += head.size + size
                if at > len(data):
                    raise self.damage("an object header is cut short")
                body = data[at - size : at]
                if kind == _CONTINUATION:
                    place = Cursor(body, self.path)
                    address, extent = self.address(place), place.number(self.length_size)
                    # Version 2 has "OCHK" before the messages and a checksum after them.
                    pending.append((address + 4, extent - 8) if is_v2 else (address, extent))
                elif kind != _EMPTY:
                    yield Message(kind, bool(flags & _SHARED), body)

    def dimensions(self, dataspace: bytes) -> tuple[int, ...] | None:
        """The shape that a dataspace tells; None where there are no elements at all."""
        space = Cursor(dataspace, self.path)
        version, rank, _ = space.number(1), space.number(1), space.number(1)
        if version == 1:
            space.take(5)
        elif space.number(1) == 2:
            return None
        return tuple(space.number(self.length_size) for _ in range(rank))


def product(shape: tuple[int, ...]) -> int:
    """The number of elements of a shape, however many."""
    return math.prod(shape)
