"""A model as CSV (RFC 4180, but for plain line ends): one row a channel.

The columns are `layer`, `channel`, `gamma`, `beta`, `moving_mean` and `moving_variance`, or what
another form has in their place. A cell is empty where the layer lacks the role.
`channel` is the index of the channel, or, in a layer whose
variables are no vectors, the index in each dimension: `0:3:1` (see `bnstat.output.numbers`).
Numbers are the shortest that read back to the stored bits.

A spreadsheet takes a cell that begins with `=`, `+`, `-` or `@` as a formula: a layer's name that
does so gets an apostrophe before it. Characters that are not printable are written as escapes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import IO, Any, Final

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.exchange.form import NAMINGS, PARTS_FOLDED, PLAIN, Form, Naming
from bnstat.exchange.values import Document, Given, refused_folded
from bnstat.model import ROLES, Array, BatchNorm, Model, printable
from bnstat.output.numbers import labels, shortest
from bnstat.storage.files import File

_FORMULA: Final = ("=", "+", "-", "@")
_LONGEST_NAME: Final = 32767
"""The longest text that a spreadsheet's cell holds. Names are repeated on every row."""


def dump(
    model: Model,
    file: IO[str],
    form: Form = PLAIN,
    *,
    track: Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]] = iter,
) -> None:
    """Write a model as CSV.

    Args:
        model: what to write.
        file: open for writing text, with `newline=""`.
        form: what is written, and under which names.
        track: passes the layers on, such as to show progress.

    Raises:
        BnstatError: a variable cannot be read, or a layer's name is too long for a cell.
    """
    file.write(_row("layer", "channel", *form.labels))
    for layer in track(model.layers):
        before = _row(cell(form.name(layer)), "").removesuffix("\n")
        separator = f"\n{before}"
        arrays = [form.array(layer, part) for part in form.parts]
        shape = max((array.shape for array in arrays if array is not None), key=prod, default=(0,))
        for start in range(0, prod(shape), _ROWS):
            stop = min(start + _ROWS, prod(shape))
            columns = [_column(array, start, stop) for array in arrays]
            rows = map(",".join, zip(labels(shape, start, stop), *columns, strict=True))
            file.write(f"{before}{separator.join(rows)}\n")


_ROWS: Final = 1 << 12
"""How many rows are put together at a time: as many as stay in a processor's cache."""


