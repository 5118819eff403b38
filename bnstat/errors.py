"""What can go wrong, as documented types.

Every error that bnstat raises on purpose is a `BnstatError`. Its text is one line that says
where the trouble is, what it is and, where something can be done, what to try.
"""

from __future__ import annotations

from bnstat.text import printable


class BnstatError(Exception):
    """The base of all errors raised on purpose.

    Args:
        where: the file, folder, checkpoint key or option in question.
        what: what is wrong with it; what could act on a terminal is escaped.
        hint: what to try; empty where there is nothing to try.
    """

    def __init__(self, where: str, what: str, hint: str = "") -> None:
        self.where = where
        self.what = what = printable(what)
        self.hint = hint
        super().__init__(f"{where}: {what}" + (f"; {hint}" if hint else ""))


class NotFoundError(BnstatError):
    """There is no such path, or no model, checkpoint, layer or shard of that name there."""


class UnknownFormatError(BnstatError):
    """The file was read, and is none of the formats that bnstat knows."""


class DamagedError(BnstatError):
    """The file is truncated, fails a checksum or contradicts itself."""


class UnsupportedError(BnstatError):
    """The file is sound, but uses something that the native reader does not know.

    With `reader="auto"` TensorFlow's own reader is tried next.
    """


class ChangedError(BnstatError):
    """The file was replaced while it was read, as by a training job that saves."""


class AmbiguousError(BnstatError):
    """The question has no single answer in this file, such as an epsilon that it does not hold."""


def first_line(error: BaseException) -> str:
    """What another library's error says first; the name of its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
