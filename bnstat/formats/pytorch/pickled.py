"""Pickles read without running anything of them.

A pickle is a program for a small stack machine. This one builds dicts, lists, tuples, sets,
numbers and texts; whatever else the program asks for, by the name of a function or class, is
handed to `call`, and stays an `Opaque` object where that does not know it. Nothing is imported,
nothing is called that a pickle names.

Source: Lib/pickletools.py of Python, protocols 0 to 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from bnstat.formats.protobuf.wire import WireError

_LONGEST_TEXT_NUMBER: Final = 400

_MOST_STEPS: Final = 1 << 24
"""Instructions of a pickle; a state dict takes some 40 for each tensor."""

_CALLS_PER_BYTE: Final = 4
_CALLS_FLOOR: Final = 1 << 20
"""Elements and characters that all calls together may receive: a number for each byte of the
pickle, and a constant. A pickle can pass one long text or list to any number of calls."""

_PLAIN_KEYS: Final = (str, float, bool, bytes, type(None))
"""Types of keys that a dict may have, in addition to integers of up to 64 bits. Nested tuples take
exponential time to hash, and longer integers can be chosen to share one hash."""


class PickleError(WireError):
    """The bytes are no pickle, or one of a kind that is not read."""


class CutError(PickleError):
    """The bytes end within the pickle."""


class BudgetError(PickleError):
    """The pickle takes more work than that of any network."""


class Global(NamedTuple):
    """A function or class by name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Opaque:
    """An object that was not built.

    Attributes:
        kind: what would have built it.
        arguments: what it would have been given.
        state: what its attributes would have been set from.
        items: what would have been put into it, as into a dict.
    """

    __slots__ = ("arguments", "items", "kind", "state")

    def __init__(self, kind: Global, arguments: tuple[Any, ...] = ()) -> None:
        self.kind = kind
        self.arguments = arguments
        self.state: Any = None
        self.items: dict[Any, Any] = {}


Call = Callable[[Global, tuple[Any, ...]], Any]
"""Gives what a function or class gives for these arguments; an `Opaque` where it is not known."""

Persistent = Callable[[Any], Any]
"""Gives what a persistent id stands for."""


def unpickle(data: bytes, start: int, call: Call, persistent: Persistent) -> tuple[Any, int]:
    """The object that a pickle describes, and the position after it.

    Args:
        data: bytes that hold the pickle.
        start: where it begins.
        call: see `Call`.
        persistent: see `Persistent`.

    Raises:
        BudgetError: it takes too much work.
        CutError: the data ends within it.
        PickleError: it is none, or has what is not read.
    """
    machine = _Machine(data, start, call, persistent)
    try:
        return machine.run(), machine.at
    except struct.error as error:
        raise CutError("it ends early") from error
    except IndexError as error:
        raise PickleError("it takes what it has not put there") from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, WireError):
            raise
        raise PickleError(str(error) or type(error).__name__) from error


