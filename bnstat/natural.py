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
