"""A model as NPZ, NumPy's archive of arrays: `numpy.load(file, allow_pickle=False)` reads it.

The keys are `<layer>/<role>`, or those of another form. Arrays are stored as in the model, bit for
bit; those of a type that NumPy does not have by itself are stored in one that holds the same
numbers exactly: bfloat16 and 8-bit floats as float32, 4-bit integers as int8. The same model
always gives the same bytes.

The archive is a ZIP of uncompressed `.npy` members
(https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html), whose names cannot hold
a zero byte or a lone surrogate: these are written as escapes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import BinaryIO, Final, cast

import numpy as np

from bnstat.errors import UnsupportedError
from bnstat.model import BatchNorm, Model, printable
from bnstat.output.documents.exports.form import PLAIN, Form
from bnstat.output.numbers import portable

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_LONGEST_NAME: Final = 65535


def dump(
    model: Model,
    file: BinaryIO,
    form: Form = PLAIN,
    *,
    track: Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]] = iter,
) -> None:
    """Write a model as NPZ.

    Args:
        model: what to write.
        file: open for writing bytes; it need not be seekable.
        form: what is written, and under which names.
        track: passes the layers on, such as to show progress.

    Raises:
        BnstatError: a variable cannot be read, or a layer's name is too long for a ZIP.
    """
    with zipfile.ZipFile(cast(BinaryIO, _Forward(file)), "w", zipfile.ZIP_STORED) as archive:
        for layer in track(model.layers):
            for part in form.parts:
                array = form.array(layer, part)
                if array is not None:
                    info = zipfile.ZipInfo(_member(form.key(layer, part), layer.name), _EPOCH)
                    with archive.open(info, "w", force_zip64=True) as target:
                        np.lib.format.write_array(target, portable(array), allow_pickle=False)


class _Forward:
    """A stream that only goes forward, for a device such as `/dev/null` tells wrong positions."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write
        self.flush = file.flush


def member(layer: str, role: str) -> str:
    """The name of the archive's member that holds a role of a layer.

    Raises:
        UnsupportedError: the layer's name is too long for a ZIP.
    """
    return _member(f"{layer}/{role}", layer)


def _member(key: str, layer: str) -> str:
    name = f"{key}.npy"
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        name = printable(name)
        encoded = name.encode()
    if len(encoded) > _LONGEST_NAME:
        raise UnsupportedError(
            f"{printable(layer[:40])}...",
            "this layer's name is too long for an NPZ file",
            "export JSON instead",
        )
    return name