class _Machine:
    def __init__(self, data: bytes, start: int, call: Call, persistent: Persistent) -> None:
        self.at = start
        self._data = data
        self._call = call
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._left = _CALLS_PER_BYTE * len(data) + _CALLS_FLOOR

    def run(self) -> Any:
        data, end = self._data, len(self._data)
        for _ in range(_MOST_STEPS):
            if self.at >= end:
                raise CutError("it ends early")
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self._stack[-1]
            step = _STEPS.get(code)
            if step is None:
                raise PickleError(f"an instruction {code:#x} that is not read")
            step(self)
        raise BudgetError(f"more than {_MOST_STEPS} instructions")

    def number(self, form: struct.Struct) -> Any:
        """A number of fixed length."""
        value = form.unpack_from(self._data, self.at)[0]
        self.at += form.size
        return value

    def take(self, length: int) -> bytes:
        """So many bytes."""
        if not 0 <= length <= len(self._data) - self.at:
            raise CutError("it ends early")
        self.at += length
        return self._data[self.at - length : self.at]

    def line(self) -> str:
        """Text up to the end of the line."""
        end = self._data.find(b"\n", self.at)
        if end < 0:
            raise CutError("it ends early")
        return self.take(end + 1 - self.at)[:-1].decode("utf-8", "replace")

    def digits(self) -> str:
        """A number as a line of text."""
        text = self.line()
        if len(text) > _LONGEST_TEXT_NUMBER:
            raise PickleError("a number of too many digits")
        return text

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        if self._marks and self._marks[-1] == len(self._stack):
            raise PickleError("it takes what it has not put there")
        return self._stack.pop()

    def top(self) -> Any:
        return self._stack[-1]

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def since_mark(self) -> list[Any]:
        start = self._marks.pop()
        found = self._stack[start:]
        del self._stack[start:]
        return found

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index: int) -> None:
        try:
            self._stack.append(self._memo[index])
        except KeyError:
            raise PickleError("it recalls what it has not kept") from None

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        self.call(function, arguments)

    def call(self, function: Any, arguments: Any) -> None:
        if not isinstance(arguments, tuple):
            raise PickleError("arguments that are no tuple")
        if not isinstance(function, Global):
            function = Global("", type(function).__name__)
        self._left -= len(arguments)
        if self._left > 0:
            self._left -= sum(len(each) for each in arguments if isinstance(each, _SIZED))
        if self._left <= 0:
            raise BudgetError("calls with too much to work on")
        self.push(self._call(function, arguments))

    def new_with_keywords(self) -> None:
        del self._stack[-1]
        self.reduce()

    def new_with_mark(self) -> None:
        kind, *arguments = self.since_mark()
        self.call(kind, tuple(arguments))

    def instance(self) -> None:
        kind = Global(self.line(), self.line())
        self.call(kind, tuple(self.since_mark()))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("a name that is no text")
        self.push(Global(legible(module), legible(name)))

    def persistent_as_text(self) -> None:
        raise PickleError("protocol 0 names storages by texts, which PyTorch does not read either")

    def persistent(self) -> None:
        self.push(self._persistent(self.pop()))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Opaque):
            target.state = state

    def set_items(self, pairs: list[Any]) -> None:
        target = self.top()
        held = target.items if isinstance(target, Opaque) else target
        if not isinstance(held, dict):
            raise PickleError("items that are put into no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=False):
            held[key if _is_plain(key) else object()] = value

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Opaque):
            for value in values:
                target.items[len(target.items)] = value
        else:
            raise PickleError("items that are put into no list")

    def new_dict(self) -> None:
        pairs = self.since_mark()
        self.push({})
        self.set_items(pairs)


def legible(text: str) -> str:
    """Return a text with the bytes that are not UTF-8 replaced (see `_old_text`)."""
    return text if text.isascii() else _bytes(text).decode("utf-8", "replace")


def bytes_of(value: Any) -> bytes | None:
    """Return a value's bytes if it is bytes or a text of Python 2, else None."""
    if isinstance(value, str):
        return _bytes(value)
    return value if isinstance(value, bytes) else None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _is_plain(key: Any) -> bool:
    return type(key) in _PLAIN_KEYS or (type(key) is int and abs(key) < 1 << 64)


_SIZED: Final = (str, bytes, list, tuple, dict)
_STOP: Final = ord(".")
_U8, _U16, _I32, _U32, _U64 = (struct.Struct(f"<{each}") for each in "BHiIQ")
_BIG_FLOAT: Final = struct.Struct(">d")


def _text(machine: _Machine, length: int) -> None:
    machine.push(machine.take(length).decode("utf-8", "replace"))


def _old_text(machine: _Machine, length: int) -> None:
    """Push a `str` of Python 2, which may be text or bytes; `bytes_of` restores the bytes."""
    machine.push(machine.take(length).decode("utf-8", "surrogateescape"))


