"""HDF5 files: groups, datasets and string attributes, read without following links to other files.

HDF5 is a tree of groups and datasets, both with attributes. Soft and external links, virtual
datasets, and datasets whose bytes are in other files are not followed, because model files do not
use them. The tree is walked over hard links, and each group is visited once, because a group may be
linked below itself.

    group, old  message 0x11: address of a tree, address of the heap with the members' names
    tree        "TREE", type 0, level, number of entries (u16), addresses of the two siblings,
                the entries: a key, the address of a node (level 0) or of the tree below
    node        "SNOD", version, 1 unused, number of entries (u16), the entries: the name's offset
                in the heap, the header's address, kind (u32: 2 for a soft link), 20 unused
    heap        "HEAP", version, 3 unused, size, free list, address of the names
    group, new  message 0x06 per link: version, flags, [kind], [creation order (u64)], [encoding],
                length of the name, name, header's address; the flags show which of the fields in
                brackets are present

Source: HDF5 File Format Specification 3.0, sections III.A.1, III.B, III.D and IV.A.2.c, g and r.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import Final

from bnstat.errors import BnstatError, DamagedError
from bnstat.formats.contents import Contents
from bnstat.formats.hdf5.arrays import Dataset, find_dataset, is_outside
from bnstat.formats.hdf5.headers import (
    SMALLEST,
    AbsentError,
    Attribute,
    Cursor,
    Kind,
    Message,
    Objects,
    attributes,
    decode,
    dense_messages,
    signature_offset,
)
from bnstat.model import Array, Source, Variable
from bnstat.storage.files import File

_MAX_DEPTH: Final = 64
_TOO_LARGE: Final = "has too many objects, or names that are too long"
_MAX_OBJECTS: Final = 250_000
_MAX_NAMES: Final = 128 << 20
"""Characters of all paths together; a group's name counts in the path of every descendant."""
_BOMB_FLOOR: Final = 64 << 20
_BOMB_RATIO: Final = 50
"""All arrays together may claim `_BOMB_FLOOR` bytes or this many times the file's size, because
compressed arrays, and arrays that share bytes, can claim more than the file's size."""
_LARGEST_ELEMENT: Final = 8

_SOFT: Final = 2
_OTHER_FILE: Final = 64
"""Links of this type, and of higher, user-defined types, lead out of the file."""
_MEMBERS: Final = 8  # per node of an old group
_WINDOW: Final = 12 << 10
"""Bytes to fetch after an address: an object's parts and members usually follow its address."""
_BEFORE: Final = 1 << 10
"""Bytes to fetch before an address, because a part that follows a large array may end there."""
_MAX_TRIPS: Final = 200

_GROUP: Final = {Kind.SYMBOL_TABLE, Kind.LINK_INFO, Kind.LINK}
_NUMBERS: Final = ("float", "bfloat", "int", "uint", "bool")


def is_hdf5(file: File) -> bool:
    """Return True if a file has the signature of HDF5."""
    return signature_offset(file) is not None


def matches(file: File) -> bool:
    """Return True for an HDF5 file that contains arrays of numbers."""
    return is_hdf5(file) and any(
        variable.dtype.startswith(_NUMBERS) for variable in Hdf5(file).variables.values()
    )


def open_contents(file: File, source: Source) -> Contents:
    """Return the arrays of a file that Keras did not write, keyed by their paths."""
    variables = Hdf5(file).variables
    names = {key: variable.name for key, variable in variables.items()}
    return Contents(replace(source, format="hdf5"), variables, names=names)


_Object = tuple[list[Message], list[tuple[str, int]] | None]
"""The header's messages, and (name, header address) of each member; None if not a group."""


