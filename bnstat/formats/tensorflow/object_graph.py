"""The object graph of a TensorFlow 2 checkpoint.

The string tensor `_CHECKPOINTABLE_OBJECT_GRAPH` holds a TrackableObjectGraph: node 0 is the
object that was saved; every node names its children and, where it is a variable, the key that
its value is stored under. That key is the variable's shortest path from node 0, so it need not
pass through the layer that owns it; the children do.

A graph may have a million nodes of which few matter: nodes are parsed when they are asked for.
Most are variables, whose messages all have one layout; NumPy finds their names and keys at once.
Source: tensorflow/core/protobuf/trackable_object_graph.proto.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError
from bnstat.formats.contents import Node, Objects
from bnstat.formats.protobuf.wire import WireError, damaged, fields, text, varint

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"

_NONE: Mapping[str, int] = {}
_CHILD, _ATTRIBUTE, _NODE_ID, _NAME, _FULL_NAME, _KEY = 0x0A, 0x12, 0x08, 0x12, 0x12, 0x1A
"""The tags of fields: those of a node, of a child, of an attribute."""
_SAVED = int.from_bytes(b"\x2a\x02\x08\x01", "little")
"""`has_checkpoint_values {value: true}`, which may follow a variable's attribute."""
_LONGEST_TAIL = 7
"""So many of the last bytes of a name are compared, when it is looked for."""

_Numbers = NDArray[np.int64]


def read_nodes(message: bytes, where: str) -> Objects:
    """The graph's nodes; node 0 is the root.

    Raises:
        DamagedError: it is no object graph, or names a child that does not exist.
    """
    try:
        return ObjectGraph(message, where)
    except (WireError, IndexError) as error:
        raise damaged(where, "the object graph", WireError(str(error))) from error


class ObjectGraph(Objects):
    """The nodes of an object graph, parsed when they are asked for."""

    def __init__(self, message: bytes, where: str) -> None:
        self._message = message
        self._where = where
        self._starts, self._ends = _nodes(message)
        self._leaves = _Leaves(message, self._starts, self._ends)
        self._is_branch = self._leaves.others.tobytes()
        self._branches = {
            index: self._branches_of(index)
            for index in np.flatnonzero(self._leaves.others).tolist()
        }

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Node: ...

    @overload
    def __getitem__(self, index: slice) -> list[Node]: ...

    def __getitem__(self, index: int | slice) -> Node | list[Node]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        try:
            return _node(self._message[self._starts[index] : self._ends[index]])
        except WireError as error:
            raise damaged(self._where, "the object graph", error) from error

    def branches(self, index: int) -> Sequence[tuple[str, int]]:
        return self._branches.get(index, ())

    def has_child(self, index: int, label: str) -> bool:
        start, end = self._starts[index], self._ends[index]
        is_named = self._message.find(label.encode(), start, end) >= 0
        return is_named and label in self[index].children

    def ending_with(self, endings: Collection[str]) -> Iterator[Node]:
        whole = VALUE.encode()
        try:
            yield from self._leaves.ending_with([ending.encode() for ending in endings])
        except WireError as error:
            raise damaged(self._where, "the object graph", error) from error
        for index in self._branches:
            if self._message.find(whole, self._starts[index], self._ends[index]) >= 0:
                yield self[index]

    def _branches_of(self, index: int) -> list[tuple[str, int]]:
        """Name and index of the children that are more than variables, in stored order."""
        message, is_branch, count = self._message, self._is_branch, len(self._starts)
        found = []
        position, end = self._starts[index], self._ends[index]
        while position < end:
            tag, length = message[position], message[position + 1]
            start = position + 2
            if length >= 0x80:
                length, start = varint(message, position + 1)
            position = start + length
            if tag != _CHILD and tag & 7 == 2 and position <= end:
                continue
            if tag != _CHILD or position > end or message[start] != _NODE_ID:
                # Rare, and maybe damaged.
                return self._all_branches_of(index)
            child, at = message[start + 1], start + 2
            if child >= 0x80:
                child, at = varint(message, start + 1)
            if child >= count:
                raise self._no_such_child()
            if is_branch[child]:
                name = at + 2
                left = position - name
                if not 0 <= left < 0x80 or message[at:name] != bytes((_NAME, left)):
                    return self._all_branches_of(index)
                found.append((text(message[name:position]), child))
        return found

    def _all_branches_of(self, index: int) -> list[tuple[str, int]]:
        children = _node(self._message[self._starts[index] : self._ends[index]]).children
        if any(not 0 <= child < len(self) for child in children.values()):
            raise self._no_such_child()
        return [(name, child) for name, child in children.items() if self._is_branch[child]]

    def _no_such_child(self) -> DamagedError:
        return DamagedError(self._where, "the object graph names an object that it does not hold")