def _decimal(machine: _Machine) -> None:
    text = machine.digits()
    machine.push({"00": False, "01": True}.get(text, int(text.rstrip("L") or "0")))


def _long(machine: _Machine, length: int) -> None:
    machine.push(int.from_bytes(machine.take(length), "little", signed=True))


def _pair(machine: _Machine) -> list[Any]:
    value, key = machine.pop(), machine.pop()
    return [key, value]


def _few(machine: _Machine, count: int) -> None:
    values = [machine.pop() for _ in range(count)]
    machine.push(tuple(reversed(values)))


_STEPS: Final[dict[int, Callable[[_Machine], object]]] = {
    0x80: lambda m: m.take(1),  # protocol
    0x95: lambda m: m.take(8),  # frame
    ord("("): lambda m: m.mark(),
    ord("0"): lambda m: m.pop(),
    ord("1"): lambda m: m.since_mark(),
    ord("2"): lambda m: m.push(m.top()),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("I"): _decimal,
    ord("L"): _decimal,
    ord("F"): lambda m: m.push(float(m.digits())),
    ord("K"): lambda m: m.push(m.number(_U8)),
    ord("M"): lambda m: m.push(m.number(_U16)),
    ord("J"): lambda m: m.push(m.number(_I32)),
    ord("G"): lambda m: m.push(m.number(_BIG_FLOAT)),
    0x8A: lambda m: _long(m, m.number(_U8)),
    0x8B: lambda m: _long(m, m.number(_I32)),
    ord("S"): lambda m: m.push(m.line().strip("'\"")),
    ord("V"): lambda m: m.push(m.line()),
    ord("X"): lambda m: _text(m, m.number(_U32)),
    0x8C: lambda m: _text(m, m.number(_U8)),
    0x8D: lambda m: _text(m, m.number(_U64)),
    ord("T"): lambda m: _old_text(m, m.number(_I32)),
    ord("U"): lambda m: _old_text(m, m.number(_U8)),
    ord("B"): lambda m: m.push(m.take(m.number(_U32))),
    ord("C"): lambda m: m.push(m.take(m.number(_U8))),
    0x8E: lambda m: m.push(m.take(m.number(_U64))),
    0x96: lambda m: m.push(m.take(m.number(_U64))),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.since_mark())),
    0x85: lambda m: _few(m, 1),
    0x86: lambda m: _few(m, 2),
    0x87: lambda m: _few(m, 3),
    ord("]"): lambda m: m.push([]),
    ord("l"): lambda m: m.push(m.since_mark()),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.since_mark()),
    ord("}"): lambda m: m.push({}),
    ord("d"): lambda m: m.new_dict(),
    ord("s"): lambda m: m.set_items(_pair(m)),
    ord("u"): lambda m: m.set_items(m.since_mark()),
    0x8F: lambda m: m.push([]),  # a set, of which only the elements count
    0x90: lambda m: m.append(m.since_mark()),
    0x91: lambda m: m.push(m.since_mark()),
    ord("p"): lambda m: m.put(int(m.digits())),
    ord("q"): lambda m: m.put(m.number(_U8)),
    ord("r"): lambda m: m.put(m.number(_U32)),
    0x94: lambda m: m.memoize(),
    ord("g"): lambda m: m.get(int(m.digits())),
    ord("h"): lambda m: m.get(m.number(_U8)),
    ord("j"): lambda m: m.get(m.number(_U32)),
    ord("c"): lambda m: m.push(Global(m.line(), m.line())),
    0x93: lambda m: m.stack_global(),
    ord("R"): lambda m: m.reduce(),
    0x81: lambda m: m.reduce(),
    0x92: lambda m: m.new_with_keywords(),
    ord("o"): lambda m: m.new_with_mark(),
    ord("i"): lambda m: m.instance(),
    ord("b"): lambda m: m.build(),
    ord("P"): lambda m: m.persistent_as_text(),
    ord("Q"): lambda m: m.persistent(),
}
