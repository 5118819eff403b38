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
    "exchange.safetensors",
    "exchange.onnx.file",
    "exchange.pytorch.file",
    "keras.archive",
    "tensorflow.graphs.frozen_graph",
)

_FOREIGN = (
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"\x80\x02", "a Python pickle that is not PyTorch's"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"GGUF", "a GGUF model"),
    (0, b"#!", "a script"),
    (0, b"<", "a web page or XML"),
)


def file_format(file: File) -> FileFormat | None:
    """The format that recognises the file."""
    for name in FORMATS:
        module = cast(FileFormat, import_module(f"bnstat.formats.{name}"))
        if module.recognises(file):
            return module
    return None


def foreign_format(file: File) -> str | None:
    """What a file of no known format looks like, for the message."""
    if file.size == 0:
        return "empty"
    head = file.head(64)
    for offset, magic, what in _FOREIGN:
        if head[offset:].startswith(magic):
            return what
    return None
