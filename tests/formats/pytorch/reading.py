"""Reads PyTorch files, and writes them without PyTorch."""

from __future__ import annotations

import zipfile
from pathlib import Path

from bnstat.formats.contents import Contents
from bnstat.formats.pytorch.file import matches, open_contents
from bnstat.model import Source
from bnstat.storage.local import LocalFile


def opened(path: Path) -> Contents:
    assert matches(LocalFile(path))
    return open_contents(LocalFile(path), Source(str(path), ""))


def zipped(path: Path, pickle_: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", pickle_)
        for name, content in members.items():
            archive.writestr(f"m/{name.replace('__', '/')}", content)
    return path
