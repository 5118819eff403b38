"""HDF5 files, read without following anything out of them.

HDF5 is a tree of groups and datasets, both with attributes. Beside its own objects a file may
point elsewhere: by soft and external links, by virtual datasets, by datasets whose bytes are
kept in other files. None of that occurs in a model file, so none of it is followed. The tree is
walked over hard links alone, each group once, so that a group linked below itself ends the walk
rather than making it endless.

    group, old  message 0x11: addresses of a tree and of the heap of its names
    tree        "TREE", type 0, level, entries (u16), two addresses of siblings, then entries of
                a key and the address of a node or of the tree below
    node        "SNOD", version, 1 unused, entries (u16), then entries of the name's place in the
                heap, the header's address, kind (u32: 2 for a soft link), 20 unused
    heap        "HEAP", version, 3 unused, size, free list, address of the names
    group, new  message 0x06 per link: version, flags, [kind], [order (u64)], [encoding], length
                of the name, name, header's address

Source: HDF5 File Format Specification 3.0, sections III.A.1, III.B, III.D and IV.A.2.c, g and r.

Fetching the objects of an HDF5 file that is far away, in a few trips.

One object leads to the next, so that a walk through a file makes a trip for each. Here all objects
that can be reached with what is there are looked at; what they lack is fetched in one go; and so
on, until nothing is lacking. The number of trips is that of the tree's levels, not of its objects.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final, TypeVar

from bnstat.errors import BnstatError, DamagedError
from bnstat.formats.hdf5.arrays import (
    Dataset,
    LibraryNeededError,
    dataset,
    extents,
    numpy_type,
    read,
)
from bnstat.formats.hdf5.objects import (
    EXTERNAL,
    LAYOUT,
    LINK,
    LINK_INFO,
    LINKS,
    SYMBOL_TABLE,
    AbsentError,
    Attributes,
    Cursor,
    Message,
    Objects,
    dense_messages,
    product,
    signature_offset,
)
from bnstat.model import Array, Variable
from bnstat.storage.files import File

_T = TypeVar("_T")

_WINDOW: Final = 12 << 10
"""So much is fetched after a place: an object's parts, and its members, mostly follow it."""

_BEFORE: Final = 1 << 10
"""So much is fetched before it: there the parts of another may end that follow a large array."""

_MOST_TRIPS: Final = 200


def fetch_ahead(
    objects: Objects, root: tuple[int, _T], visit: Callable[[int, _T], Iterable[tuple[int, _T]]]
) -> None:
    """Fetch all that `visit` reads, for an object and those that it leads to.

    Args:
        objects: the file's objects.
        root: the header of the first, and what else `visit` is to know of it.
        visit: reads an object by its header, and gives the same of others. What is damaged
            tells so when it is read in earnest.
    """
    seen = {root[0]}
    waiting = [root]
    for _ in range(_MOST_TRIPS):
        lacking: list[tuple[int, _T]] = []
        spans: list[tuple[int, int]] = []
        while waiting:
            place = waiting.pop()
            try:
                with objects.no_trips():
                    found = list(visit(*place))
            except AbsentError as absent:
                lacking.append(place)
                spans += absent.spans
            except BnstatError:
                continue
            else:
                fresh = [child for child in dict(found).items() if child[0] not in seen]
                seen.update(header for header, _ in fresh)
                waiting += fresh
        if not lacking:
            return
        objects.fetch(
            (max(0, address - _BEFORE), _BEFORE + length + _WINDOW) for address, length in spans
        )
        waiting = lacking


_MAX_DEPTH: Final = 64
_MAX_OBJECTS: Final = 250_000
_MAX_NAMES: Final = 128 << 20
"""All paths together; a long name counts in the path of all that is below it."""
_BOMB_FLOOR: Final = 64 << 20
"""So many bytes are read from a file, however few of them it holds."""
_BOMB_RATIO: Final = 50
"""Beyond that, all arrays together must not exceed the file's size by more than this factor."""
_LARGEST_ELEMENT: Final = 8
_SOFT: Final = 2
_OTHER_FILE: Final = 64
"""Links of this type, and of the types that programs define, lead out of the file."""
_VIRTUAL: Final = 3
"""The class of a layout that is put together from other datasets."""
_HEAP: Final = 32
_TREE: Final = 24
_MEMBERS: Final = 8
"""What is at least fetched of a heap and a tree, and how many members a node has room for."""

_GROUP: Final = {SYMBOL_TABLE, LINK_INFO, LINK}


def is_hdf5(file: File) -> bool:
    """Whether a file is HDF5, going by its signature."""
    return signature_offset(file) is not None


@dataclass(frozen=True, slots=True)
class _Tree:
    """What a file holds.

    Attributes:
        headers: path of a group -> the address of its header.
        variables: path of a dataset -> variable.
    """

    headers: dict[str, int]
    variables: dict[str, Variable]


_Closed = Mapping[str, Any]
"""What stays closed below a group: name of a member -> None for all of it, or the same again."""

_NOTHING: Final[_Closed] = {}


