"""What a model file holds, in one form for all formats.

A format hands over its variables and whatever it knows of the model's structure:

- `variables`: every stored tensor, under the exact key of the file; in the order in which the
  program made them where `variables_in_order` is True;
- `names`: key -> the best name known for a variable, where that is not the key itself;
- `layers`: layer configurations (Keras files, Keras metadata), in the order of the network
  unless `layers_in_order` is False;
- `search`: finds the variables whose names have one of some endings, and maybe others, as
  `names` has them; None where `variables` are few enough to be gone through;
- `objects`: the object graph of a TensorFlow 2 checkpoint;
- `graphs`: computation graphs and function bodies (SavedModel, `.meta`, frozen graph);
- `configured`: gives the same with the layers of an architecture that the user has; None where
  the file tells its own, or has no place for one;
- `beside`: where such an architecture lies beside the file, by its name.

Nothing here knows what the layers are for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from bnstat.model import Source, Variable

if TYPE_CHECKING:
    from bnstat.formats.keras.config import Described


Search = Callable[[Collection[str]], Mapping[str, str]]
"""Finds variables by the endings of their names: key -> name."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as the file describes it.

    Attributes:
        name: the author's name, nested models' names before it: `inner/bn_1`.
        own_name: the author's name alone: `bn_1`; empty where that is `name`.
        inputs: the names of the layers whose outputs the layer is called on, one for each input
            of each call; empty if the file does not record them.
        class_name: `BatchNormalization`, `Custom>MyNorm`; None where the file does not say it.
        config: the constructor's arguments; empty where the file does not hold them.
        variables: the layer's own variables, label -> key, in stored order. Labels are the
            layer's own names (`gamma`) or, where the file only numbers them, `0`, `1`, ...
        key: where the file keeps the layer (`layers/batch_normalization_1`), for messages.
    """

    name: str
    class_name: str | None
    config: Mapping[str, Any]
    variables: Mapping[str, str]
    key: str = ""
    own_name: str = ""
    inputs: tuple[str, ...] = ()


class Node(NamedTuple):
    """An object of the object graph.

    Attributes:
        children: local name -> index of the child, in stored order.
        key: the checkpoint key, where the node is a variable.
        full_name: the variable's name in the program (`block/bn/gamma`); may be empty.
    """

    children: Mapping[str, int]
    key: str | None
    full_name: str


class Objects(Sequence[Node]):
    """The nodes of an object graph; node 0 is the root.

    A graph of very many nodes answers without parsing them all.
    """

    def __init__(self, nodes: Sequence[Node] = ()) -> None:
        self._nodes = nodes

    def __len__(self) -> int:
        return len(self._nodes)

    @overload
    def __getitem__(self, index: int) -> Node: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Node]: ...

    def __getitem__(self, index: int | slice) -> Node | Sequence[Node]:
        return self._nodes[index]

    def branches(self, index: int) -> Sequence[tuple[str, int]]:
        """The children of a node that may have children: name and index, in stored order."""
        children = self[index].children.items()
        return [(name, child) for name, child in children if self[child].children]

    def has_child(self, index: int, label: str) -> bool:
        """Whether a node has a child of that name."""
        return label in self[index].children

    def ending_with(self, endings: Collection[str]) -> Iterable[Node]:
        """The variables whose full name, or whose key's path, ends so, and maybe others."""
        del endings
        return (node for node in self if node.key)


class Op(Protocol):
    """One operation of a graph."""

    @property
    def name(self) -> str: ...

    @property
    def type(self) -> str:
        """The op's kind: `FusedBatchNormV3`."""
        ...

    @property
    def inputs(self) -> Sequence[str]:
        """Data inputs as `op` or `op:output`; control inputs are left out."""
        ...

    def attribute(self, name: str) -> float | int | bool | str | None:
        """The value of an attribute; None where the graph leaves it at its default."""
        ...


@dataclass(frozen=True)
class Graph:
    """A graph, or a function's body as one caller calls it.

    Attributes:
        name: the function's name; empty for a top-level graph.
        ops: the operations by name, in stored order.
        variables: name of an op or of a function's argument -> key of the variable it stands for.
        constant: the value of a constant op; None where the op is none or is too large.
        parts: name of an op that stands for a part of its variable -> the indices of that part.
        controls: returns the names of the ops that an op waits for without taking their outputs; a
            name that is no op's stands for the ops of a call, whose names start with it.
    """

    name: str
    ops: Mapping[str, Op]
    variables: Mapping[str, str]
    constant: Callable[[str], NDArray[np.generic] | None]
    parts: Mapping[str, tuple[slice, ...]] = field(default_factory=dict)
    controls: Callable[[str], Sequence[str]] = lambda name: ()


@dataclass(frozen=True)
class Contents:
    """All that one model file says. See the module's documentation."""

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
    configured: Callable[[Sequence[Described]], Contents] | None = None
    beside: str | None = None

    def name_of(self, key: str) -> str:
        """The best name known for the variable of that key."""
        return self.names.get(key, key)


class Reading(NamedTuple):
    """How to read.

    Attributes:
        values: whether tensors will be read; without, a checkpoint's index is enough.
        tensorflow: whether TensorFlow's own reader reads checkpoints.
    """

    values: bool = True
    tensorflow: bool = False
