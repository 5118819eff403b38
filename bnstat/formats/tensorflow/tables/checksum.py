"""The checksum of SSTable blocks and bundle tensors: CRC-32C, masked.

Masking (LevelDB's `util/crc32c.h`) keeps a checksum that is stored among the data it covers
from disturbing a checksum over both: rotate right by 15 bits, then add a constant.
"""

from __future__ import annotations

import google_crc32c

_DELTA = 0xA282EAD8


def masked_crc32c(*parts: bytes) -> int:
    """The masked CRC-32C of the parts, one after the other."""
    crc = 0
    for part in parts:
        crc = google_crc32c.extend(crc, part)
    return mask(crc)


def mask(crc: int) -> int:
    """The stored form of a CRC-32C."""
    return (((crc >> 15) | (crc << 17)) + _DELTA) & 0xFFFFFFFF
