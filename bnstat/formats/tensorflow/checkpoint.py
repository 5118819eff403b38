"""TensorFlow checkpoints in bundle form: by objects (TensorFlow 2) or by names (TensorFlow 1).

A TensorFlow 2 checkpoint holds its object graph among its tensors. One of TensorFlow 1 is keyed
by the variables' names, and often has the graph it belongs to beside it, as `PREFIX.meta`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from bnstat.errors import BnstatError
from bnstat.formats.contents import Contents, Objects, Reading, Search
from bnstat.formats.tensorflow.graphs.meta_graph import meta_graphs
from bnstat.formats.tensorflow.object_graph import KEY, VALUE, read_nodes
from bnstat.formats.tensorflow.object_names import BestNames, path_name
from bnstat.formats.tensorflow.tensors import Tensors, open_tensors
from bnstat.model import Source
from bnstat.storage.files import Folder

if TYPE_CHECKING:
    from bnstat.formats.keras.config import Described


def open_checkpoint(folder: Folder, prefix: str, source: Source, reading: Reading) -> Contents:
    """What the checkpoint of that prefix holds.

    Args:
        folder: where its files lie.
        prefix: what their names start with; may be empty.
        source: where the user pointed.
        reading: how to read.

    Raises:
        NotFoundError, DamagedError, UnsupportedError: see `Bundle`.
    """
    tensors = open_tensors(folder, prefix, reading)
    step = source.step if source.step is not None else _global_step(tensors, reading)
    if KEY in tensors.keys:
        nodes, notes = read_object_graph(tensors, reading)
        names, search = names_of(nodes, tensors)
        contents = Contents(
            source=replace(source, format="tf2-checkpoint", step=step),
            variables=tensors.variables(names),
            names=names,
            search=search,
            objects=nodes,
            notes=notes,
        )
        return replace(contents, configured=partial(_configured, contents)) if nodes else contents
    return Contents(
        source=replace(source, format="tf1-checkpoint", step=step),
        variables=tensors.variables({}),
        graphs=meta_graphs(folder.file(prefix + ".meta"), tensors.keys),
    )


def _configured(contents: Contents, described: Sequence[Described]) -> Contents:
    from bnstat.formats.keras.objects import layers_of_objects

    return replace(contents, layers=layers_of_objects(described, contents.objects))


def read_object_graph(tensors: Tensors, reading: Reading) -> tuple[Objects, list[str]]:
    """The object graph, and what has to be said of it.

    It lies in a data file: where no values are wanted, its absence is no error.
    """
    try:
        return read_nodes(tensors.read_string(KEY), tensors.path), []
    except BnstatError:
        if reading.values:
            raise
        return Objects(), ["without the data files, layers are named by their checkpoint keys"]


def names_of(nodes: Objects, tensors: Tensors) -> tuple[Mapping[str, str], Search | None]:
    """The variables' best names, and how to look for some of them.

    Without an object graph the names are spelt by the checkpoint keys.
    """
    if nodes:
        names = BestNames(nodes)
        return names, names.ending_with
    return {key: path_name(key) for key in tensors.keys if key.endswith(VALUE)}, None


def _global_step(tensors: Tensors, reading: Reading) -> int | None:
    """The training step that a TensorFlow 1 checkpoint counts in `global_step`."""
    if not reading.values or "global_step" not in tensors.keys:
        return None
    try:
        step = tensors.read("global_step")
    except BnstatError:
        return None
    return int(step) if step.shape == () and step.dtype.kind in "iu" else None
