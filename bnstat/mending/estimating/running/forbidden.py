"""Ops that reach beyond the graph: to files, to the network, to Python."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from bnstat.errors import UnsupportedError

_FORBIDDEN = re.compile(
    r"ReadFile|WriteFile|MatchingFiles|.*PyFunc.*|.*PyClient.*|NumpyFunction"
    r"|Save|SaveV2|SaveSlices|Restore.*|ShardedFilename|Merge.*Checkpoints.*|LoadAndRemapMatrix"
    r"|GenerateVocabRemapping|.*FromTextFile.*|ImmutableConst|.*Checkpoint.*"
    r"|.*Reader(V2)?|ReaderRead.*|.*Dataset(V\d)?|.*Snapshot.*Chunk.*|.*Iterator.*"
    r"|.*Summary(V2|Writer|Db|File)?.*Writer.*|Write.*Summary|ImportEvent|PrintV2"
    r"|Debug.*|Copy|CopyHost|.*Send|.*Recv|.*Rpc.*|Remote.*|.*Library.*|Decode.*File.*"
    r"|TPU.*|Xla.*|_Xla.*|.*Lmdb.*|.*Kafka.*|.*BigQuery.*|.*Bigtable.*|DataServiceDataset.*"
)
"""Ops that read or write files, call Python or another process, or load code.

Sources: tensorflow/core/ops/{io,script,dataset,experimental_dataset,summary,debug,sendrecv,
function,lookup,checkpoint}_ops.cc."""

_SAFE = re.compile(r"Tensor(Slice|)Dataset|ReduceDataset|RangeDataset|.*Snapshot")
"""Ops of such names that stay within the graph."""


def refuse_dangerous(nodes: Iterable[Any], where: str) -> None:
    """Raise where one of these `NodeDef`s reaches beyond the graph.

    Raises:
        UnsupportedError: it names the ops.
    """
    found = {
        node.op for node in nodes if _FORBIDDEN.fullmatch(node.op) and not _SAFE.fullmatch(node.op)
    }
    if found:
        raise UnsupportedError(
            where,
            f"running it would execute {', '.join(sorted(found))}, "
            "which reach files, the network or Python",
            "--trust runs it all the same; do so only with models of people whom you trust",
        )
