"""A file of TensorFlow Lite: a flatbuffer whose identifier is `TFL3`."""

from __future__ import annotations

from typing import Final

from bnstat.formats.contents import Contents
from bnstat.model import Source
from bnstat.storage.files import File

_IDENTIFIER: Final = b"TFL3"
_AT: Final = 4


def recognises(file: File) -> bool:
    """Whether the file is a TensorFlow Lite model."""
    return file.head(_AT + len(_IDENTIFIER))[_AT:] == _IDENTIFIER


def open_contents(file: File, source: Source) -> Contents:
    """The constants of a file that `recognises`. Raises as `contents_of` does."""
    from bnstat.formats.exchange.tflite.contents import contents_of

    return contents_of(file, source)
