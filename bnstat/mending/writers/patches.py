"""The bytes of arrays that files hold as they are."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np

from bnstat.formats.contents import Contents
from bnstat.model import Array
from bnstat.storage.ranges import Range


def patch(contents: Contents, arrays: Mapping[str, Array]) -> tuple[list[Range], list[str]]:
    """Replace the bytes of arrays.

    Returns:
        What was replaced, and the keys of the variables that are stored in another form.
    """
    done: list[Range] = []
    others = []
    for key, array in arrays.items():
        places = contents.variables[key].extents()
        if array.size and (not places or any(place.part is None for place in places)):
            others.append(key)
            continue
        for place in places:
            assert place.part is not None
            overwrite(place.file.path, place.offset, raw(array[place.part]))
            done.append(place)
    return done, others


def overwrite(path: str, offset: int, data: bytes) -> None:
    """Replace some bytes of a file."""
    with open(path, "r+b", 0) as file:
        file.seek(offset)
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]


def raw(array: Array) -> bytes:
    """An array's bytes as files have them: row-major and little-endian."""
    if sys.byteorder == "big":
        raw_integers = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
        return raw_integers.byteswap().tobytes()
    return array.tobytes()
