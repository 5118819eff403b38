"""ONNX files, which consist of one ModelProto.

The variables are the initializers and constants. The key of a variable is its name in the file. If
nested graphs repeat a name, `#2` is appended to the second key, and so on.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from bnstat.errors import BnstatError, UnsupportedError
from bnstat.formats.contents import Contents, Graph
from bnstat.formats.protobuf.wire import LARGEST_MESSAGE, Window, WireError, scan
from bnstat.model import Source
from bnstat.storage.files import File

_KINDS: Final = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_GRAPH_FIELDS: Final = frozenset({1, 2, 5, 10, 11, 12, 13, 14, 15, 16})
"""The numbers of the fields of a GraphProto, which all have wire type 2."""
_LATEST_IR: Final = 100
"""An upper bound for the format's version (`ir_version`), which reached 13 in ten years."""
_MAX_SMALL: Final = 1 << 12
"""Tensors with at most this many elements are read as constants of the graph, such as shapes."""


def matches(file: File) -> bool:
    """Return True if the file starts like a ModelProto with a graph."""
    head = file.head(2)
    if head[:1] != b"\x08" or not 1 <= head[-1] <= _LATEST_IR:
        return False
    read = Window(file).read
    try:
        for each in scan(read, 0, file.size):
            if _KINDS.get(each.number) != each.kind:
                return False
            if each.number == 7:
                end = min(each.end, file.size)
                first = next(scan(read, each.start, end), None)
                return first is not None and first.number in _GRAPH_FIELDS and first.kind == 2
    except (WireError, BnstatError):
        pass
    return False


def open_contents(file: File, source: Source) -> Contents:
    """Return the tensors and the graph of a file."""
    from bnstat.formats.onnx.evaluation import evaluate
    from bnstat.formats.onnx.graphs import Inlined
    from bnstat.formats.protobuf.protos import skeleton

    if file.size >= LARGEST_MESSAGE:
        raise UnsupportedError(file.path, "is larger than an ONNX file can be")
    model = skeleton(file, 0, file.size, "OnnxModel", "the model")
    inlined = Inlined(model, file)
    evaluate(inlined)
    variables, keys = inlined.variables()
    small = partial(inlined.constant, largest=_MAX_SMALL)
    graph = Graph("", inlined.ops, keys, small)
    versions = (each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    opsets = [f"(opset {version})" for version in versions if version]
    # For example `pytorch 2.1 (opset 17)`.
    parts = filter(None, (model.producer_name, model.producer_version, *opsets[-1:]))
    return Contents(
        replace(source, format="onnx", writer=" ".join(parts) or None),
        variables,
        names={key: variable.name for key, variable in variables.items()},
        graphs=lambda: (graph,),
    )
