"""The object graph of a TensorFlow 2 checkpoint.

The string tensor `_CHECKPOINTABLE_OBJECT_GRAPH` stores a TrackableObjectGraph. Node 0 is the saved
object; every node names its children and, if the node is a variable, the checkpoint key of its
value. The key is the variable's shortest path from node 0. The layer that owns the variable may
not be on this path.

    TrackableObject := 1 child {1 node, 2 name}, 2 attribute {2 full name, 3 key}

A graph may have a million nodes, so nodes are parsed when they are requested. Most are variables,
whose messages all have the same layout; NumPy finds their names and keys.

Source: tensorflow/core/protobuf/trackable_object_graph.proto.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError
from bnstat.formats.contents import Node, Objects
from bnstat.formats.protobuf.wire import Decoding, WireError, fields, text, varint

KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"

_NO_CHILDREN: Mapping[str, int] = {}
_CHILD, _ATTRIBUTE, _NODE_ID, _NAME, _FULL_NAME, _KEY = 0x0A, 0x12, 0x08, 0x12, 0x12, 0x1A
"""The tags of the fields of a node, a child and an attribute."""
_SAVED = int.from_bytes(b"\x2a\x02\x08\x01", "little")
"""`has_checkpoint_values {value: true}`, which may follow a variable's attribute."""
_NO_SUCH_CHILD = "the object graph refers to an object that it does not contain"
_MAX_TAIL = 7
"""A search compares at most this many bytes at the end of a name."""

_Numbers = NDArray[np.int64]


def read_nodes(message: bytes, where: str) -> Objects:
    """Return the nodes of an object graph; raise `DamagedError` if a child does not exist."""
    with Decoding(where, "the object graph"):
        try:
            return _ObjectGraph(message, where)
        except IndexError as error:
            raise WireError("the data ends within a field") from error


