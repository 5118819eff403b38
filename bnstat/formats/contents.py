"""The common form of a model file's contents, without knowledge of batch norm."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bnstat.model import Source, Variable

Search = Callable[[Collection[str]], Mapping[str, str]]
"""Takes endings of names; returns key -> name for at least all variables with an ending."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as the file describes it.

    Attributes:
        name: the author's name, prefixed by the names of the enclosing models: `inner/bn_1`.
        own_name: the author's name alone: `bn_1`; may be empty if `name` has no prefix.
        inputs: (name of the producing layer, tensor) for each input of each call; empty if the
            file records no inputs. The tensor is `CALL:OUTPUT`, or "" if not recorded.
        class_name: `BatchNormalization`, `Custom>MyNorm`; None if the file does not record it.
        config: the arguments of the constructor; empty if the file does not record them.
        variables: label -> key, in stored order. A label is the variable's name in the layer
            (`gamma`) or, if the file has only numbers, `0`, `1`, ...
        key: the layer's location in the file, for messages. For a layer of an architecture: the
            path that its group has in a `.weights.h5`.
        sublayers: the layers directly inside a layer of an architecture, in network order.
    """

    name: str
    class_name: str | None
    config: Mapping[str, Any]
    variables: Mapping[str, str]
    key: str = ""
    own_name: str = ""
    inputs: tuple[tuple[str, str], ...] = ()
    sublayers: tuple[Layer, ...] = field(default=(), repr=False)


class Node(NamedTuple):
    """An object of the object graph.

    `children` maps local names to the indices of child nodes, in stored order. A variable has a
    checkpoint `key`, and may have a `full_name`, its name in the code (`block/bn/gamma`).
    """

    children: Mapping[str, int]
    key: str | None
    full_name: str


class Objects(Sequence[Node]):
    """The nodes of an object graph, whose root is node 0; a subclass may parse nodes on demand."""

    def __init__(self, nodes: Sequence[Node] = ()) -> None:
        self._nodes = nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, index: int) -> Node:  # type: ignore[override]  # no slices
        return self._nodes[index]

    def branches(self, index: int) -> Sequence[tuple[str, int]]:
        """Return the name and index of each child that has children, in stored order."""
        children = self[index].children.items()
        return [(name, child) for name, child in children if self[child].children]

    def has_child(self, index: int, label: str) -> bool:
        return label in self[index].children

    def ending_with(self, endings: Collection[str]) -> Iterable[Node]:
        """Return a superset of the nodes of variables whose full name or key has an ending."""
        return (node for node in self if node.key)


class Op(Protocol):
    """One operation of a graph."""

    @property
    def name(self) -> str: ...

    @property
    def type(self) -> str: ...

    @property
    def inputs(self) -> Sequence[str]:
        """The data inputs as `op` or `op:output`, without control inputs."""

    def attribute(self, name: str) -> float | int | bool | str | None:
        """Return the value of an attribute; None if the graph does not record it."""


@dataclass(frozen=True)
class Graph:
    """A graph, or a function's body together with the arguments that one caller passes.

    Attributes:
        name: the name of the function; empty for a top-level graph.
        variables: name of an op or argument -> key of the variable that it represents.
        constant: returns the value of the op with a given name; None if the op is not a constant,
            or the value is too large.
        parts: name of an op -> a slice for each axis, if the op holds only a part of the variable.
        controls: returns the names of the ops that must run before an op. A name `f` that is not
            in `ops` stands for all ops of a called function: `f/...`.
    """

    name: str
    ops: Mapping[str, Op]
    variables: Mapping[str, str]
    constant: Callable[[str], NDArray[np.generic] | None]
    parts: Mapping[str, tuple[slice, ...]] = field(default_factory=dict)
    controls: Callable[[str], Sequence[str]] = lambda name: ()


@dataclass(frozen=True)
class Contents:
    """The contents of a model file.

    Attributes:
        variables: every stored tensor by its key in the file.
        names: key -> the best known name of a variable, if it is not the key.
        layers: the layers that the file describes (Keras files, Keras metadata).
        layers_in_order: True if `layers` are in network order.
        objects: the object graph of a TensorFlow 2 checkpoint.
        search: finds variables by the endings of their names without parsing the whole index; None
            if iterating over `variables` is fast.
        graphs: returns computation graphs and bodies of functions.
        notes: remarks on the file, one line each.
        variables_in_order: True if `variables` are in the order of their creation.
        configured: returns the contents with the given layers of an architecture; None if the
            format does not support this, or the file already describes its layers.
        beside: the path of a file in the same folder that may contain the architecture, or None.
    """

    source: Source
    variables: Mapping[str, Variable]
    names: Mapping[str, str] = field(default_factory=dict)
    layers: Sequence[Layer] = ()
    layers_in_order: bool = True
    objects: Objects = field(default_factory=Objects)
    search: Search | None = None
    graphs: Callable[[], Iterable[Graph]] | None = None
    notes: Sequence[str] = ()
    variables_in_order: bool = False
    configured: Callable[[Sequence[Layer]], Contents] | None = None
    beside: str | None = None

    def name_of(self, key: str) -> str:
        """Return the best known name of a variable."""
        return self.names.get(key, key)


class Reading(NamedTuple):
    """Options for opening a file.

    Attributes:
        values: False if no tensor will be read, so that a checkpoint's index is enough.
        tensorflow: True to read checkpoints with TensorFlow's own reader.
    """

    values: bool = True
    tensorflow: bool = False


_BRANCHES: Final = frozenset(
    {"params", "batch_stats", "state", "trainable_variables", "non_trainable_variables"}
)
"""The top-level collections into which Flax, Haiku and Keras divide a layer's variables."""


def name_of_path(path: Sequence[str]) -> str:
    """Return a variable's name: its path, joined by slashes, without top-level collections."""
    parts = list(path)
    while len(parts) > 2 and parts[0] in _BRANCHES:
        del parts[0]
    if len(parts) > 1 and parts[-1] == "value":  # of Flax NNX
        parts.pop()
    return "/".join(parts)
