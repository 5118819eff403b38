"""Models in memory: Keras 3 and tf-keras models, any `tf.Module`, and TensorFlow 1 sessions.

This module imports neither Keras nor TensorFlow, because the caller has imported them.
The variables of a session have the names under which a `tf.compat.v1.train.Saver` stores them.
The slices of a partitioned variable are joined. No op is added to the graph, which may be
finalized.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from bnstat.discovery import discover
from bnstat.discovery.schemes import LABELS, find_roles
from bnstat.errors import BnstatError, UnsupportedError, first_line
from bnstat.formats.contents import Contents, Graph
from bnstat.model import Array, BatchNorm, Model, Source, Variable

_GLOBAL_VARIABLES = "variables"
"""The collection that a saver stores: `tf.compat.v1.GraphKeys.GLOBAL_VARIABLES`."""


def is_session(thing: object) -> bool:
    """Return True for a `tf.compat.v1.Session` and its variants, such as `InteractiveSession`."""
    home = "tensorflow.python.client.session"
    kinds = type(thing).__mro__
    return any(kind.__module__ == home and kind.__name__ == "BaseSession" for kind in kinds)


class SessionVariable:
    """A variable in a session; the slices of a partitioned variable are joined.

    The methods raise `BnstatError` if the session is closed. For a partitioned variable, `parts`
    maps the name of a slice's op to the indices of this slice in the whole variable.
    """

    def __init__(self, session: Any, key: str) -> None:
        self._session = session
        self._key = key
        self._held: list[tuple[Any, tuple[slice, ...]]] = []
        self.shape: tuple[int, ...] = ()
        self.dtype = ""
        self.parts: dict[str, tuple[slice, ...]] = {}

    def add(self, variable: Any) -> None:
        """Add the variable, or a slice of a partitioned variable."""
        self.dtype = variable.dtype.base_dtype.name
        info = variable._get_save_slice_info()
        part: tuple[slice, ...] = ()
        if info is None:
            # A graph may leave the shape open, which the value then has.
            is_known = variable.shape.is_fully_defined()
            shape = variable.shape.as_list() if is_known else np.shape(self._run(variable, {}))
            self.shape = tuple(shape)
        else:
            self.shape = tuple(info.full_shape)
            ranges = zip(info.var_offset, info.var_shape, strict=True)
            part = tuple(slice(start, start + size) for start, size in ranges)
            self.parts[variable.op.name] = part
        self._held.append((variable, part))

    def numpy(self) -> Array:
        """Return the current value; raise `BnstatError` if the variable has no value."""
        values = self._run([variable for variable, _ in self._held], {})
        if not self.parts:
            return np.asarray(values[0])
        whole = np.empty(self.shape, values[0].dtype)
        for (_, part), value in zip(self._held, values, strict=True):
            whole[part] = value
        return whole

    def assign(self, array: Array) -> None:
        """Set the value to an array of the variable's shape."""
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
                raise BnstatError(where, "the variable has no value yet", hint) from None
            raise BnstatError(where, f"the variable cannot be used: {first_line(error)}") from None


def session_variables(session: Any) -> dict[str, SessionVariable]:
    """Return key -> variable for a session; the key is the name in a checkpoint of a `Saver`."""
    variables: dict[str, SessionVariable] = {}
    for variable in session.graph.get_collection(_GLOBAL_VARIABLES):
        info = variable._get_save_slice_info()
        key = variable.name.partition(":")[0] if info is None else info.full_name
        variables.setdefault(key, SessionVariable(session, key)).add(variable)
    return variables


def session_contents(
    session: Any, variables: Mapping[str, SessionVariable], writer: str | None = None
) -> Contents:
    """Return the contents of a session, as if read from a checkpoint."""

    def graphs() -> Iterator[Graph]:
        from bnstat.formats.tensorflow.graph_def import graph_of

        graph = graph_of(session.graph.as_graph_def(), keys)
        parts = {op: part for variable in variables.values() for op, part in variable.parts.items()}
        yield replace(graph, parts=parts)

    keys = {
        key: Variable(key, key, variable.dtype, variable.shape, variable.numpy)
        for key, variable in variables.items()
    }
    source = Source(session_name(session), "live", writer=writer)
    return Contents(source, keys, graphs=graphs)


def session_name(session: Any) -> str:
    """Return the name of a session for messages, such as `tf.compat.v1.Session`."""
    return f"tf.compat.v1.{type(session).__name__}"


_DEEPEST = 100


class LiveModel(NamedTuple):
    """A model in memory, and its variables by key, objects with methods `numpy` and `assign`.

    A key is `LAYER/ROLE` or, in a session, the name in a checkpoint of a `Saver`.
    """

    model: Model
    variables: dict[str, Any]