class Hdf5:
    """An HDF5 file's tree, its datasets as variables, its attributes' texts.

    Attributes:
        path: the file, for messages.
    """

    def __init__(self, file: File, closed: Iterable[str] = ()) -> None:
        """Read the superblock; the tree is walked when it is first asked for.

        Args:
            file: the file.
            closed: the paths of groups that are not to be opened: as if they were not there.
                One that others of them are in is opened, for what else is in it.

        Raises:
            DamagedError: the file is truncated, or not HDF5.
        """
        self.path = file.path
        self._file = file
        self._objects = Objects(file)
        self._attributes = Attributes(self._objects)
        self._root = (self._objects.root, _nested(closed))
        self._read_before: set[str] = set()
        self._outside: set[str] = set()
        self._claimed = 0
        self._is_near = file.has(0, file.size)

    @property
    def groups(self) -> Set[str]:
        """The paths of all groups, without a leading slash; the root is `""`.

        Raises:
            DamagedError: the tree contradicts itself, or is nested beyond reason.
            UnsupportedError: it keeps groups in a way that Keras never uses.
        """
        return self._tree.headers.keys()

    @property
    def variables(self) -> Mapping[str, Variable]:
        """Path -> variable, for every dataset that has a shape; raises as `groups` does."""
        return self._tree.variables

    @property
    def outside(self) -> Set[str]:
        """The paths of datasets, and the names of links, whose contents are in other files.

        HDF5's own library reads them there. Raises as `groups` does.
        """
        return self._outside if self._tree else set()

    def members(self) -> set[str]:
        """The names of what the root group holds, without a walk through all of the tree."""
        if not self._is_near:
            fetch_ahead(self._objects, self._root, lambda *root: self._look_at(*root)[:0])
        return {name for name, _ in self._links(list(self._objects.messages(self._objects.root)))}

    def has_attribute(self, group: str, name: str) -> bool:
        """Whether a group of the tree has an attribute of that name."""
        header = self._header(group)
        return header is not None and name in self._attributes.names(header)

    def text(self, group: str, name: str) -> str | None:
        """A text attribute of a group; None where it is missing or no single text."""
        texts = self._one(group, name)
        return texts[0] if texts is not None and len(texts) == 1 else None

    def texts(self, group: str, name: str) -> list[str] | None:
        """A list-of-texts attribute, None where it is missing.

        Keras splits one that would exceed HDF5's 64 KiB for an object header into `name0`,
        `name1`, ... (keras/src/legacy/saving/legacy_h5_format.py).
        """
        whole = self._one(group, name)
        if whole is not None:
            return whole
        parts: list[str] = []
        index = 0
        while (part := self._one(group, f"{name}{index}")) is not None:
            parts += part
            index += 1
        return parts if index else None

    def _one(self, group: str, name: str) -> list[str] | None:
        header = self._header(group)
        return None if header is None else self._attributes.texts(header, name)

    def _header(self, group: str) -> int | None:
        return self._tree.headers.get(group) if group else self._objects.root

    @cached_property
    def _tree(self) -> _Tree:
        self._come_near()
        tree = _Tree({}, {})
        seen = {self._objects.root}
        pending = [("", *self._root)]
        named = 0
        while pending:
            path, header, closed = pending.pop()
            messages = list(self._objects.messages(header))
            if any(map(_is_outside, messages)):
                self._outside.add(path)
            found = dataset(self._objects, path, messages)
            if found is not None:
                tree.variables[path] = Variable(
                    key=path,
                    name=path.removesuffix(":0"),
                    dtype=found.dtype,
                    shape=found.shape,
                    reader=partial(self._read, found),
                    finder=partial(extents, self._objects, found),
                )
            elif any(message.kind in _GROUP for message in messages):
                tree.headers[path] = header
                if path.count("/") >= _MAX_DEPTH:
                    raise DamagedError(self.path, f"groups are nested deeper than {_MAX_DEPTH}")
                for name, child in sorted(self._links(messages), reverse=True):
                    inside = closed.get(name, _NOTHING)
                    if child not in seen and inside is not None:
                        seen.add(child)
                        pending.append((f"{path}/{name}" if path else name, child, inside))
                        named += len(pending[-1][0])
            if len(seen) > _MAX_OBJECTS or named > _MAX_NAMES:
                raise DamagedError(self.path, "it has too many objects, or too long names")
        return tree

    def _come_near(self) -> None:
        """Fetch all objects to open of a file that is far away."""
        if not self._is_near:
            self._is_near = True
            fetch_ahead(self._objects, self._root, self._look_at)

    def _look_at(self, header: int, closed: _Closed) -> list[tuple[int, _Closed]]:
        """Read an object's header, its texts, its members; the headers of those to open."""
        messages = list(self._objects.messages(header))
        if not any(message.kind in _GROUP for message in messages):
            return []
        for name in self._attributes.names(header):
            self._attributes.texts(header, name)
        return [
            (child, inside)
            for name, child in self._links(messages)
            if (inside := closed.get(name, _NOTHING)) is not None
        ]

    def _links(self, messages: list[Message]) -> list[tuple[str, int]]:
        """Name and header's address of a group's hard links."""
        links: list[tuple[str, int]] = []
        for message in messages:
            body = Cursor(message.body, self.path)
            if message.kind == SYMBOL_TABLE:
                links += self._old_links(self._objects.address(body), self._objects.address(body))
            elif message.kind == LINK_INFO:
                _, flags = body.number(1), body.number(1)
                body.take(8 if flags & 1 else 0)
                heap, tree = self._objects.address(body), self._objects.address(body)
                if not self._objects.is_undefined(heap):
                    for link in dense_messages(self._objects, heap, tree, LINKS):
                        links += self._new_link(Cursor(link, self.path))
            elif message.kind == LINK:
                links += self._new_link(body)
        return links

    def _new_link(self, body: Cursor) -> Iterator[tuple[str, int]]:
        """The link of a link message, if it is a hard one."""
        _, flags = body.number(1), body.number(1)
        kind = body.number(1) if flags & 0x08 else 0
        body.take((8 if flags & 0x04 else 0) + (1 if flags & 0x10 else 0))
        name = body.take(body.number(1 << (flags & 3)))
        if kind == 0:
            yield _decoded(name), self._objects.address(body)
        elif kind >= _OTHER_FILE:
            self._outside.add(_decoded(name))

    def _old_links(self, tree: int, heap: int) -> Iterator[tuple[str, int]]:
        """The hard links of a group that is kept in a tree of symbol nodes."""
        objects = self._objects
        objects.expect([(heap, _HEAP), (tree, _TREE)])
        head = objects.cursor(heap, 8 + 2 * objects.length_size + objects.offset_size)
        if head.take(4) != b"HEAP":
            raise objects.damage("a group has no heap of names")
        head.take(4)
        size, _ = head.number(objects.length_size), head.number(objects.length_size)
        names = objects.cursor(objects.address(head), size).data
        address = "Q" if objects.offset_size == 8 else "I"
        entry = struct.Struct(f"<{address}{address}I20x")
        nodes = list(self._nodes(tree))
        objects.expect((node, 8 + _MEMBERS * entry.size) for node in nodes)
        for node in nodes:
            start = objects.cursor(node, 8)
            if start.take(4) != b"SNOD":
                raise objects.damage("a group has no list of members")
            start.take(2)
            count = start.number(2)
            entries = objects.cursor(node + 8, count * entry.size).data
            for place, header, kind in entry.iter_unpack(entries):
                end = names.find(b"\0", place)
                if place >= end:
                    raise objects.damage("a member of a group has no name")
                if kind != _SOFT:
                    yield _decoded(names[place:end]), header

    def _nodes(self, root: int) -> Iterator[int]:
        """The addresses of a group's symbol nodes, in order of names."""
        objects = self._objects
        pending, seen = [root], {root}
        while pending:
            address = pending.pop()
            objects.expect((node, _TREE) for node in (address, *pending))
            head = objects.cursor(address, 8 + 2 * objects.offset_size)
            if head.take(5) != b"TREE\x00":
                raise objects.damage("a group has no tree of members")
            level, count = head.number(1), head.number(2)
            entry = objects.length_size + objects.offset_size
            entries = objects.cursor(address + len(head.data), count * entry)
            children = []
            for _ in range(count):
                entries.take(objects.length_size)
                children.append(objects.address(entries))
            fresh = [child for child in dict.fromkeys(children) if child not in seen]
            seen.update(fresh)
            if level == 0:
                yield from fresh
            else:
                pending += reversed(fresh)

    def _read(self, found: Dataset) -> Array:
        """A dataset's array.

        Datasets may be compressed or share their bytes: what they claim together is bounded.
        """
        if found.path not in self._read_before:
            self._read_before.add(found.path)
            self._claimed += product(found.shape) * _LARGEST_ELEMENT
        if self._claimed > max(_BOMB_FLOOR, _BOMB_RATIO * self._objects.size):
            raise DamagedError(
                self.path,
                f"{found.path} claims {product(found.shape)} elements, "
                f"the file has {self._objects.size} bytes",
            )
        try:
            return read(self._objects, found)
        except LibraryNeededError:
            dtype = numpy_type(found)
            if dtype is None:
                raise
            from bnstat.formats.hdf5.library import read_array

            return read_array(self._file, found.path, dtype.newbyteorder("="))


def _nested(paths: Iterable[str]) -> _Closed:
    """The paths as a tree; one that others are in gives way to them."""
    closed: dict[str, Any] = {}
    for path in sorted(paths, reverse=True):
        *above, name = path.split("/")
        held = closed
        for group in above:
            held = held.setdefault(group, {})
        held.setdefault(name, None)
    return closed


def _is_outside(message: Message) -> bool:
    """Return True if a dataset's message refers to the bytes of other files."""
    is_virtual = message.kind == LAYOUT and message.body[:1] >= b"\x03"
    return message.kind == EXTERNAL or (is_virtual and message.body[1:2] == bytes([_VIRTUAL]))


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
