"""Natural sort order of names, counts in words, and parsing of JSON in model files."""

from __future__ import annotations

import re
from typing import Any, Final

from bnstat.errors import DamagedError

MAX_JSON: Final = 32 << 20
"""The largest JSON to parse, in bytes; the largest models need a tenth of this."""


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse JSON from a model file; too long, too deep or invalid JSON raises `DamagedError`."""
    import json

    if len(text) > MAX_JSON:
        what = f"contains {len(text)} bytes of JSON, but bnstat reads at most {MAX_JSON}"
        raise DamagedError(where, what)
    try:
        return json.loads(text)
    except RecursionError:
        raise DamagedError(where, "contains JSON that is nested too deeply") from None
    except ValueError as error:
        raise DamagedError(where, f"is not valid JSON: {error}") from error


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Return a sort key for names that compares digits as numbers: `step2` before `step10`."""
    return [
        (1, int(part), "") if part.isdecimal() and part.isascii() else (0, 0, part)
        for part in re.split(r"([0-9]+)", text[:1000])
        if part
    ]


def count(number: int, noun: str) -> str:
    """Return a number and a noun, with a plural s if needed: `1 channel`, `2 channels`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
