"""Models in sessions of TensorFlow 1: a session's graph, and the values of its variables now.

Variables go by the names under which a `tf.compat.v1.train.Saver` stores them, the parts of a
partitioned one put together. The graph is left as it is: no op is added to it, so that it may be
finalized.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bnstat.errors import BnstatError
from bnstat.formats.contents import Contents, Graph
from bnstat.model import Array, Source, Variable

_GLOBAL_VARIABLES = "variables"
"""The collection of what a saver stores: `tf.compat.v1.GraphKeys.GLOBAL_VARIABLES`."""


def is_session(thing: object) -> bool:
    """Whether this is a `tf.compat.v1.Session`, of any kind."""
    home = "tensorflow.python.client.session"
    return any(
        kind.__module__ == home and kind.__name__ == "BaseSession" for kind in type(thing).__mro__
    )


class SessionVariable:
    """A variable in a session.

    Attributes:
        shape: of the whole, where it is partitioned.
        dtype: NumPy's name of its element type.
        parts: op -> the indices of the part that it stands for, where it is partitioned.
    """

    def __init__(self, session: Any, key: str) -> None:
        self._session = session
        self._key = key
        self._held: list[tuple[Any, tuple[slice, ...]]] = []
        self.shape: tuple[int, ...] = ()
        self.dtype = ""
        self.parts: dict[str, tuple[slice, ...]] = {}

    def add(self, variable: Any) -> None:
        """Add a part of it, or the whole."""
        self.dtype = variable.dtype.base_dtype.name
        info = variable._get_save_slice_info()
        part: tuple[slice, ...] = ()
        if info is None:
            self.shape = self._shape_of(variable)
        else:
            self.shape = tuple(info.full_shape)
            places = zip(info.var_offset, info.var_shape, strict=True)
            part = tuple(slice(start, start + size) for start, size in places)
            self.parts[variable.op.name] = part
        self._held.append((variable, part))

    def _shape_of(self, variable: Any) -> tuple[int, ...]:
        """Return the shape of a variable; where the graph leaves it open, that of its value.

        Raises:
            BnstatError: the graph leaves it open, and the variable has no value.
        """
        if variable.shape.is_fully_defined():
            return tuple(variable.shape.as_list())
        return np.shape(self._run(variable, {}))

    def numpy(self) -> Array:
        """Its value now.

        Raises:
            BnstatError: it has none, or the session is closed.
        """
        values = self._run([variable for variable, _ in self._held], {})
        if not self.parts:
            return np.asarray(values[0])
        whole = np.empty(self.shape, values[0].dtype)
        for (_, part), value in zip(self._held, values, strict=True):
            whole[part] = value
        return whole

    def assign(self, array: Array) -> None:
        """Give it another value, of its shape.

        Raises:
            BnstatError: the session is closed.
        """
        for variable, part in self._held:
            setter = variable.initializer
            self._run(setter, {setter.inputs[1]: array[part]})

    def _run(self, fetches: Any, feeds: Mapping[Any, Array]) -> Any:
        where = f"{session_name(self._session)}, {self._key}"
        try:
            return self._session.run(fetches, feeds)
        except Exception as error:  # of a TensorFlow that is not imported here
            if type(error).__name__ == "FailedPreconditionError":
                hint = "restore a checkpoint or run the initializer first"
                raise BnstatError(where, "has no value yet", hint) from None
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise BnstatError(where, f"cannot be used: {lines[0]}") from None


def session_variables(session: Any) -> dict[str, SessionVariable]:
    """The variables of a session by the keys under which a saver stores them.

    Raises:
        BnstatError: a variable of unknown shape has no value, or the session is closed.
    """
    found: dict[str, SessionVariable] = {}
    for variable in session.graph.get_collection(_GLOBAL_VARIABLES):
        info = variable._get_save_slice_info()
        key = variable.name.partition(":")[0] if info is None else info.full_name
        found.setdefault(key, SessionVariable(session, key)).add(variable)
    return found


def session_contents(
    session: Any, variables: Mapping[str, SessionVariable], writer: str | None = None
) -> Contents:
    """What a session holds, as if a saver had stored it.

    Args:
        session: the session.
        variables: what it has of them.
        writer: the library and its version.
    """

    def graphs() -> Iterator[Graph]:
        from bnstat.formats.tensorflow.graphs.graph_def import graph_of

        graph = graph_of(session.graph.as_graph_def(), lambda name: name if name in keys else None)
        parts = {op: part for one in variables.values() for op, part in one.parts.items()}
        yield replace(graph, parts=parts)

    keys = {
        key: Variable(key, key, one.dtype, one.shape, one.numpy) for key, one in variables.items()
    }
    source = Source(session_name(session), "live", writer=writer)
    return Contents(source, keys, graphs=graphs)


def session_name(session: Any) -> str:
    """What a session is called in messages."""
    return f"tf.compat.v1.{type(session).__name__}"
