"""TensorFlow 1 graphs, saved by its `Saver`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from bnstat.model import ROLES
from tests.builders.oracle import Roles

v1 = tf.compat.v1
Values = dict[str, NDArray[np.generic]]


def save_graph(
    prefix: Path,
    build: Callable[[], Any],
    *,
    step: int | None = None,
    sharded: bool = False,
    write_version: int = 2,
    write_meta_graph: bool = False,
    saved_model: Path | None = None,
    frozen: Path | None = None,
    numbered: bool = False,
) -> Values:
    """Build a graph and save random values of its variables; return them by name, parts joined.

    A frozen graph ends with the last op that is built. If `numbered`, the variables are saved as
    `v0`, `v1`, ... instead of under their names.
    """
    with tf.Graph().as_default(), v1.Session() as session:
        build()
        output = session.graph.get_operations()[-1].name
        keys = {f"v{at}": variable for at, variable in enumerate(v1.global_variables())}
        form = {"sharded": sharded, "write_version": write_version}
        saver = v1.train.Saver(keys if numbered else None, **form)
        session.run(v1.global_variables_initializer())
        random = np.random.default_rng(7)
        for variable in v1.global_variables():
            if variable.dtype.is_floating:
                value = random.random(variable.shape.as_list()).astype(np.float32)
                variable.load(value.astype(variable.dtype.base_dtype.as_numpy_dtype), session)
        graph = {"write_meta_graph": write_meta_graph, "write_state": False}
        saver.save(session, str(prefix), step, **graph)
        if saved_model is not None:
            builder = v1.saved_model.Builder(str(saved_model))
            builder.add_meta_graph_and_variables(session, ["serve"])
            builder.save()
        if frozen is not None:
            freeze = v1.graph_util.convert_variables_to_constants
            graph_def = freeze(session, session.graph.as_graph_def(), [output])
            frozen.write_bytes(graph_def.SerializeToString())
        return _values(session)


def roles_of(values: Values, scope: str) -> Roles:
    return {role: values[f"{scope}/{role}"] for role in ROLES if f"{scope}/{role}" in values}


def layers_of(values: Values, scopes: Iterable[str]) -> dict[str, Roles]:
    return {scope: roles_of(values, scope) for scope in scopes}


def _values(session: Any) -> Values:
    values: Values = {}
    for variable in v1.global_variables():
        value = np.asarray(session.run(variable))
        info = variable._save_slice_info
        if info is None:
            values[variable.op.name] = value
        else:
            whole = values.setdefault(info.full_name, np.empty(info.full_shape, value.dtype))
            start = zip(info.var_offset, info.var_shape, strict=True)
            whole[tuple(slice(at, at + size) for at, size in start)] = value
    return values
