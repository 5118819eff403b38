"""Lookup tables that a traced model holds, as tables of its graph.

Source: tensorflow/core/ops/lookup_ops.cc.
"""

from __future__ import annotations

from itertools import product
from typing import Any

_KEYS = ("string", "int64", "int32")
_VALUES = ("int64", "string", "float32", "int32", "float64", "bool")


def add_table(graph_def: Any, node: Any, handle: Any) -> str | None:
    """Turn a node that stands for a table in memory into a table with the same entries.

    Args:
        graph_def: the graph, to which what fills the table is added.
        node: a `NodeDef` of it; only its name stays.
        handle: the table's resource.

    Returns:
        The name of the op that fills it; None where the resource is no such table.
    """
    import tensorflow as tf

    dtypes = _dtypes(handle)
    if dtypes is None:
        return None
    entries = tf.raw_ops.LookupTableExportV2(
        table_handle=handle, Tkeys=dtypes[0], Tvalues=dtypes[1]
    )
    name = node.name
    with tf.Graph().as_default() as graph:
        table = tf.raw_ops.HashTableV2(
            key_dtype=dtypes[0], value_dtype=dtypes[1], shared_name=f"bnstat_{name}", name=name
        )
        keys, values = (tf.constant(each.numpy(), name=f"{name}_entries") for each in entries)
        tf.raw_ops.InitializeTableV2(
            table_handle=table, keys=keys, values=values, name=f"{name}_fill"
        )
    made, *others = graph.as_graph_def().node
    node.CopyFrom(made)
    graph_def.node.extend(others)
    fill: str = others[-1].name
    return fill


def _dtypes(handle: Any) -> tuple[Any, Any] | None:
    """The types of a table's keys and values, which are found by asking for no key at all."""
    import tensorflow as tf

    for key, value in product(map(tf.as_dtype, _KEYS), map(tf.as_dtype, _VALUES)):
        try:
            tf.raw_ops.LookupTableFindV2(
                table_handle=handle, keys=tf.zeros([0], key), default_value=tf.zeros([], value)
            )
        except tf.errors.OpError:
            continue
        return key, value
    return None