def _row(*cells: str) -> str:
    """Return a row, with its line end, in which cells are quoted where they have to be."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def cell(name: str) -> str:
    """A name as the text of a cell that neither a spreadsheet nor a terminal acts on.

    Raises:
        UnsupportedError: it is longer than a spreadsheet's cell can be.
    """
    text = printable(name[: _LONGEST_NAME + 1])
    if len(text) > _LONGEST_NAME:
        raise UnsupportedError(
            f"{text[:40]}...", "this layer's name is too long for a cell", "export JSON instead"
        )
    return f"'{text}" if text.startswith(_FORMULA) else text


def _column(array: Array | None, start: int, stop: int) -> list[str]:
    """The cells of a role; empty ones where there is no array or it has fewer elements."""
    texts = [] if array is None else shortest(array.reshape(-1)[start:stop])
    return texts + [""] * (stop - start - len(texts))


_LARGEST: Final = 1 << 30
_MOST_CHANNELS: Final = 1 << 40
_BOM: Final = b"\xef\xbb\xbf"


def is_csv(file: File) -> bool:
    """Whether a file starts with a line that names the columns of such a CSV."""
    first = file.head(4096).removeprefix(_BOM).splitlines()
    columns = {name.strip().strip(b'"') for name in first[0].split(b",")} if first else set()
    return {b"layer", b"channel"} <= columns


def read(file: File) -> Document:
    """The values in a file of that form.

    Raises:
        DamagedError: it is no such CSV.
        UnsupportedError: it is too large.
    """
    if file.size > _LARGEST:
        raise UnsupportedError(file.path, "is too large for CSV", "use NPZ")
    try:
        text = file.read().removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        raise DamagedError(file.path, f"is not UTF-8 at byte {error.start}") from error
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    tables: dict[str, dict[str, tuple[int, list[str]]]] = {}
    try:
        names = next(rows)
        naming = naming_of(names)
        roles, layer_at, channel_at, width = header(names, naming, file.path)
        for row in rows:
            where = f"{file.path}, line {rows.line_num}"
            if len(row) != width:
                if not row:
                    continue
                raise DamagedError(where, f"has {len(row)} cells, the first line has {width}")
            table = tables.setdefault(row[layer_at], {})
            channel = row[channel_at].strip()
            if channel in table:
                raise DamagedError(where, f"channel {channel[:40]!r} is there a second time")
            table[channel] = rows.line_num, [row[at].strip() for at in roles.values()]
    except csv.Error as error:
        raise DamagedError(f"{file.path}, line {rows.line_num}", f"is not CSV: {error}") from error
    layers = {
        name: layer_of(tuple(roles), table, f"{file.path}, {printable(name[:200])}")
        for name, table in tables.items()
    }
    return Document(file.path, "CSV", layers, lambda name: cell(naming.spelt(name)))


def naming_of(names: Sequence[str]) -> Naming:
    """The framework that most of the columns are named by."""
    columns = {name.strip() for name in names}
    return max(NAMINGS.values(), key=lambda one: len(columns & {*map(one.label, ROLES)}))


def header(names: Sequence[str], naming: Naming, path: str) -> tuple[dict[str, int], int, int, int]:
    """Role -> column, then the columns of layer and channel, and the number of columns."""
    columns = [name.strip() for name in names]
    words = {naming.label(role): role for role in ROLES}
    if {*PARTS_FOLDED} <= {*columns}:
        raise refused_folded(path)
    columns = [words.get(name, name) for name in columns]
    for name in columns:
        if name not in ("layer", "channel", *ROLES):
            known = ", ".join(("layer", "channel", *ROLES))
            raise DamagedError(
                f"{path}, line 1", f"column {name[:40]!r} is not known", f"there may be {known}"
            )
        if columns.count(name) > 1:
            raise DamagedError(f"{path}, line 1", f"column {name!r} is there twice")
    roles = {name: at for at, name in enumerate(columns) if name in ROLES}
    return roles, columns.index("layer"), columns.index("channel"), len(columns)


def layer_of(
    roles: Sequence[str], table: Mapping[str, tuple[int, Sequence[Any]]], where: str
) -> Mapping[str, Given]:
    """Return the values of a layer from its rows: channel -> number of the row and its cells.

    A cell is a text or a number; an empty text or None where there is none.
    """
    shape = _shape(table, where)
    ordered = [table[channel] for channel in labels(shape, 0, prod(shape))]
    layer = {}
    for place, role in enumerate(roles):
        cells = [row[place] for _, row in ordered]
        # A role with fewer elements than the others leaves the last cells empty.
        filled = [cell for cell in cells if cell not in ("", None)]
        if not filled:
            continue
        if cells[: len(filled)] != filled or (len(filled) < len(cells) and len(shape) > 1):
            line = next(row[0] for row in ordered if row[1][place] in ("", None))
            raise DamagedError(where, f"{role} is empty in line {line}, but not in all lines")
        array = np.empty(len(filled), object if isinstance(filled[0], str) else np.float64)
        array[:] = filled
        layer[role] = Given(array.reshape(shape if len(shape) > 1 else -1), any_rank=True)
    return layer


def _shape(table: Mapping[str, object], where: str) -> tuple[int, ...]:
    """The shape of which a layer has all channels."""
    indices = []
    for channel in table:
        parts = channel.split(":")
        if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
            raise DamagedError(where, f"{channel[:40]!r} is not a channel")
        indices.append(tuple(map(int, parts)))
    ranks = {len(index) for index in indices}
    if len(ranks) > 1:
        raise DamagedError(where, "its channels are of different dimensions")
    shape = tuple(max(sizes) + 1 for sizes in zip(*indices, strict=True))
    if prod(shape) > _MOST_CHANNELS:
        raise DamagedError(where, f"claims {prod(shape)} channels")
    for label in labels(shape, 0, min(prod(shape), len(table) + 1)):
        if label not in table:
            raise DamagedError(where, f"channel {label} is missing")
    return shape
