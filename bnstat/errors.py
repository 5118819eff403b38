"""The errors that bnstat raises.

Every error is a `BnstatError`. Its message is one line: the location, the problem, and a hint.
"""

from __future__ import annotations

import sys

LONGEST_WHERE = 1000
"""The largest number of characters of a location in a message; hostile files have long names."""


class BnstatError(Exception):
    """The base class of bnstat's errors.

    Args:
        where: the file, folder, checkpoint key or option. In the message, `where` is escaped and
            shortened to 1000 characters.
        what: the problem. Characters that could act on a terminal are escaped.
        hint: what to try; may be empty.
    """

    def __init__(self, where: str, what: str, hint: str = "") -> None:
        self.where = where
        self.what = what = printable(what)
        self.hint = hint
        place = printable(str(where), LONGEST_WHERE)
        super().__init__(f"{place}: {what}" + (f"; {hint}" if hint else ""))


class NotFoundError(BnstatError):
    """A path, model, checkpoint, layer or shard does not exist."""


class UnknownFormatError(BnstatError):
    """The file can be read, but is not in a format that bnstat knows."""


class DamagedError(BnstatError):
    """The file is truncated, inconsistent, or fails a checksum."""


class UnsupportedError(BnstatError):
    """The file is valid, but uses a feature that the native reader does not support.

    With `reader="auto"`, TensorFlow's own reader is tried next.
    """


class ChangedError(BnstatError):
    """The file was replaced while it was read, for example by a training job."""


class AmbiguousError(BnstatError):
    """The file does not contain a required fact, such as epsilon."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the exception's type if there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def printable(text: str, longest: int = sys.maxsize) -> str:
    r"""Return a string without characters that could control a terminal or mislead a reader.

    Control characters, line breaks, bidirectional overrides and lone surrogates become escapes such
    as `\x1b`. Printable text of any language is unchanged. A string with more than `longest`
    characters is shortened in the middle.
    """
    if len(text) > longest:
        text = f"{text[: longest // 2]}...{text[-longest // 2 :]}"
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
