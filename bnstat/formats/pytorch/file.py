"""Recognition of files that PyTorch saved.

    since 1.6   a zip: `NAME/data.pkl`, and `NAME/data/KEY` for each storage, uncompressed
    before 1.6  five pickles: a magic number, a version, facts about the machine, the object, the
                keys of the storages; then each storage: number of elements (u64), bytes;
                little-endian whatever the machine

Sources: torch/serialization.py, `_save`, `_legacy_save`; torch/csrc/generic/serialization.cpp.
"""

from __future__ import annotations

import re
from typing import Final

from bnstat.errors import DamagedError
from bnstat.formats.contents import Contents
from bnstat.formats.detection import first_in_zip
from bnstat.model import Source
from bnstat.storage.files import File

_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY: Final = re.compile(
    rb"\x80.(?:\x95.{8})?\x8a\x0a"
    + re.escape(_MAGIC.to_bytes(10, "little"))
    + rb"\.|L%dL\n\." % _MAGIC,
    re.DOTALL,
)
"""The first pickle of a file from before 1.6. Protocol 4 and later wrap it in a frame; protocols 0
and 1 write the number as text."""


def matches(file: File) -> bool:
    """Return True for PyTorch's zip, complete or cut short, and for a file from before 1.6."""
    if _LEGACY.match(file.head(32)):
        return True
    first = first_in_zip(file)
    if first is None or b"/" not in first:
        return False
    if first.endswith(b"/data.pkl"):
        return True
    from bnstat.formats.pytorch.storages import find_pickle

    try:
        find_pickle(file)
    except DamagedError:
        return False
    return True


def open_contents(file: File, source: Source) -> Contents:
    """Return the tensors of a file."""
    from bnstat.formats.pytorch import storages

    return storages.open_contents(file, source)
