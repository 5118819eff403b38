"""Names out of files, made fit to be shown."""

from __future__ import annotations


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
