"""Order names naturally, and escape text for display."""

from __future__ import annotations

import re


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Return a sort key that compares numbers in a name as numbers: 2 before 10."""
    return [
        (1, int(part), "") if part.isdecimal() and part.isascii() else (0, 0, part)
        for part in re.split(r"([0-9]+)", text[:1000])
        if part
    ]


def printable(text: str) -> str:
    r"""Escape the characters of a text that could act on a terminal, page or reader.

    Control characters, line breaks, bidirectional overrides and lone surrogates become `\\x1b`
    and the like. Printable text of any language is unchanged.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
