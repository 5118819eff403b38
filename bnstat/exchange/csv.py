"""The values of a model as CSV (RFC 4180, but lines end in LF): one row per channel.

The columns are `layer`, `channel` and one for each role. A cell is empty if the layer lacks the
role. `channel` is an index or, if the variables have several dimensions, one index per dimension:
`0:3:1`. A layer name that begins with `=`, `+`, `-` or `@` gets an apostrophe in front, because
spreadsheets would run the cell as a formula. Characters that are not printable are escaped.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from math import prod
from typing import IO, Any, Final

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.exchange.decimals import WORDS, labels, shortest
from bnstat.exchange.naming import DEFAULTS, NAMINGS, PARTS_FOLDED, ExportOptions
from bnstat.exchange.values import Document, Given, refused_folded
from bnstat.model import ROLES, Array, BatchNorm, Model, printable, squeezed
from bnstat.storage.files import File

_FORMULA: Final = ("=", "+", "-", "@")
_LONGEST_NAME: Final = 32767  # the characters that fit into a spreadsheet cell
_ROWS: Final = 1 << 12  # rows that are formatted at a time, few enough for the processor's cache


def dump(model: Model, file: IO[str], options: ExportOptions = DEFAULTS) -> None:
    """Write a model as CSV; see `ExportModule.dump`."""
    file.write(_row("layer", "channel", *options.labels))
    for layer in options.track(model.layers):
        start_of_row = _row(cell(options.name(layer)), "").removesuffix("\n")
        separator = f"\n{start_of_row}"
        for rows in rows_of(layer, options):
            file.write(f"{start_of_row}{separator.join(map(','.join, rows))}\n")


def rows_of(
    layer: BatchNorm, options: ExportOptions, words: Mapping[str, str] = WORDS, missing: str = ""
) -> Iterator[Iterable[tuple[str, ...]]]:
    """Yield groups of a layer's rows: the channel, then its number in each part, as text.

    `words` are the texts of NaN and the infinities; `missing` is that of a number that is lacking.
    """
    arrays = [options.array(layer, part) for part in options.parts]
    shape = largest_shape(layer.name, arrays)
    for start in range(0, prod(shape), _ROWS):
        stop = min(start + _ROWS, prod(shape))
        columns = [
            [] if each is None else shortest(each.reshape(-1)[start:stop], words) for each in arrays
        ]
        yield zip_longest(labels(shape, start, stop), *columns, fillvalue=missing)


def largest_shape(name: str, arrays: Iterable[Array | None]) -> tuple[int, ...]:
    """Return the shape of a layer's largest array; `(0,)` if all arrays are None.

    Raise an `UnsupportedError` if a channel has several indices, and an array has fewer channels.
    """
    shapes = [array.shape for array in arrays if array is not None]
    largest = max(shapes, key=prod, default=(0,))
    has_indices = len(squeezed(largest)) > 1
    if has_indices and any(prod(shape) < prod(largest) for shape in shapes):
        what = "its arrays differ in shape, so that they do not fit the rows of a table"
        raise UnsupportedError(name, what, "export JSON instead")
    return largest


def cell(name: str) -> str:
    """Return a name as a cell that neither spreadsheets nor terminals interpret."""
    text = printable(name[: _LONGEST_NAME + 1])
    if len(text) > _LONGEST_NAME:
        what = "this layer's name is too long for a cell"
        raise UnsupportedError(f"{text[:40]}...", what, "export JSON instead")
    return f"'{text}" if text.startswith(_FORMULA) else text


def _row(*cells: str) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


_MOST_CHANNELS: Final = 1 << 40

_Table = dict[str, tuple[str, list[str | float | None]]]
"""Channel -> the position of its row, such as `line 2`, and the row's numbers by role."""


def matches(file: File) -> bool:
    """Return True if the first line of a file is the header of an exported table."""
    first = file.head(4096).removeprefix(b"\xef\xbb\xbf").splitlines()
    columns = {name.strip().strip(b'"') for name in first[0].split(b",")} if first else set()
    return {b"layer", b"channel"} <= columns


def read(file: File) -> Document:
    """Read the values in a file; see `ExportModule.read`."""
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedError(file.path, f"is not UTF-8 at byte {error.start}") from error
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = next(lines)
        rows = ((f"line {lines.line_num}", row) for row in lines if row)
        return read_table(file.path, columns, rows, cell)
    except csv.Error as error:
        where = f"{file.path}, line {lines.line_num}"
        raise DamagedError(where, f"is not valid CSV ({error})") from error


