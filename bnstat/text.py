"""Natural order of names: 2 before 10."""

from __future__ import annotations

import re


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """A sort key under which the numbers in a name count as numbers."""
    return [
        (1, int(part), "") if part.isdecimal() and part.isascii() else (0, 0, part)
        for part in re.split(r"([0-9]+)", text[:1000])
        if part
    ]


def printable(text: str) -> str:
    r"""`text` with everything escaped that could act on a terminal, page or reader's eye.

    Control characters, line breaks, bidirectional overrides and lone surrogates become `\\x1b`
    and the like; printable text of any language stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
