"""ONNX files, which consist of one ModelProto.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from bnstat.errors import BnstatError
from bnstat.formats.contents import Contents
from bnstat.formats.protobuf.wire import Window, WireError, scan
from bnstat.model import Source
from bnstat.storage.files import File

_KINDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
"""Field of a ModelProto -> its wire type."""

_GRAPH_FIELDS = {1, 2, 5, 10, 11, 12, 13, 14, 15, 16}
"""The fields of a GraphProto, all of wire type 2."""

_LATEST_IR = 100
"""An upper bound for the version of the format; there were 13 in ten years."""


def matches(file: File) -> bool:
    """Return True if the file starts like a ModelProto with a graph."""
    head = file.head(2)
    if head[:1] != b"\x08" or not 1 <= head[-1] <= _LATEST_IR:
        return False
    window = Window(file)
    try:
        for each in scan(window, 0, file.size):
            if _KINDS.get(each.number) != each.kind:
                return False
            if each.number == 7:
                end = min(each.end, file.size)
                first = next(scan(window, each.start, end), None)
                return first is not None and first.number in _GRAPH_FIELDS and first.kind == 2
    except (WireError, BnstatError):
        pass
    return False


def open_contents(file: File, source: Source) -> Contents:
    """Return the tensors and the graph of a file that `matches`. Raises as `contents_of`."""
    from bnstat.formats.onnx.contents import contents_of

    return contents_of(file, source)
