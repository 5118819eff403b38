"""Natural sort order of names, and parsing of JSON in model files."""

from __future__ import annotations

import re
from typing import Any, Final

from bnstat.errors import DamagedError

MAX_JSON: Final = 32 << 20
"""The longest JSON that is read, in bytes; the largest models need a tenth of it."""


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse JSON from a model file.

    Raises:
        DamagedError: the JSON is too long, invalid, or nested too deep.
    """
    import json

    if len(text) > MAX_JSON:
        raise DamagedError(where, f"{len(text)} bytes of JSON are too many for a model")
    try:
        return json.loads(text)
    except RecursionError:
        raise DamagedError(where, "its JSON is nested too deep") from None
    except ValueError as error:
        raise DamagedError(where, f"is not valid JSON: {error}") from error


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Return a sort key that compares digits in a name as numbers: 2 before 10."""
    return [
        (1, int(part), "") if part.isdecimal() and part.isascii() else (0, 0, part)
        for part in re.split(r"([0-9]+)", text[:1000])
        if part
    ]