def _nodes(message: bytes) -> tuple[array[int], array[int]]:
    """Where each node's message begins and ends: field 1 of the graph's."""
    starts, ends = array("q"), array("q")
    add_start, add_end = starts.append, ends.append
    position, end = 0, len(message)
    while position < end:
        tag, length = message[position], message[position + 1]
        start = position + 2
        if length >= 0x80:
            second = message[start]
            if second < 0x80:
                length, start = length & 0x7F | second << 7, start + 1
            else:
                length, start = varint(message, position + 1)
        if tag & 7 != 2:
            raise WireError(f"a field of wire type {tag & 7}")
        position = start + length
        if position > end:
            raise WireError("a field is longer than its message")
        if tag == _CHILD:
            add_start(start)
            add_end(position)
    return starts, ends


class _Leaves:
    """The nodes that are but variables, each one attribute of three texts.

    Attributes:
        others: whether a node is anything else.
    """

    def __init__(self, message: bytes, starts: array[int], ends: array[int]) -> None:
        self._message = message
        self._data = np.frombuffer(message, np.uint8)
        start = np.frombuffer(starts, np.int64)
        end = np.frombuffer(ends, np.int64)
        length, attribute = self._number(start + 1)
        attribute_end = attribute + length
        name, name_end = self._field(attribute, 0x0A)
        full_name, full_name_end = self._field(name_end, _FULL_NAME)
        key, key_end = self._field(full_name_end, _KEY)
        rest = end - attribute_end
        saved = sum(self._at(attribute_end + place) << 8 * place for place in range(4))
        fits = (self._at(start) == _ATTRIBUTE) & (start < end) & (name >= 0)
        fits &= (full_name >= 0) & (key >= 0) & (key_end == attribute_end)
        fits &= (rest == 0) | ((rest == 4) & (saved == _SAVED))
        self.others = ~fits & (start < end)
        self._index = np.flatnonzero(fits)
        self._full_name, self._full_name_end = full_name[fits], full_name_end[fits]
        self._key, self._path_end = key[fits], key_end[fits] - len(VALUE)

    def ending_with(self, endings: Collection[bytes]) -> Iterator[Node]:
        """The nodes whose full name, or whose key's path, may end so."""
        if not endings or not self._index.size:
            return
        length = min(_LONGEST_TAIL, *map(len, endings))
        tails = {int.from_bytes(ending[-length:], "little") for ending in endings}
        sought = np.array(sorted(tails), np.int64)
        found = self._matches(self._full_name, self._full_name_end, length, sought)
        found |= self._matches(self._key, self._path_end, length, sought)
        spans = (self._full_name, self._full_name_end, self._key, self._path_end)
        for name, name_end, key, path_end in zip(
            *(span[found].tolist() for span in spans), strict=True
        ):
            stored = text(self._message[key : path_end + len(VALUE)])
            if stored.endswith(VALUE):
                yield Node(_NONE, stored, text(self._message[name:name_end]))

    def _matches(
        self, start: _Numbers, end: _Numbers, length: int, tails: _Numbers
    ) -> NDArray[np.bool_]:
        """Which texts end as one of `tails`, are too short to tell, or have escapes there."""
        tail = np.zeros_like(end)
        found = end - start < length
        for place in range(length):
            byte = self._at(end - length + place)
            tail |= byte << 8 * place
            found |= byte == ord(".")
        # Not `np.isin`, whose import takes longer than most checkpoints.
        nearest = np.searchsorted(tails, tail).clip(max=tails.size - 1)
        found |= tails[nearest] == tail
        return found

    def _field(self, position: _Numbers, tag: int) -> tuple[_Numbers, _Numbers]:
        """Where a field's value begins and ends; begins at -1 where it has another tag."""
        length, start = self._number(position + 1)
        return np.where(self._at(position) == tag, start, -1), start + length

    def _number(self, position: _Numbers) -> tuple[_Numbers, _Numbers]:
        """The varints at those positions, of two bytes at most, and where each ends.

        Longer ones are taken for the start of what does not fit.
        """
        first, second = self._at(position), self._at(position + 1)
        is_long = first >= 0x80
        value = np.where(is_long, first & 0x7F | second << 7, first)
        return value, position + 1 + is_long

    def _at(self, position: _Numbers) -> _Numbers:
        """The bytes at those positions; any where there are none."""
        return self._data.take(position, mode="clip").astype(np.int64)


