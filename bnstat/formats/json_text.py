"""Parse JSON from model files, which may be hostile."""

from __future__ import annotations

from typing import Any, Final

from bnstat.errors import DamagedError

MAX_BYTES: Final = 32 << 20
"""The longest JSON that is read. The JSON of the largest models has a tenth of this."""


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse JSON from a model file.

    Raises:
        DamagedError: the text is too long, not JSON, or nested too deep.
    """
    import json

    if len(text) > MAX_BYTES:
        raise DamagedError(where, f"{len(text)} bytes of JSON are too many for a model")
    try:
        return json.loads(text)
    except RecursionError:
        raise DamagedError(where, "its JSON is nested too deep") from None
    except ValueError as error:
        raise DamagedError(where, f"is not valid JSON: {error}") from error
