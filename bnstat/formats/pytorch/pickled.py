"""A pickle reader that never runs code.

A pickle is a program for a small stack machine. This machine builds dicts, lists, tuples, sets,
numbers and strings. To build other objects, the program names a function or class, which is passed
to `call`. For an unknown name, `call` returns an `Opaque` object. Nothing is imported, and nothing
that a pickle names is called.

Source: Lib/pickletools.py of Python, protocols 0 to 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from bnstat.formats.protobuf.wire import WireError

_LONGEST_TEXT_NUMBER: Final = 400
_MOST_STEPS: Final = 1 << 24
"""The limit on a pickle's instructions; a state dict takes some 40 for each tensor."""
_CALLS_PER_BYTE: Final = 4
_CALLS_FLOOR: Final = 1 << 20
"""Elements and characters that all calls together may receive: this constant plus a multiple of the
pickle's size. A pickle can pass one long string or list to any number of calls."""
_PLAIN_KEYS: Final = (str, float, bool, bytes, type(None))
"""Types of keys that a dict may have, in addition to integers of up to 64 bits. Nested tuples take
exponential time to hash, and longer integers can be chosen to collide."""


class PickleError(WireError):
    """The bytes are not a pickle, or contain unsupported objects."""


class CutError(PickleError):
    """The bytes end within the pickle."""


class BudgetError(PickleError):
    """The pickle takes more work than any network needs."""