def _node(message: bytes) -> Node:
    """A TrackableObject := 1 child {1 node, 2 name}, 2 attribute {2 full name, 3 key}."""
    children: dict[str, int] = {}
    key, full_name = None, ""
    for number, value in fields(message):
        if not isinstance(value, bytes) or number > 2:
            continue
        found = dict(fields(value))
        if number == 1:
            child = found.get(1, 0)
            children[text(found.get(2, b""))] = child if isinstance(child, int) else -1
        elif (stored := text(found.get(3, b""))).endswith(VALUE):
            key, full_name = stored, text(found.get(2, b""))
    return Node(children or _NONE, key, full_name)


_AGAIN = "_all_variables/"


class BestNames(Mapping[str, str]):
    """`best_names` of a graph; those that are looked for by their endings are found at once."""

    def __init__(self, graph: Objects) -> None:
        self._graph = graph
        self._seen: dict[str, str | None] = {}

    def ending_with(self, endings: Collection[str]) -> Mapping[str, str]:
        """Key -> best name, of all variables whose names end so, and of some others."""
        nodes = [node for node in self._graph.ending_with(endings) if node.key]
        found = best_names(nodes)
        ends = tuple(endings)
        if any(node.full_name and not node.full_name.endswith(ends) for node in nodes):
            # Found by its key: variables that were not looked for may have the full name too.
            found = {key: self._all[key] for key in found if key in self._all}
        self._seen |= {node.key: found.get(node.key) for node in nodes if node.key}
        return found

    @cached_property
    def _all(self) -> Mapping[str, str]:
        return best_names(self._graph)

    def __getitem__(self, key: str) -> str:
        if key in self._seen:
            name = self._seen[key]
            if name is None:
                raise KeyError(key)
            return name
        return self._all[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


def best_names(nodes: Iterable[Node]) -> dict[str, str]:
    """For every variable's key the best name known for it.

    That is its full name where one variable alone has it, else its path. (Variables without a
    name of their own are all called `Variable`; Keras 3 gives all layers of a model that is
    built late the model's scope.) `model.export` of Keras 3 saves the variables under
    `variables/` and again under `_all_variables/`: the second is no variable of its own, and
    has no name here.
    """
    named = {node.key: node.full_name for node in nodes if node.key}
    again = [key for key in named if key.startswith(_AGAIN)]
    if again:
        exported = {name for key, name in named.items() if key.startswith("variables/")}
        for key in again:
            if named[key] in exported:
                del named[key]
    uses = Counter(named.values())
    return {
        key: full_name if full_name and uses[full_name] == 1 else path_name(key)
        for key, full_name in named.items()
    }


def saved_again(nodes: Sequence[Node]) -> dict[str, list[str]]:
    """What `model.export` of Keras 3 saved a second time.

    Returns:
        The second key -> the keys that it may be the second of: those of the same full name, of
        which a model that is built late has several.
    """
    named = {node.key: node.full_name for node in nodes if node.key}
    first: dict[str, list[str]] = {}
    for key, name in named.items():
        if not key.startswith(_AGAIN):
            first.setdefault(name, []).append(key)
    return {
        key: first[name] for key, name in named.items() if key.startswith(_AGAIN) and name in first
    }


def path_name(key: str) -> str:
    """The object's path that a checkpoint key spells, unescaped.

    Source: `escape_local_name` in tensorflow/python/trackable/trackable_utils.py.
    """
    path = key.removesuffix(VALUE)
    if "." not in path:
        return path
    return path.replace("..", "\0").replace(".S", "/").replace("\0", ".")
