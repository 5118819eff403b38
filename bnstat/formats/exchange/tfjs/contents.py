"""What a TensorFlow.js model holds: its weights, and its layers or its graph.

A layers model's topology is Keras's configuration; a graph model's is a GraphDef as JSON, whose
`Const` nodes have the weights' names and none of their numbers.

Source: tfjs-core/src/io/types.ts (`ModelJSON`); tfjs-converter/python/tensorflowjs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import BnstatError, DamagedError
from bnstat.formats.contents import Contents, Graph
from bnstat.formats.exchange.keras_layers import layers_by_scope
from bnstat.formats.exchange.tfjs.weights import Weight, read_manifest
from bnstat.formats.json_text import parse_json
from bnstat.model import Source, Variable
from bnstat.storage.files import File

_MOST_SMALL: Final = 1 << 12
"""Elements of a weight that can be part of a graph's structure, such as an epsilon."""


def open_model(file: File, source: Source) -> Contents:
    """The weights of a model, with its layers or its graph.

    Raises:
        DamagedError: the file or its shards contradict themselves.
        NotFoundError: a shard is missing.
    """
    parsed = parse_json(file.read(), file.path)
    if not isinstance(parsed, dict):
        raise DamagedError(file.path, "is no TensorFlow.js model")
    weights = read_manifest(file, parsed.get("weightsManifest"))
    variables = {
        each.name: Variable(
            each.name,
            each.name,
            each.dtype.name,
            each.shape,
            each.read,
            each.extents,
            each.step if each.quantization else None,
        )
        for each in weights
    }
    topology = parsed.get("modelTopology")
    contents = Contents(
        replace(source, format="tfjs", writer=_writer(parsed)),
        variables,
        notes=[*_unpacked(weights)],
    )
    if not isinstance(topology, dict):
        return contents
    if isinstance(topology.get("node"), list):
        graph = _graph(topology, variables, file.path)
        return replace(contents, graphs=lambda: (graph,))
    model, names = topology.get("model_config", topology), {key: key for key in variables}
    return replace(contents, layers=tuple(layers_by_scope(model, names, file.path)))


def _writer(parsed: Mapping[str, Any]) -> str | None:
    told = [parsed.get(key) for key in ("convertedBy", "generatedBy")]
    return next((text for text in told if isinstance(text, str) and text), None)


def _unpacked(weights: Sequence[Weight]) -> Iterator[str]:
    kinds = Counter(each.quantization.dtype.name for each in weights if each.quantization)
    for kind, count in sorted(kinds.items()):
        stored = "1 weight is" if count == 1 else f"{count} weights are"
        yield f"{stored} stored as {kind}: the numbers shown are unpacked, and as coarse as that"


def _graph(topology: Mapping[str, Any], variables: Mapping[str, Variable], where: str) -> Graph:
    from google.protobuf import json_format

    from bnstat.formats.protobuf.protos import message_class
    from bnstat.formats.tensorflow.graphs.graph_def import inlined

    message = message_class("GraphDef")()
    try:
        json_format.ParseDict(dict(topology), message, ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(where, "its modelTopology is no graph") from error
    ops = inlined(message)

    def constant(name: str) -> NDArray[np.generic] | None:
        if name not in variables or prod(variables[name].shape) > _MOST_SMALL:
            return None
        try:
            return variables[name].read()
        except BnstatError:
            return None

    return Graph("", ops, {name: name for name in variables if name in ops}, constant)
