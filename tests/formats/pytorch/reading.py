"""Reads PyTorch files, and writes them without PyTorch."""

from __future__ import annotations

from pathlib import Path

from bnstat.formats.contents import Contents
from bnstat.formats.pytorch.file import matches, open_contents
from bnstat.model import Source
from bnstat.storage.local import LocalFile
from tests.fuzz import ports
from tests.fuzz.handmade import values


def opened(path: Path) -> Contents:
    assert matches(LocalFile(path))
    return open_contents(LocalFile(path), Source(str(path), ""))


def zipped(path: Path, pickle_: bytes, *storages: bytes) -> Path:
    """Write a zip with these storages under the keys `0`, `1`, ..."""
    members = {str(key): content for key, content in enumerate(storages)}
    path.write_bytes(ports.pytorch_zip(pickle_, members))
    return path


def arrays(times: int = 1) -> list[bytes]:
    """Return the contents of the storages of `ports.tensors()`."""
    return [array.tobytes() for array in values().values()] * times