class _ObjectGraph(Objects):
    """The nodes of an object graph, parsed when they are requested.

    A variable is a node with one attribute of three strings, and no other content. All other nodes
    with content are branches.
    """

    def __init__(self, message: bytes, where: str) -> None:
        self._message = message
        self._where = where
        self._data = np.frombuffer(message, np.uint8)
        self._starts, self._ends = _node_spans(message)
        start, end = (np.frombuffer(offsets, np.int64) for offsets in (self._starts, self._ends))
        length, attribute = self._varint(start + 1)
        attribute_end = attribute + length
        name, name_end = self._field(attribute, 0x0A)
        full_name, full_name_end = self._field(name_end, _FULL_NAME)
        key, key_end = self._field(full_name_end, _KEY)
        rest = end - attribute_end
        saved = sum(self._byte(attribute_end + place) << 8 * place for place in range(4))
        fits = (self._byte(start) == _ATTRIBUTE) & (start < end) & (name >= 0)
        fits &= (full_name >= 0) & (key >= 0) & (key_end == attribute_end)
        fits &= (rest == 0) | ((rest == 4) & (saved == _SAVED))
        self._full_names = full_name[fits], full_name_end[fits]
        self._paths = key[fits], key_end[fits] - len(VALUE)
        others = ~fits & (start < end)
        self._is_branch = others.tobytes()
        indices = np.flatnonzero(others).tolist()
        self._branches = {index: self._find_branches(index) for index in indices}

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Node:  # type: ignore[override]  # no slices
        with Decoding(self._where, "the object graph"):
            return _parse_node(self._message[self._starts[index] : self._ends[index]])

    def branches(self, index: int) -> Sequence[tuple[str, int]]:
        return self._branches.get(index, ())

    def has_child(self, index: int, label: str) -> bool:
        start, end = self._starts[index], self._ends[index]
        may_have = self._message.find(label.encode(), start, end) >= 0
        return may_have and label in self[index].children

    def ending_with(self, endings: Collection[str]) -> Iterator[Node]:
        value = VALUE.encode()
        with Decoding(self._where, "the object graph"):
            yield from self._variables_ending_with([ending.encode() for ending in endings])
        for index in self._branches:
            if self._message.find(value, self._starts[index], self._ends[index]) >= 0:
                yield self[index]

    def _find_branches(self, index: int) -> list[tuple[str, int]]:
        """Return (name, node index) for each child that is a branch, in stored order."""
        # This is fast for the layout that TensorFlow writes.
        message, is_branch, count = self._message, self._is_branch, len(self)
        branches = []
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
                return self._find_branches_slowly(index)
            child, at = message[start + 1], start + 2
            if child >= 0x80:
                child, at = varint(message, start + 1)
            if child >= count:
                raise DamagedError(self._where, _NO_SUCH_CHILD)
            left = position - at - 2
            if message[at] != _NAME or message[at + 1] != left or left >= 0x80:
                return self._find_branches_slowly(index)
            if is_branch[child]:
                branches.append((text(message[at + 2 : position]), child))
        return branches

    def _find_branches_slowly(self, index: int) -> list[tuple[str, int]]:
        children = self[index].children
        if any(not 0 <= child < len(self) for child in children.values()):
            raise DamagedError(self._where, _NO_SUCH_CHILD)
        return [(name, child) for name, child in children.items() if self._is_branch[child]]

    def _variables_ending_with(self, endings: Collection[bytes]) -> Iterator[Node]:
        """Yield the nodes whose full name or key path may have one of these endings."""
        if not endings or not self._paths[0].size:
            return
        length = min(_MAX_TAIL, *map(len, endings))
        lists: dict[bytes, list[bytes]] = {}
        for ending in endings:
            lists.setdefault(ending[-length:], []).append(ending)
        by_tail = {tail: tuple(same) for tail, same in lists.items()}
        names = {*endings, *(ending[1:] for ending in endings)}
        tails = np.array(sorted(int.from_bytes(tail, "little") for tail in by_tail), np.int64)
        full_names, paths = self._full_names, self._paths
        selected = self._matches(*full_names, length, tails) | self._matches(*paths, length, tails)

        def may_end(start: int, end: int) -> bool:
            # Many names can have the same last bytes as one of many long endings.
            string = self._message[start:end]
            tail = string[-length:]
            is_unclear = len(tail) < length or b"." in tail
            # The search in the set is first, because most endings are complete names.
            return is_unclear or string in names or string.endswith(by_tail.get(tail, ()))

        offsets = (numbers[selected].tolist() for numbers in (*full_names, *paths))
        for name, name_end, key, path_end in zip(*offsets, strict=True):
            if not (may_end(name, name_end) or may_end(key, path_end)):
                continue
            stored = text(self._message[key : path_end + len(VALUE)])
            if stored.endswith(VALUE):
                yield Node(_NO_CHILDREN, stored, text(self._message[name:name_end]))

    def _matches(
        self, start: _Numbers, end: _Numbers, length: int, tails: _Numbers
    ) -> NDArray[np.bool_]:
        """Return True for each string that is short, or whose end has a dot or is in `tails`."""
        # A dot may be part of an escape.
        tail = np.zeros_like(end)
        selected = end - start < length
        for place in range(length):
            byte = self._byte(end - length + place)
            tail |= byte << 8 * place
            selected |= byte == ord(".")
        # Importing `np.isin` takes longer than reading most checkpoints.
        nearest = np.searchsorted(tails, tail).clip(max=tails.size - 1)
        selected |= tails[nearest] == tail
        return selected

    def _field(self, position: _Numbers, tag: int) -> tuple[_Numbers, _Numbers]:
        """Return the start and end offsets of fields' values; start is -1 if the tag differs."""
        length, start = self._varint(position + 1)
        return np.where(self._byte(position) == tag, start, -1), start + length

    def _varint(self, position: _Numbers) -> tuple[_Numbers, _Numbers]:
        """Decode varints of one or two bytes; return their values, and the positions after them."""
        first, second = self._byte(position), self._byte(position + 1)
        is_long = first >= 0x80
        value = np.where(is_long, first & 0x7F | second << 7, first)
        return value, position + 1 + is_long

    def _byte(self, position: _Numbers) -> _Numbers:
        """Return the bytes at these positions; an arbitrary byte for a position out of range."""
        return self._data.take(position, mode="clip").astype(np.int64)


