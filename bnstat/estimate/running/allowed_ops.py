"""The ops that bnstat runs without `--trust`.

`allowed_ops.txt` lists the ops that inference and training graphs need and that only compute with
values in memory: no such op can touch a file, a dataset, the network, another process, Python or
the terminal. `DecodeProtoV2` and `Skipgram`, for example, have an attribute that names a file.

A graph has to be checked before the import into TensorFlow: even the import of a graph runs
stateless ops such as `ReadFile`, because shape inference evaluates the inputs that decide a shape.

Sources: tensorflow/core/ops/*.cc; EvaluateConstantTensor in
tensorflow/core/common_runtime/eval_const_tensor.cc.
"""

from __future__ import annotations

from graphlib import CycleError
from pathlib import Path
from typing import Any

from bnstat.errors import UnsupportedError
from bnstat.estimate.running.flat_graph import Dependencies, called_by, op_of, pruned
from bnstat.formats.tensorflow.graph_def import all_nodes

ALLOWED = frozenset(
    name
    for line in Path(__file__).with_name("allowed_ops.txt").read_text("ascii").splitlines()
    if not line.startswith("#")
    for name in line.split()
)

_NAMED = 8


def refuse_unlisted(graph_def: Any, where: str, *, trust: bool = False) -> None:
    """Raise if a graph contains an op that is not allowed; `trust` allows all ops but `Abort`."""
    from tensorflow.python.framework import op_def_registry

    named = (function.signature.name for function in graph_def.library.function)
    # Which of the two TensorFlow takes is not certain if a function has the name of an op.
    ops = called_by(all_nodes(graph_def)) - {n for n in named if op_def_registry.get(n) is None}
    if "Abort" in ops:
        raise UnsupportedError(where, "running it would execute Abort, which ends bnstat")
    refused = [] if trust else sorted(ops - ALLOWED)
    if refused:
        more = f" and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
        raise UnsupportedError(
            where,
            f"running it would execute {', '.join(refused[:_NAMED])}{more}, which may do more than "
            "compute with values in memory",
            "--trust runs it all the same; use it only for models from people whom you trust",
        )


def refuse_evaluated(graph_def: Any, tensor: str, where: str, *, trust: bool = False) -> None:
    """Raise if the import of a graph would run an op that is not allowed.

    During the import, shape inference runs stateless ops that depend only on stateless ops. The op
    of `tensor` does not run, because no other op in `graph_def` depends on it.
    """
    from tensorflow.python.framework import op_def_registry

    marks = {op_of(tensor): ["skipped"]}
    for node in graph_def.node:
        definition = op_def_registry.get(node.op)
        if definition is not None and definition.is_stateful:
            marks[node.name] = ["skipped"]
    try:
        dependencies = Dependencies(graph_def, marks)
    except CycleError:
        raise UnsupportedError(where, "its ops depend on each other in a circle") from None
    evaluated = type(graph_def)(library=graph_def.library)
    evaluated.node.extend(node for node in graph_def.node if not dependencies.marks(node.name))
    names = [node.name for node in evaluated.node]
    refuse_unlisted(pruned(evaluated, names, where), where, trust=trust)
