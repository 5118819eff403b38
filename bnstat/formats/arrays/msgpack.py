"""MessagePack as `flax.serialization` writes it: maps of maps, and arrays in them.

An array is an extension of type 1, itself MessagePack: `[shape, dtype, bytes]`. Of what else there
may be (numbers, texts, NumPy's scalars as extensions of type 3) only the lengths are looked at.

Sources: https://github.com/msgpack/msgpack/blob/master/spec.md; flax/serialization.py,
`_ndarray_to_bytes`, `_msgpack_ext_pack`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.arrays import plain_name
from bnstat.formats.contents import Contents
from bnstat.formats.dtypes import bytes_needed, extents, find_dtype, from_little_endian, numpy_dtype
from bnstat.formats.protobuf.wire import Window, WireError, damaged
from bnstat.model import Source, Variable
from bnstat.storage.files import File

_ARRAY: Final = 1
_MOST_DIMS: Final = 32
_DEEPEST: Final = 64
_MOST_ITEMS: Final = 1 << 21
_FIRST_ITEMS: Final = 64
_LONGEST_TEXT: Final = 1 << 12

Kind = Literal["map", "list", "text", "bytes", "extension", "number"]

_SIZES: Final[dict[int, tuple[Kind, int]]] = {
    0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4),
    0xC7: ("extension", 1), 0xC8: ("extension", 2), 0xC9: ("extension", 4),
    0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4),
    0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
"""Codes that a length follows, of so many bytes."""

_FIXED: Final[dict[int, int]] = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8,
    0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
"""Codes of nothing, truth values, numbers and short extensions, and the bytes that follow."""


class Item(NamedTuple):
    """A value of the document.

    Attributes:
        kind: what it is.
        path: the way to it: keys, and indices in lists.
        value: a number that is its own code, the length of a map or list, the type of an
            extension; else 0.
        start, end: where the bytes of a text, of bytes or of an extension lie.
    """

    kind: Kind
    path: tuple[str, ...]
    value: int
    start: int
    end: int


def matches(file: File) -> bool:
    """Whether the file is a map with texts for keys, and an array among its first values."""
    head = file.head(1)
    if not head or not (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        return False
    try:
        first = islice(_items(Window(file)), _FIRST_ITEMS)
        return any(item.kind == "extension" and item.value == _ARRAY for item in first)
    except (WireError, DamagedError):
        return False


def open_contents(file: File, source: Source) -> Contents:
    """The arrays of a file that `matches`, by the way to them.

    Raises:
        DamagedError: the file is truncated, or contradicts itself.
        UnsupportedError: it holds far more than a network does.
    """
    window = Window(file)
    variables: dict[str, Variable] = {}
    names: dict[str, str] = {}
    try:
        for item in _items(window):
            if item.kind != "extension" or item.value != _ARRAY:
                continue
            key = "/".join(item.path)
            names[key] = plain_name(item.path)
            variables[key] = _variable(Window(file), item, key, names[key])
    except WireError as error:
        raise damaged(file.path, "the document", error) from error
    return Contents(replace(source, format="msgpack", writer="Flax"), variables, names=names)


def _variable(window: Window, item: Item, key: str, name: str) -> Variable:
    """The array in an extension."""
    inner = [*_items(window, item.start, item.end)]
    match [each.kind for each in inner]:
        case ["list", "list", *sizes, "text", "bytes"] if set(sizes) <= {"number"}:
            shape = tuple(each.value for each in inner[2:-2])
        case _:
            raise WireError("an array that is none")
    kind, data = inner[-2:]
    if inner[0].value != 3 or inner[1].value != len(shape) or len(shape) > _MOST_DIMS:
        raise WireError("an array that is none")
    dtype = window.read(kind.start, min(kind.end, kind.start + _LONGEST_TEXT)).decode("latin1")
    file, length = window.file, data.end - data.start
    where = f"{file.path}: {key}"
    return Variable(
        key,
        name,
        dtype,
        shape,
        partial(_read, file, data.start, length, dtype, shape, where),
        lambda: extents(file, data.start, length, find_dtype(dtype), shape),
    )


def _read(
    file: File, start: int, length: int, dtype: str, shape: tuple[int, ...], where: str
) -> NDArray[np.generic]:
    kind = numpy_dtype(dtype, where)
    if length != bytes_needed(shape, kind):
        raise DamagedError(where, f"{length} bytes do not fit its shape")
    return from_little_endian(file.read(start, length), kind, shape)


class _Open(NamedTuple):
    """A map or list that is not at its end: values still to come, and the keys of a map."""

    path: tuple[str, ...]
    is_map: bool
    left: list[int]


def _items(window: Window, start: int = 0, end: int | None = None) -> Iterator[Item]:
    """All values of a document, those of maps and lists after these; the keys are not among them.

    Raises:
        WireError: the bytes are no such document, or end within it.
        DamagedError: the file ends within it.
        UnsupportedError: it has more values than any network.
    """
    end = window.file.size if end is None else end
    at, stack = start, list[_Open]()
    for _ in range(_MOST_ITEMS):
        path: tuple[str, ...] = ()
        if stack:
            top = stack[-1]
            name = str(top.left[1])
            top.left[0] -= 1
            top.left[1] += 1
            if top.is_map:
                key = _item(window, at, end, ())
                if key.kind != "text":
                    raise WireError("a key that is no text")
                at = key.end
                text = window.read(key.start, min(key.end, key.start + _LONGEST_TEXT))
                name = text.decode("utf-8", "replace")
            path = (*top.path, name)
        item = _item(window, at, end, path)
        at = item.start if item.kind in ("map", "list") else item.end
        yield item
        if item.kind in ("map", "list"):
            if len(stack) == _DEEPEST or item.value > end - at:
                raise WireError("nested too deep, or longer than the file")
            stack.append(_Open(path, item.kind == "map", [item.value, 0]))
        while stack and stack[-1].left[0] == 0:
            stack.pop()
        if not stack:
            return
    raise UnsupportedError(window.file.path, "has more values than any network")


def _item(window: Window, at: int, end: int, path: tuple[str, ...]) -> Item:
    """The value at a position."""
    if at >= end:
        raise WireError("it ends early")
    code, at = window.read(at, at + 1)[0], at + 1
    if code < 0x80 or code >= 0xE0:
        return Item("number", path, code, at, at)
    if code < 0xC0:
        kind: Kind = "map" if code < 0x90 else "list" if code < 0xA0 else "text"
        length = code & (0x1F if kind == "text" else 0x0F)
    elif code in _SIZES:
        kind, width = _SIZES[code]
        length = int.from_bytes(window.read(at, at + width), "big") if at + width <= end else end
        at += width
    elif code in _FIXED:
        width = _FIXED[code]
        is_extension = code >= 0xD4
        value = 0
        if at + width <= end and width:
            head = window.read(at, at + width)
            value = head[0] if is_extension else int.from_bytes(head, "big")
        kind = "extension" if is_extension else "number"
        return _within(Item(kind, path, value, at + is_extension, at + width), end)
    else:
        raise WireError("a code that is none")
    if kind in ("map", "list"):
        return Item(kind, path, length, at, at)
    if kind == "extension":
        value = window.read(at, at + 1)[0] if at < end else 0
        return _within(Item(kind, path, value, at + 1, at + 1 + length), end)
    return _within(Item(kind, path, 0, at, at + length), end)


def _within(item: Item, end: int) -> Item:
    if item.end > end:
        raise WireError("it ends early")
    return item