def _node_spans(message: bytes) -> tuple[array[int], array[int]]:
    """Return the start offsets and the end offsets of the nodes, which are field 1 of `message`."""
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
            raise WireError(f"a field has the unexpected wire type {tag & 7}")
        position = start + length
        if position > end:
            raise WireError("a field is longer than its message")
        if tag == _CHILD:
            add_start(start)
            add_end(position)
    return starts, ends


def _parse_node(message: bytes) -> Node:
    children: dict[str, int] = {}
    key, full_name = None, ""
    for number, value in fields(message):
        if not isinstance(value, bytes) or number > 2:
            continue
        inner = dict(fields(value))
        if number == 1:
            child = inner.get(1, 0)
            children[text(inner.get(2, b""))] = child if isinstance(child, int) else -1
        elif (stored := text(inner.get(3, b""))).endswith(VALUE):
            key, full_name = stored, text(inner.get(2, b""))
    return Node(children or _NO_CHILDREN, key, full_name)


_AGAIN = "_all_variables/"
"""`model.export` of Keras 3 saves variables under `variables/`, and again under this path."""


class BestNames(Mapping[str, str]):
    """A mapping of checkpoint keys to best names, computed lazily; see `best_names`."""

    def __init__(self, graph: Objects) -> None:
        self._graph = graph
        self._searched: dict[str, str | None] = {}

    def ending_with(self, endings: Collection[str]) -> Mapping[str, str]:
        """Return best names by checkpoint key; may omit variables without one of the endings."""
        nodes = [node for node in self._graph.ending_with(endings) if node.key]
        names = best_names(nodes)
        ends = tuple(endings)
        wanted = {"", *endings}
        # The search in the set is first, because most endings are complete names.
        if any(
            node.full_name not in wanted and not node.full_name.endswith(ends) for node in nodes
        ):
            # It matched by its key: variables that did not match may have the same full name.
            names = {key: self._all[key] for key in names if key in self._all}
        self._searched |= {node.key: names.get(node.key) for node in nodes if node.key}
        return names

    @cached_property
    def _all(self) -> Mapping[str, str]:
        return best_names(self._graph)

    def __getitem__(self, key: str) -> str:
        name = self._searched[key] if key in self._searched else self._all[key]
        if name is None:
            raise KeyError(key)
        return name

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


def best_names(nodes: Iterable[Node]) -> dict[str, str]:
    """Return a dict of checkpoint keys to best names: the full name if unique, else the path.

    Second copies of variables (`_AGAIN`) are omitted.
    """
    full_names = {node.key: node.full_name for node in nodes if node.key}
    for key in saved_again(full_names):
        del full_names[key]
    # Unnamed variables are all called `Variable`. Late built Keras 3 models have a single scope.
    uses = Counter(full_names.values())
    return {
        key: full_name if full_name and uses[full_name] == 1 else path_name(key)
        for key, full_name in full_names.items()
    }


def saved_again(full_names: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the key of each variable saved again -> the earlier keys with the same full name."""
    again = {key: name for key, name in full_names.items() if key.startswith(_AGAIN)}
    first: dict[str, list[str]] = {name: [] for name in again.values()}
    for key, name in full_names.items():
        if name in first and key not in again:
            first[name].append(key)
    return {key: first[name] for key, name in again.items() if first[name]}


def path_name(key: str) -> str:
    """Convert a checkpoint key to an object path: remove the suffix and undo the escapes."""
    path = key.removesuffix(VALUE)
    if "." not in path:
        return path
    return path.replace("..", "\0").replace(".S", "/").replace("\0", ".")
