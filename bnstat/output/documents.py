"""JSON and CSV documents for other programs, as lines.

In JSON, NaN and the infinities are the strings `NaN`, `Infinity` and `-Infinity`, and characters
outside ASCII are escaped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from bnstat.model import Source


def json_document(**content: Any) -> Iterator[str]:
    """Yield a result as lines of JSON: `schema` (the version of the format), then `content`."""
    return as_json({"schema": 1, **content})


def as_json(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a JSON document: a line per member, or per dict in a list of dicts."""
    start = "{"
    for number, (key, value) in enumerate(document.items(), 1):
        end = "}" if number == len(document) else ","
        if isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
            yield f"{start}{json.dumps(key)}: ["
            for item in value[:-1]:
                yield f"  {_encode(item)},"
            yield f"  {_encode(value[-1])}]{end}"
        else:
            yield f"{start}{json.dumps(key)}: {_encode(value)}{end}"
        start = " "


def _encode(value: Any) -> str:
    return json.dumps(plain(value), allow_nan=False)


def plain(value: Any) -> Any:
    """Return a copy of JSON data with strings in place of NaN and the infinities."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def csv_document(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the header and the rows as lines of CSV. Cells must not contain line breaks."""
    import csv

    # A writer returns what the `write` of its file returns.
    writer: Any = csv.writer(SimpleNamespace(write=str), lineterminator="")
    yield writer.writerow(header)
    yield from map(writer.writerow, rows)


def members(of: object, *names: str) -> dict[str, Any]:
    """Return the attributes `names` of an object as a dict."""
    return {name: getattr(of, name) for name in names}


def source(of: Source) -> dict[str, Any]:
    """Return a model's source as JSON data."""
    return members(of, "path", "format", "checkpoint", "step", "writer")


def escaped(text: str) -> str:
    """Return a text with all markup of Markdown and HTML escaped."""
    marked = "".join(f"\\{char}" if char in "\\`*_[]|~" else char for char in text)
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
