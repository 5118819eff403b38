"""Snappy blocks, in which some SSTables are compressed.

A block is the varint length of the text, then elements, told apart by the low two bits of
their first byte (https://github.com/google/snappy/blob/main/format_description.txt):

    00  literal: length - 1 in the high six bits, or 60..63 for 1..4 bytes of it; then the text
    01  copy: length - 4 in bits 2..4, offset in bits 5..7 and one more byte
    10  copy: length - 1 in the high six bits, offset in two bytes
    11  copy: length - 1 in the high six bits, offset in four bytes

A copy repeats what stands `offset` bytes before the end of the text, and may overlap it.
"""

from __future__ import annotations

from bnstat.formats.protobuf.wire import WireError, varint

_MAX_RATIO = 64
"""No element of n bytes makes more than 64 bytes of text, so neither can a block."""


def decompress(block: bytes) -> bytes:
    """The text of a block.

    Raises:
        WireError: the block is damaged, or claims more text than it can hold.
    """
    size, position = varint(block, 0)
    if size > _MAX_RATIO * len(block):
        raise WireError(f"{len(block)} compressed bytes cannot make {size}")
    text = bytearray()
    while position < len(block):
        tag = block[position]
        position += 1
        kind, high = tag & 3, tag >> 2
        if kind == 0:
            length = high + 1
            if high >= 60:
                length, position = _little_endian(block, position, high - 59)
                length += 1
            if position + length > len(block):
                raise WireError("a literal is longer than its block")
            text += block[position : position + length]
            position += length
        else:
            if kind == 1:
                low, position = _little_endian(block, position, 1)
                length, offset = (high & 7) + 4, (high >> 3) << 8 | low
            else:
                offset, position = _little_endian(block, position, 2 if kind == 2 else 4)
                length = high + 1
            if not 0 < offset <= len(text):
                raise WireError("a copy from before the text")
            start = len(text) - offset
            if offset >= length:
                text += text[start : start + length]
            else:
                pattern = text[start:]
                text += (pattern * (length // offset + 1))[:length]
        if len(text) > size:
            break
    if len(text) != size:
        raise WireError(f"the text has {len(text)} bytes instead of {size}")
    return bytes(text)


def _little_endian(block: bytes, position: int, width: int) -> tuple[int, int]:
    if position + width > len(block):
        raise WireError("the block ends within an element")
    return int.from_bytes(block[position : position + width], "little"), position + width
