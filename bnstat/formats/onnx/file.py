"""A file in ONNX's format: a ModelProto, and nothing before or behind it.

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

_GRAPH_KINDS = {1: 2, 2: 2, 5: 2, 10: 2, 11: 2, 12: 2, 13: 2, 14: 2, 15: 2, 16: 2}
"""The same of a GraphProto."""

_LATEST_IR = 100
"""A bound on the versions of the format, of which there were 13 in ten years."""


def matches(file: File) -> bool:
    """Whether the file starts as a ModelProto with a graph does."""
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
                return first is not None and _GRAPH_KINDS.get(first.number) == first.kind
    except (WireError, BnstatError):
        pass
    return False


def open_contents(file: File, source: Source) -> Contents:
    """The tensors and the graph of a file that `matches`. Raises as `contents_of` does."""
    from bnstat.formats.onnx.contents import contents_of

    return contents_of(file, source)