def read_table(
    path: str,
    columns: Sequence[str],
    rows: Iterable[tuple[str, Sequence[object]]],
    as_cell: Callable[[str], str],
) -> Document:
    """Return the values in a table with one row per channel.

    Each row is a pair: the position, such as `line 2`, and the cells. Numbers may be strings.
    `as_cell` returns the cell that `dump` writes for a layer's name.
    """
    names = [name.strip() for name in columns]
    if {*PARTS_FOLDED} <= {*names}:
        raise refused_folded(path)
    if not {"layer", "channel"} <= {*names}:
        raise DamagedError(path, "has no columns 'layer' and 'channel'")
    naming = max(NAMINGS.values(), key=lambda naming: len({*names} & {*map(naming.label, ROLES)}))
    by_label = {naming.label(role): role for role in ROLES}
    names = [by_label.get(name, name) for name in names]
    known = ("layer", "channel", *ROLES)
    head = f"{path}, line 1"
    for name in names:
        if name not in known:
            raise DamagedError(head, f"column {name[:40]!r} is not one of {', '.join(known)}")
        if names.count(name) > 1:
            raise DamagedError(head, f"has two columns {name!r}")
    layer_at, channel_at = names.index("layer"), names.index("channel")
    roles = {name: at for at, name in enumerate(names) if name in ROLES}
    tables: dict[str, _Table] = {}
    for place, row in rows:
        where = f"{path}, {place}"
        if len(row) != len(names):
            raise DamagedError(where, f"has {len(row)} cells, but there are {len(names)} columns")
        layer, channel = row[layer_at], row[channel_at]
        if not isinstance(layer, str) or not isinstance(channel, str):
            raise DamagedError(where, "its layer or channel is missing or is not text")
        table = tables.setdefault(layer, {})
        if (channel := channel.strip()) in table:
            raise DamagedError(where, f"channel {channel[:40]!r} is listed a second time")
        table[channel] = place, [_number(row[at], where) for at in roles.values()]
    layers = {
        name: _layer(tuple(roles), table, f"{path}, {printable(name[:200])}")
        for name, table in tables.items()
    }
    return Document(path, layers, lambda name: as_cell(naming.spell(name)))


def _number(value: object, where: str) -> str | float | None:
    if isinstance(value, str):
        return value.strip() or None
    if value is None or isinstance(value, float):
        return value
    raise DamagedError(where, "has a cell that is not a number")


def _layer(roles: Sequence[str], table: _Table, where: str) -> dict[str, Given]:
    shape = _shape(table, where)
    rows = [table[channel] for channel in labels(shape, 0, prod(shape))]
    layer = {}
    for column, role in enumerate(roles):
        cells = [numbers[column] for _, numbers in rows]
        # If a role has fewer elements than others, its last cells are empty.
        filled: list[Any] = [number for number in cells if number is not None]
        if not filled:
            continue
        if cells[: len(filled)] != filled or (len(filled) < len(cells) and len(shape) > 1):
            place = rows[cells.index(None)][0]
            raise DamagedError(where, f"{role} is empty in {place}, but not in all rows")
        array = np.empty(len(filled), object if isinstance(filled[0], str) else np.float64)
        array[:] = filled
        layer[role] = Given(array.reshape(shape if len(shape) > 1 else -1), any_rank=True)
    return layer


def _shape(table: Mapping[str, object], where: str) -> tuple[int, ...]:
    indices = []
    for channel in table:
        parts = channel.split(":")
        if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
            raise DamagedError(where, f"{channel[:40]!r} is not a channel")
        indices.append(tuple(map(int, parts)))
    if len({len(index) for index in indices}) > 1:
        raise DamagedError(where, "some channels have more indices than others")
    shape = tuple(max(sizes) + 1 for sizes in zip(*indices, strict=True))
    size = prod(shape)
    if size > _MOST_CHANNELS:
        raise DamagedError(where, f"its channel indices require {size} channels, too many to read")
    for label in labels(shape, 0, min(size, len(table) + 1)):
        if label not in table:
            raise DamagedError(where, f"channel {label} is missing")
    return shape
