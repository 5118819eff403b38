"""MessagePack as `flax.serialization` writes it: nested maps of arrays.

An array is an extension of type 1, itself MessagePack: `[shape, dtype, bytes]`. Other values
(numbers, strings, NumPy's scalars as extensions of type 3) are skipped by their lengths.

Sources: https://github.com/msgpack/msgpack/blob/master/spec.md; flax/serialization.py,
`_ndarray_to_bytes`, `_msgpack_ext_pack`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import islice
from typing import Final, Literal, NamedTuple

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents, name_of_path
from bnstat.formats.dtypes import as_shape, contiguous_variable
from bnstat.formats.protobuf.wire import Decoding, Window, WireError
from bnstat.model import Source, Variable
from bnstat.storage.files import File

_ARRAY: Final = 1
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
"""Codes of values that begin with a length -> the kind, and the size of the length in bytes."""
_FIXED: Final[dict[int, int]] = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8,
    0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
"""Codes of nil, booleans, numbers and short extensions -> the number of bytes that follow."""


class Item(NamedTuple):
    """A value in the document.

    Attributes:
        path: the keys of maps and indices of lists that lead to the value.
        value: the number, the length of a map or list, or the type of an extension; else 0.
        start, end: the offsets where the contents of a string, bytes or extension begin and end.
    """

    kind: Kind
    path: tuple[str, ...]
    value: int
    start: int
    end: int


def matches(file: File) -> bool:
    """Return True for a map with strings as keys and an array among the first values."""
    head = file.head(1)
    if not head or not (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        return False
    try:
        first = islice(_items(Window(file)), _FIRST_ITEMS)
        return any(item.kind == "extension" and item.value == _ARRAY for item in first)
    except (WireError, DamagedError):
        return False


def open_contents(file: File, source: Source) -> Contents:
    """Return the arrays, keyed by their paths."""
    variables: dict[str, Variable] = {}
    with Decoding(file.path, "the document"):
        for item in _items(Window(file)):
            if item.kind == "extension" and item.value == _ARRAY:
                variable = _variable(Window(file), item)
                variables[variable.key] = variable
    names = {key: variable.name for key, variable in variables.items()}
    return Contents(replace(source, format="msgpack", writer="Flax"), variables, names=names)


def _variable(window: Window, item: Item) -> Variable:
    inner = [*_items(window, item.start, item.end)]
    shape = as_shape([each.value for each in inner[2:-2]])
    kinds = [each.kind for each in inner]
    expected = ["list", "list", *["number"] * (len(kinds) - 4), "text", "bytes"]
    if shape is None or kinds != expected or (inner[0].value, inner[1].value) != (3, len(shape)):
        raise WireError("an array is not [shape, dtype, bytes]")
    kind, data = inner[-2:]
    dtype = window.read(kind.start, min(kind.end, kind.start + _LONGEST_TEXT)).decode("latin1")
    key, length = "/".join(item.path), data.end - data.start
    variable = contiguous_variable(window.file, data.start, length, dtype, shape, key)
    return replace(variable, name=name_of_path(item.path))


def _items(window: Window, start: int = 0, end: int | None = None) -> Iterator[Item]:
    """Yield the values between two offsets in document order, without the keys of maps."""
    values = _nested(window, start, window.file.size if end is None else end, ())
    yield from islice(values, _MOST_ITEMS)
    if next(values, None) is not None:
        raise UnsupportedError(window.file.path, f"is above the limit of {_MOST_ITEMS:,} values")


def _nested(window: Window, at: int, end: int, path: tuple[str, ...]) -> Generator[Item, None, int]:
    """Yield the value at an offset, then all nested values; return the offset after all of them."""
    item = _item(window, at, end, path)
    yield item
    at = item.end
    if item.kind not in ("map", "list"):
        return at
    if len(path) == _DEEPEST or item.value > end - at:
        raise WireError("it is nested too deeply, or claims more values than it has bytes")
    for index in range(item.value):
        name = str(index)
        if item.kind == "map":
            key = _item(window, at, end, ())
            if key.kind != "text":
                raise WireError("a key is not a string")
            at = key.end
            text = window.read(key.start, min(key.end, key.start + _LONGEST_TEXT))
            name = text.decode("utf-8", "replace")
        at = yield from _nested(window, at, end, (*path, name))
    return at


def _item(window: Window, at: int, end: int, path: tuple[str, ...]) -> Item:
    """Return the value at an offset; for a map or list, read only the kind and the length."""

    def number(width: int) -> int:
        if at + width > end:
            raise WireError("it ends early")
        return int.from_bytes(window.read(at, at + width), "big")

    code = number(1)
    at += 1
    kind: Kind = "number"
    value = length = 0
    if code < 0x80 or code >= 0xE0:
        value = code
    elif code < 0xC0:
        kind = "map" if code < 0x90 else "list" if code < 0xA0 else "text"
        length = code & (0x1F if kind == "text" else 0x0F)
    elif code in _SIZES:
        kind, width = _SIZES[code]
        length = number(width)
        at += width
        if kind == "extension":
            value = number(1)
            at += 1
    elif code not in _FIXED:
        raise WireError(f"{code:#x} is not a code of MessagePack")
    elif code >= 0xD4:
        kind, value = "extension", number(1)
        at, length = at + 1, _FIXED[code] - 1
    else:
        length = _FIXED[code]
        value = number(length) if length else 0
    if kind in ("map", "list"):
        return Item(kind, path, length, at, at)
    if at + length > end:
        raise WireError("it ends early")
    return Item(kind, path, value, at, at + length)