class Global(NamedTuple):
    """The name of a function or class."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Opaque:
    """An object that a pickle describes, but that was not built.

    Attributes:
        kind: the function or class that would have built the object.
        state: the value from which the attributes would have been set.
        items: the dict items that would have been added.
    """

    __slots__ = ("arguments", "items", "kind", "state")

    def __init__(self, kind: Global, arguments: tuple[Any, ...] = ()) -> None:
        self.kind = kind
        self.arguments = arguments
        self.state: Any = None
        self.items: dict[Any, Any] = {}


Call = Callable[[Global, tuple[Any, ...]], Any]
"""Takes a function or class and its arguments; returns the result, or an `Opaque` if unknown."""

Persistent = Callable[[Any], Any]
"""Returns the object that a persistent id stands for."""


def unpickle(data: bytes, start: int, call: Call, persistent: Persistent) -> tuple[Any, int]:
    """Return the object that the pickle at offset `start` describes, and the offset of its end.

    Invalid data raises `PickleError`, an early end `CutError`, and too much work `BudgetError`.
    """
    machine = _Machine(data, start, call, persistent)
    try:
        return machine.run(), machine.at
    except struct.error as error:
        raise CutError("it ends early") from error
    except IndexError as error:
        raise PickleError("it pops from an empty stack") from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, WireError):
            raise
        raise PickleError(str(error) or type(error).__name__) from error


class _Machine:
    def __init__(self, data: bytes, start: int, call: Call, persistent: Persistent) -> None:
        self.at = start
        self.stack: list[Any] = []
        self.push = self.stack.append
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.persistent = persistent
        self._data = data
        self._call = call
        self._left = _CALLS_PER_BYTE * len(data) + _CALLS_FLOOR

    def run(self) -> Any:
        data, end = self._data, len(self._data)
        for _ in range(_MOST_STEPS):
            if self.at >= end:
                raise CutError("it ends early")
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self.stack[-1]
            step = _STEPS.get(code)
            if step is None:
                raise PickleError(f"it contains the unknown instruction {code:#x}")
            step(self)
        raise BudgetError(f"it has more than {_MOST_STEPS} instructions")

    def number(self, form: struct.Struct) -> Any:
        value = form.unpack_from(self._data, self.at)[0]
        self.at += form.size
        return value

    def take(self, length: int) -> bytes:
        if not 0 <= length <= len(self._data) - self.at:
            raise CutError("it ends early")
        self.at += length
        return self._data[self.at - length : self.at]

    def line(self) -> str:
        end = self._data.find(b"\n", self.at)
        if end < 0:
            raise CutError("it ends early")
        return self.take(end + 1 - self.at)[:-1].decode("utf-8", "replace")

    def digits(self) -> str:
        text = self.line()
        if len(text) > _LONGEST_TEXT_NUMBER:
            raise PickleError("a number has too many digits")
        return text

    def push_int(self) -> None:
        text = self.digits()
        self.push({"00": False, "01": True}.get(text, int(text.rstrip("L") or "0")))

    def push_long(self, length: int) -> None:
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    def push_text(self, length: int) -> None:
        """Push text, or the bytes of a Python 2 `str`, as a `str`; see `bytes_of`."""
        self.push(self.take(length).decode("utf-8", "surrogateescape"))

    def pop(self, count: int) -> list[Any]:
        return self._cut(len(self.stack) - count)

    def pop_to_mark(self) -> list[Any]:
        return self._cut(self.marks.pop())

    def _cut(self, start: int) -> list[Any]:
        if start < (self.marks[-1] if self.marks else 0):
            raise PickleError("it pops from an empty stack")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise PickleError("it reads a memo entry that was never stored")
        self.push(self.memo[index])

    def call(self, function: Any, arguments: Any) -> None:
        if not isinstance(arguments, tuple):
            raise PickleError("the arguments of a call are not a tuple")
        if not isinstance(function, Global):
            function = Global("", type(function).__name__)
        self._left -= len(arguments)
        if self._left > 0:
            self._left -= sum(len(each) for each in arguments if isinstance(each, _SIZED))
        if self._left <= 0:
            raise BudgetError("it passes too many arguments to functions")
        self.push(self._call(function, arguments))

    def new_with_mark(self) -> None:
        kind, *arguments = self.pop_to_mark()
        self.call(kind, tuple(arguments))

    def stack_global(self) -> None:
        module, name = self.pop(2)
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("the name of a function is not a string")
        self.push(Global(legible(module), legible(name)))

    def persistent_as_text(self) -> None:
        raise PickleError("it uses pickle protocol 0, which PyTorch does not use for tensors")

    def build(self) -> None:
        [state], target = self.pop(1), self.stack[-1]
        if isinstance(target, Opaque):
            target.state = state

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        items = target.items if isinstance(target, Opaque) else target
        if not isinstance(items, dict):
            raise PickleError("items are added to an object that is not a dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=False):
            is_plain = type(key) in _PLAIN_KEYS or (type(key) is int and abs(key) < 1 << 64)
            items[key if is_plain else object()] = value

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Opaque):
            target.items.update(enumerate(values, len(target.items)))
        else:
            raise PickleError("items are added to an object that is not a list")

    def new_dict(self) -> None:
        pairs = self.pop_to_mark()
        self.push({})
        self.set_items(pairs)


def legible(text: str) -> str:
    """Return a string for display; bytes of a Python 2 string that are not UTF-8 are replaced."""
    return text if text.isascii() else bytes_of(text).decode("utf-8", "replace")


def bytes_of(text: str) -> bytes:
    """Return the bytes that were decoded to `text`: the contents of a Python 2 string."""
    return text.encode("utf-8", "surrogateescape")


_SIZED: Final = (str, bytes, list, tuple, dict)
_STOP: Final = ord(".")
_U8, _U16, _I32, _U32, _U64 = (struct.Struct(f"<{each}") for each in "BHiIQ")
_BIG_FLOAT: Final = struct.Struct(">d")

_STEPS: Final[dict[int, Callable[[_Machine], object]]] = {
    0x80: lambda m: m.take(1),  # protocol
    0x95: lambda m: m.take(8),  # frame
    ord("("): lambda m: m.marks.append(len(m.stack)),
    ord("0"): lambda m: m.pop(1),
    ord("1"): lambda m: m.pop_to_mark(),
    ord("2"): lambda m: m.push(m.stack[-1]),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("I"): lambda m: m.push_int(),
    ord("L"): lambda m: m.push_int(),
    ord("F"): lambda m: m.push(float(m.digits())),
    ord("K"): lambda m: m.push(m.number(_U8)),
    ord("M"): lambda m: m.push(m.number(_U16)),
    ord("J"): lambda m: m.push(m.number(_I32)),
    ord("G"): lambda m: m.push(m.number(_BIG_FLOAT)),
    0x8A: lambda m: m.push_long(m.number(_U8)),
    0x8B: lambda m: m.push_long(m.number(_I32)),
    ord("S"): lambda m: m.push(m.line().strip("'\"")),
    ord("V"): lambda m: m.push(m.line()),
    ord("X"): lambda m: m.push_text(m.number(_U32)),
    0x8C: lambda m: m.push_text(m.number(_U8)),
    0x8D: lambda m: m.push_text(m.number(_U64)),
    ord("T"): lambda m: m.push_text(m.number(_I32)),
    ord("U"): lambda m: m.push_text(m.number(_U8)),
    ord("B"): lambda m: m.push(m.take(m.number(_U32))),
    ord("C"): lambda m: m.push(m.take(m.number(_U8))),
    0x8E: lambda m: m.push(m.take(m.number(_U64))),
    0x96: lambda m: m.push(m.take(m.number(_U64))),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.pop_to_mark())),
    0x85: lambda m: m.push(tuple(m.pop(1))),
    0x86: lambda m: m.push(tuple(m.pop(2))),
    0x87: lambda m: m.push(tuple(m.pop(3))),
    ord("]"): lambda m: m.push([]),
    ord("l"): lambda m: m.push(m.pop_to_mark()),
    ord("a"): lambda m: m.append(m.pop(1)),
    ord("e"): lambda m: m.append(m.pop_to_mark()),
    ord("}"): lambda m: m.push({}),
    ord("d"): lambda m: m.new_dict(),
    ord("s"): lambda m: m.set_items(m.pop(2)),
    ord("u"): lambda m: m.set_items(m.pop_to_mark()),
    0x8F: lambda m: m.push([]),  # a set, read as a list
    0x90: lambda m: m.append(m.pop_to_mark()),
    0x91: lambda m: m.push(m.pop_to_mark()),
    ord("p"): lambda m: m.put(int(m.digits())),
    ord("q"): lambda m: m.put(m.number(_U8)),
    ord("r"): lambda m: m.put(m.number(_U32)),
    0x94: lambda m: m.put(len(m.memo)),
    ord("g"): lambda m: m.get(int(m.digits())),
    ord("h"): lambda m: m.get(m.number(_U8)),
    ord("j"): lambda m: m.get(m.number(_U32)),
    ord("c"): lambda m: m.push(Global(m.line(), m.line())),
    0x93: lambda m: m.stack_global(),
    ord("R"): lambda m: m.call(*m.pop(2)),
    0x81: lambda m: m.call(*m.pop(2)),
    0x92: lambda m: m.call(*m.pop(3)[:2]),
    ord("o"): lambda m: m.new_with_mark(),
    ord("i"): lambda m: m.call(Global(m.line(), m.line()), tuple(m.pop_to_mark())),
    ord("b"): lambda m: m.build(),
    ord("P"): lambda m: m.persistent_as_text(),
    ord("Q"): lambda m: m.push(m.persistent(*m.pop(1))),
}
"""Opcode -> handler. Opcodes that are not printable are written as numbers."""
