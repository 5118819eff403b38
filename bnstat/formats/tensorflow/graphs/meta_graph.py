"""The graph that TensorFlow 1 saves beside a checkpoint: a MetaGraphDef in `PREFIX.meta`."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator

from bnstat.errors import BnstatError
from bnstat.formats.contents import Graph
from bnstat.formats.protobuf.wire import LARGEST_MESSAGE
from bnstat.storage.files import File


def meta_graphs(meta: File | None, keys: Container[str]) -> Callable[[], Iterable[Graph]] | None:
    """Reads the graph in a `.meta` file, for a checkpoint that has these keys.

    It only adds to what the checkpoint says: where there is none, or none that can be read,
    there is no graph.
    """
    if meta is None or meta.size >= LARGEST_MESSAGE:
        return None

    def read() -> Iterator[Graph]:
        from bnstat.formats.protobuf.protos import parse
        from bnstat.formats.tensorflow.graphs.graph_def import graph_of

        try:
            graph = parse("MetaGraphDef", meta.read(), meta.path, "the graph").graph_def
        except BnstatError:
            return
        yield graph_of(graph, lambda name: name if name in keys else None)

    return read
