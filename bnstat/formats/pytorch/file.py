"""A file that PyTorch saved.

Since PyTorch 1.6 such a file is a zip (`NAME/data.pkl`, `NAME/data/KEY` for each storage, not
compressed); before it was a run of pickles (a magic number, a version, facts about the machine,
the object, the keys of its storages) with the storages behind, each a u64 count and its bytes;
and in PyTorch 0.1 a tar of `pickle`, `storages` and `tensors`, which is refused.

Source: torch/serialization.py, `_save`, `_legacy_save`.
"""

from __future__ import annotations

import re
from typing import Final

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.model import Source
from bnstat.storage.files import File, Folder

_ZIP: Final = b"PK\x03\x04"
_LENGTH_AT: Final = 26
_NAME_AT: Final = 30
"""Where the length of the first member's name lies in a zip, and the name."""

_TAR_AT: Final = 257
_TAR: Final = b"ustar"

PICKLE: Final = "data.pkl"
_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY: Final = re.compile(
    rb"\x80.(?:\x95.{8})?\x8a\x0a"
    + re.escape(_MAGIC.to_bytes(10, "little"))
    + rb"\.|L%dL\n\." % _MAGIC,
    re.DOTALL,
)
"""The first pickle of a file before 1.6; later protocols put a frame around it, and those before
2 write the number as text."""


def matches(file: File) -> bool:
    """Whether this is PyTorch's zip, be it cut short, or its older form."""
    if is_legacy(file) or is_tar(file):
        return True
    head = file.head(_NAME_AT)
    if not head.startswith(_ZIP):
        return False
    length = int.from_bytes(head[_LENGTH_AT : _LENGTH_AT + 2], "little")
    first = file.head(_NAME_AT + length)[_NAME_AT:]
    if b"/" not in first:
        return False
    if first.endswith(b"/" + PICKLE.encode()):
        return True
    from bnstat.storage.archive import open_archive

    try:
        folder = open_archive(file)
    except DamagedError:
        return False
    return folder is not None and top_folder(folder) is not None


def open_contents(file: File, source: Source) -> Contents:
    """Return the tensors of a file that `matches`.

    Raises:
        UnsupportedError: it is a tar of PyTorch 0.1.
        BnstatError: as `contents_of`.
    """
    if is_tar(file):
        raise UnsupportedError(
            file.path,
            "is a tar of PyTorch 0.1, which bnstat does not read",
            "load it with torch.load, and save it again with torch.save",
        )
    from bnstat.formats.pytorch.contents import contents_of

    return contents_of(file, source)


def is_legacy(file: File) -> bool:
    """Whether the file is of the form before PyTorch 1.6."""
    return _LEGACY.match(file.head(32)) is not None


def is_tar(file: File) -> bool:
    """Whether the file is of the form of PyTorch 0.1."""
    if file.head(_TAR_AT + len(_TAR))[_TAR_AT:] != _TAR:
        return False
    from bnstat.storage.archive import open_archive

    try:
        folder = open_archive(file)
    except DamagedError:
        return False
    return folder is not None and {"pickle", "storages", "tensors"} <= set(folder.names())


def top_folder(folder: Folder) -> Folder | None:
    """The folder in the archive that has the pickle; there is one, named after the file."""
    if folder.file(PICKLE) is not None:
        return folder
    for name in folder.names()[:2]:
        below = folder.folder(name)
        if below is not None and below.file(PICKLE) is not None:
            return below
    return None