class Hdf5:
    """The groups, the datasets (as variables) and the string attributes of an HDF5 file.

    The tree is read on first use; an invalid tree raises a `DamagedError` or `UnsupportedError`.
    """

    def __init__(self, file: File) -> None:
        self._path = file.path
        self._objects = Objects(file)
        self._counted: set[str] = set()
        self._outside: set[str] = set()
        self._claimed = 0
        self._is_fetched = file.has(0, file.size)

    @property
    def groups(self) -> Set[str]:
        """The paths of all groups, without a leading slash; the root is `""`."""
        return self._tree[0].keys()

    @property
    def variables(self) -> Mapping[str, Variable]:
        """Path -> variable, for every dataset that has a shape."""
        return self._tree[1]

    @property
    def outside(self) -> Set[str]:
        """The datasets (paths) and the links (names) that refer to other datasets or files."""
        return self._outside if self._tree else set()

    def members(self) -> set[str]:
        """Return the names in the root group, without walking the whole tree."""
        return {name for name, _ in self._root[1] or ()}

    def attributes(self, group: str) -> Iterator[Attribute]:
        messages = self._tree[0].get(group, []) if group else self._root[0]
        return attributes(self._objects, messages)

    def text(self, group: str, name: str) -> str | None:
        """Return a string attribute of a group, or None if it is missing or not a single string."""
        texts = self._texts(group, name)
        return texts[0] if texts is not None and len(texts) == 1 else None

    def texts(self, group: str, name: str) -> list[str] | None:
        """Return the strings of a group's attribute, or None if it is missing or of another type.

        Keras splits lists that exceed 64 KiB, HDF5's limit for an object header, into `name0`,
        `name1`, ... (keras/src/legacy/saving/legacy_h5_format.py).
        """
        texts = self._texts(group, name)
        if texts is not None:
            return texts
        parts: list[str] = []
        index = 0
        while (part := self._texts(group, f"{name}{index}")) is not None:
            parts += part
            index += 1
        return parts if index else None

    def _texts(self, group: str, name: str) -> list[str] | None:
        found = (each.texts() for each in self.attributes(group) if each.name == name)
        return next(found, None)

    @cached_property
    def _root(self) -> _Object:
        return self._read_objects(is_root_enough=True)[self._objects.root]

    @cached_property
    def _tree(self) -> tuple[dict[str, list[Message]], dict[str, Variable]]:
        """Two mappings: path of a group -> header messages, and path of a dataset -> variable."""
        objects = self._read_objects()
        groups: dict[str, list[Message]] = {}
        variables: dict[str, Variable] = {}
        seen = {self._objects.root}
        pending = [("", self._objects.root)]
        characters = 0
        while pending:
            path, header = pending.pop()
            messages, links = objects[header]
            if any(map(is_outside, messages)):
                self._outside.add(path)
            dataset = find_dataset(self._objects, path, messages)
            if dataset is not None:
                name, read = path.removesuffix(":0"), partial(self._read, dataset)
                kind = dataset.dtype, dataset.shape
                variables[path] = Variable(path, name, *kind, read, dataset.extents)
            elif links is not None:
                groups[path] = messages
                # Keras on Windows joined the parts of a path with backslashes.
                if path.count("/") + path.count("\\") >= _MAX_DEPTH:
                    raise DamagedError(self._path, f"groups are nested deeper than {_MAX_DEPTH}")
                for name, child in sorted(links, reverse=True):
                    if child not in seen:
                        seen.add(child)
                        pending.append((f"{path}/{name}" if path else name, child))
                        characters += len(pending[-1][0])
                if characters > _MAX_NAMES:
                    raise DamagedError(self._path, _TOO_LARGE)
        return groups, variables

    def _read_objects(self, is_root_enough: bool = False) -> dict[int, _Object]:
        """Return header address -> object, for all objects or only the root.

        First read the objects whose bytes are available. Then fetch the bytes of all remaining
        objects together, and repeat. Each level of a remote tree thus takes about one request.
        """
        found: dict[int, _Object] = {}
        seen = {self._objects.root}
        waiting = [self._objects.root]
        for trip in itertools.count():
            absent: list[int] = []
            spans: list[tuple[int, int]] = []
            while waiting:
                header = waiting.pop()
                try:
                    with self._objects.trips(self._is_fetched or trip >= _MAX_TRIPS):
                        found[header] = self._read_object(header)
                except AbsentError as error:
                    absent.append(header)
                    for address, length in error.args:
                        spans.append((max(0, address - _BEFORE), _BEFORE + length + _WINDOW))
                    continue
                if not is_root_enough:
                    children = {child for _, child in found[header][1] or ()} - seen
                    seen |= children
                    waiting += children
                if len(seen) > _MAX_OBJECTS:
                    raise DamagedError(self._path, _TOO_LARGE)
            if not absent:
                break
            self._objects.file.prefetch(spans)
            waiting = absent
        return found

    def _read_object(self, header: int) -> _Object:
        messages = list(self._objects.messages(header))
        if not any(message.kind in _GROUP for message in messages):
            return messages, None
        if not self._is_fetched:
            # One request then fetches the group with its texts. Their damage is reported upon use.
            with suppress(BnstatError):
                for attribute in attributes(self._objects, messages):
                    attribute.texts()
        return messages, self._links(messages)

    def _links(self, messages: list[Message]) -> list[tuple[str, int]]:
        links: list[tuple[str, int]] = []
        for message in messages:
            body = Cursor(message.body, self._objects)
            if message.kind == Kind.SYMBOL_TABLE:
                links += self._old_links(body.address(), body.address())
            elif message.kind == Kind.LINK_INFO:
                for link in dense_messages(self._objects, message):
                    links += self._new_link(link)
            elif message.kind == Kind.LINK:
                links += self._new_link(body)
        return links

    def _new_link(self, body: Cursor) -> Iterator[tuple[str, int]]:
        """Yield the name and header address in a link message, if it is a hard link."""
        _, flags = body.number(1), body.number(1)
        kind = body.number(1) if flags & 0x08 else 0
        body.take((8 if flags & 0x04 else 0) + (1 if flags & 0x10 else 0))
        name = body.take(body.number(1 << (flags & 3)))
        if kind == 0:
            yield decode(name), body.address()
        elif kind >= _OTHER_FILE:
            self._outside.add(decode(name))

    def _old_links(self, tree: int, heap: int) -> Iterator[tuple[str, int]]:
        """Yield the name and header address of each hard link of a group in the old form."""
        objects = self._objects
        objects.expect([(heap, SMALLEST), (tree, SMALLEST)])
        head = objects.cursor(heap, 8 + 2 * objects.length_size + objects.offset_size, b"HEAP")
        head.take(4)
        size, _ = head.length(), head.length()
        names = objects.cursor(head.address(), size).data
        address = "Q" if objects.offset_size == 8 else "I"
        entry = struct.Struct(f"<{address}{address}I20x")
        nodes = [node for node, _ in objects.tree(tree, 0, objects.length_size)]
        objects.expect((node, 8 + _MEMBERS * entry.size) for node in nodes)
        for node in nodes:
            start = objects.cursor(node, 8, b"SNOD")
            start.take(2)
            count = start.number(2)
            entries = objects.cursor(node + 8, count * entry.size).data
            for offset, header, kind in entry.iter_unpack(entries):
                end = names.find(b"\0", offset)
                if offset >= end:
                    raise objects.damage("a member of a group has no name")
                if kind != _SOFT:
                    yield decode(names[offset:end]), header

    def _read(self, dataset: Dataset) -> Array:
        """Read a dataset, unless the datasets read so far claim too many bytes in total."""
        if dataset.path not in self._counted:
            self._counted.add(dataset.path)
            self._claimed += dataset.count * _LARGEST_ELEMENT
        size = self._objects.file.size
        if self._claimed > max(_BOMB_FLOOR, _BOMB_RATIO * size):
            what = f"{dataset.path} claims {dataset.count} elements, but the file has {size} bytes"
            raise DamagedError(self._path, what)
        return dataset.read()
