"""The formats of single files, in the order in which a file is offered to them."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from bnstat.formats.contents import Contents
from bnstat.model import Source
from bnstat.storage.files import File


class FileFormat(Protocol):
    """What a format's module offers."""

    def recognises(self, file: File) -> bool:
        """Whether the file's content is of this format."""
        ...

    def open_contents(self, file: File, source: Source) -> Contents:
        """What the file holds."""
        ...


FORMATS = (
    "keras.h5",
    "keras.weights",
    "exchange.hdf5_arrays",
    "keras.archive",
    "exchange.npz",
    "tensorflow.graphs.frozen_graph",
)
ARRAYS = ("bnstat.formats.exchange.hdf5_arrays", "bnstat.formats.exchange.npz")
"""Formats of any arrays: in a folder beside a model, such a file is data."""


def file_format(file: File) -> FileFormat | None:
    """The format that recognises the file."""
    for name in FORMATS:
        module = cast(FileFormat, import_module(f"bnstat.formats.{name}"))
        if module.recognises(file):
            return module
    return None


def holds_any_arrays(format_: FileFormat) -> bool:
    """Whether a format is one of any arrays, be they of a network or not."""
    return getattr(format_, "__name__", "") in ARRAYS