def is_live(thing: object) -> bool:
    """Return True if an object has `variables` or `submodules`, and thus may contain layers."""
    for name in ("variables", "submodules"):
        try:
            getattr(thing, name)
        except AttributeError:
            continue
        except Exception:  # such as the ValueError of a Keras model that is not built
            return True
        return True
    return False


def live_model(thing: Any) -> LiveModel:
    """Return a Keras model, `tf.Module` or session as a `LiveModel`; refuse any other object."""
    if is_session(thing):
        in_session = session_variables(thing)
        contents = session_contents(thing, in_session, _writer(thing))
        return LiveModel(discover(contents), dict(in_session))
    kind = f"{type(thing).__module__}.{type(thing).__qualname__}"
    if not is_live(thing) or not (hasattr(thing, "__dict__") or hasattr(thing, "_flatten_layers")):
        raise UnsupportedError(kind, "is neither a path nor a model of Keras or TensorFlow")
    layers = []
    variables: dict[str, Any] = {}
    for name, holder in holders(thing):
        roles = _roles(holder)
        if not {"moving_mean", "moving_variance"} <= roles.keys():
            continue
        while f"{name}/moving_mean" in variables:
            name += "#2"
        variables |= {f"{name}/{role}": variable for role, variable in roles.items()}
        layers.append(_layer(name, holder, roles))
    source = Source(getattr(thing, "name", None) or kind, "live", writer=_writer(thing))
    return LiveModel(Model(source, layers), variables)


def numpy_of(variable: Any) -> Array:
    """Return the value of a variable of Keras or TensorFlow."""
    return np.asarray(variable.numpy())


def _layer(name: str, holder: Any, roles: Mapping[str, Any]) -> BatchNorm:
    trainable = getattr(holder, "trainable", None)
    variables = {}
    for role, variable in roles.items():
        key, shape = f"{name}/{role}", tuple(variable.shape)
        dtype = str(getattr(variable.dtype, "name", variable.dtype))
        variables[role] = Variable(key, key, dtype, shape, partial(numpy_of, variable))
    return BatchNorm(
        name,
        variables,
        evidence="config",
        epsilon=_number(holder, "epsilon", "eps", "_eps"),
        momentum=_number(holder, "momentum"),
        axis=_axis(getattr(holder, "axis", None)),
        trainable=trainable if isinstance(trainable, bool) else None,
    )


def _axis(value: Any) -> int | tuple[int, ...] | None:
    """Return one axis as an `int`, several as a tuple; None if the value is not an axis."""
    try:
        if isinstance(value, (list, tuple)) or type(value).__name__ == "ListWrapper":
            axes = tuple(map(operator.index, value))
            return axes[0] if len(axes) == 1 else axes
        return operator.index(value)
    except TypeError:
        return None


def _number(holder: Any, *names: str) -> float | None:
    for name in names:
        value = getattr(holder, name, None)
        if isinstance(value, (Real, np.number)):
            return float(value)
    return None


def _roles(holder: Any) -> dict[str, Any]:
    """Return role -> variable object for the batch-norm variables that a layer has."""
    variables = {}
    for label in filter(str.isidentifier, LABELS):
        variable = getattr(holder, label, None)
        if (average := getattr(variable, "average", None)) is not None:  # of Sonnet
            label, variable = f"{label}/average", average
        if hasattr(variable, "assign") and getattr(variable, "shape", None) is not None:
            variables[label] = variable
    return {role: variables[label] for role, label in find_roles(variables).items()}


def holders(thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, object) once for an object and for each layer and module inside it."""
    seen: set[int] = set()
    stack: list[tuple[tuple[str, ...], Any]] = [((), thing)]
    while stack:
        path, holder = stack.pop()
        if id(holder) in seen or len(path) > _DEEPEST:
            continue
        seen.add(id(holder))
        yield "/".join(path) or getattr(holder, "name", "(root)"), holder
        children = [((*path, name), child) for name, child in _children(holder)]
        stack.extend(reversed(children))


def _children(holder: Any) -> list[tuple[str, Any]]:
    """Return a (name, child) pair for each layer and module directly inside an object."""
    if hasattr(holder, "_flatten_layers"):
        layers = holder._flatten_layers(include_self=False, recursive=False)
        return [(layer.name, layer) for layer in layers]
    children = []
    for name, value in sorted(getattr(holder, "__dict__", {}).items()):
        values = {"": value}
        if isinstance(value, (list, tuple)):
            values = {f"/{index}": child for index, child in enumerate(value)}
        elif isinstance(value, dict):
            values = {f"/{key}": child for key, child in value.items()}
        for suffix, child in values.items():
            if is_live(child) and not hasattr(child, "assign"):
                children.append((name + suffix, child))
    return children


def _writer(thing: Any) -> str | None:
    for kind in type(thing).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in ("keras", "tf_keras", "tensorflow"):
            version = getattr(sys.modules.get(package), "__version__", None)
            return f"{package} {version}" if version else package
    return None
