"""Files that are not models but are often passed as models, each with a hint.

Sources: the specifications of the formats; mlmodel/format/Model.proto of apple/coremltools.
"""

from __future__ import annotations

import re
from typing import Final

from bnstat.errors import UnknownFormatError
from bnstat.storage.files import File

_HEAD: Final = 1 << 16
_UNPACK: Final = "unpack it first"

_STARTS: Final = (
    (rb"\Z", "empty", "copy or download it again"),
    (rb"\x93NUMPY", "a single NumPy array",
     "save the arrays by name with numpy.savez: bn/moving_mean, bn/moving_variance, ..."),
    (rb"\x1f\x8b", "compressed by gzip, but not a tar archive", _UNPACK),
    (rb"BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd", "compressed by bzip2, xz or zstd", _UNPACK),
    (rb"7z\xbc\xaf\x27\x1c|Rar!", "a 7-Zip or RAR archive", _UNPACK),
    (rb"\s*(<\?xml|<!DOCTYPE|<html|<)[^\0]*\Z", "a web page or XML", "download the file itself"),
    (rb'\s*"?\{.*"class_name\\?"\s*:.*"config\\?"\s*:',
     "the architecture of a Keras model alone, without weights",
     "pass the file of weights, and this file as --config"),
)  # fmt: skip
"""A pattern of the first bytes of a file, what the file is, and what to do."""

_LENGTH: Final = rb"[\x80-\xff]{0,4}[\0-\x7f]"
_CORE_ML: Final = re.compile(
    rb"\x08[\x01-\x0f]\x12" + _LENGTH + rb"\x0a" + _LENGTH + rb"\x0a[\x01-\x7f][ -~]+\x1a"
)
"""`specificationVersion`, then a `description` whose first input has a name and a type."""


def is_core_ml(head: bytes) -> bool:
    """Return True if a file starts like a Core ML model.

    Version 1 starts like a SavedModel too, so the recognition of SavedModels excludes such files.
    """
    return _CORE_ML.match(head) is not None


def refuse_foreign(file: File) -> None:
    """Raise an error that names the kind of the file, if the kind is known but is not a model."""
    from bnstat.formats.hdf5.file import is_hdf5

    head = file.head(_HEAD)
    for pattern, what, hint in _STARTS:
        if re.match(pattern, head, re.DOTALL):
            raise UnknownFormatError(file.path, f"is {what}", hint)
    if is_core_ml(head):
        hint = "pass the TensorFlow or Keras model that it was converted from"
        raise UnknownFormatError(file.path, "is a Core ML model", hint)
    if is_hdf5(file):
        hint = "pass the .h5 file that contains the weights"
        raise UnknownFormatError(file.path, "is an HDF5 file without arrays of numbers", hint)
