"""What an ONNX file holds: its initializers and constants, and the graph that uses them.

The key of a tensor is its name in the file; one in a nested graph that is called like another is
told apart by a `#2`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from bnstat.errors import UnsupportedError
from bnstat.formats.contents import Contents, Graph
from bnstat.formats.exchange.onnx.constants import evaluate
from bnstat.formats.exchange.onnx.graphs import constant, inline
from bnstat.formats.exchange.onnx.messages import Model, read_model
from bnstat.formats.exchange.onnx.tensors import find_array, read_array, type_name
from bnstat.formats.protobuf.scan import Window
from bnstat.formats.protobuf.wire import LARGEST_MESSAGE, WireError, damaged
from bnstat.model import Source, Variable
from bnstat.storage.files import File

_MOST_SMALL = 1 << 12
"""Elements of a tensor that can be part of a graph's structure, such as a shape."""


def contents_of(file: File, source: Source) -> Contents:
    """The tensors and the graph of an ONNX file.

    Raises:
        DamagedError: the file is truncated or contradicts itself.
        UnsupportedError: it is too large, or nested too deep.
    """
    if file.size >= LARGEST_MESSAGE:
        raise UnsupportedError(file.path, "is larger than an ONNX file can be")
    try:
        model = read_model(Window(file))
        inlined = inline(model, file.path)
        evaluate(inlined, file)
    except WireError as error:
        raise damaged(file.path, "the model", error) from error
    except UnicodeDecodeError as error:
        raise damaged(file.path, "a name", WireError(error)) from error
    variables = {}
    for name, key in inlined.keys.items():
        if name in inlined.computed:
            array = inlined.computed[name]
            if array.ndim:
                variables[key] = Variable(
                    key, _plain(key), array.dtype.name, array.shape, array.copy
                )
            continue
        tensor = inlined.constants[name]
        if tensor.shape is not None:
            variables[key] = Variable(
                key,
                _plain(key),
                type_name(tensor),
                tensor.shape,
                partial(read_array, file, tensor),
                partial(find_array, file, tensor),
            )
    held = {name: key for name, key in inlined.keys.items() if key in variables}
    small = partial(constant, inlined, file, most=_MOST_SMALL)
    graph = Graph("", inlined.ops, held, small)
    return Contents(
        replace(source, format="onnx", writer=_writer(model)),
        variables,
        names={key: variable.name for key, variable in variables.items()},
        graphs=lambda: (graph,),
    )


def _plain(key: str) -> str:
    """A tensor's name without the `:0` that converters keep from TensorFlow."""
    return key.removesuffix(":0")


def _writer(model: Model) -> str | None:
    opset = f"(opset {model.opset})" if model.opset is not None else ""
    return " ".join(part for part in (model.producer, opset) if part) or None
