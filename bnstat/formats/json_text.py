"""JSON in model files: bounded, since it comes from anywhere."""

from __future__ import annotations

from typing import Any, Final

from bnstat.errors import DamagedError

MAX_BYTES: Final = 32 << 20
"""The longest JSON that is read; that of the largest models is a tenth of it."""


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse JSON from a model file.

    Raises:
        DamagedError: it is too long, is not JSON or is nested beyond reason.
    """
    import json

    if len(text) > MAX_BYTES:
        raise DamagedError(where, f"{len(text)} bytes of JSON are more than any model needs")
    try:
        return json.loads(text)
    except RecursionError:
        raise DamagedError(where, "its JSON is nested too deep") from None
    except ValueError as error:
        raise DamagedError(where, f"is not valid JSON: {error}") from error
