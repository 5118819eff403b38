"""Values in the CSV of `bnstat export`, as it came or edited by hand.

The columns are `layer`, `channel` and any of the roles, in any order, in
Keras's words or those of another framework; so are the rows. A layer
has all of its channels or is not there, and a role has values for all of them or for none. The
numbers are read as those of the stored type, which a CSV does not tell.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.mending.values.given import Document, Given, refused_folded
from bnstat.model import ROLES, printable
from bnstat.output.channels import labels
from bnstat.output.documents.csv import cell
from bnstat.output.documents.exports.form import NAMINGS, PARTS_FOLDED, Naming
from bnstat.storage.files import File

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
    ordered = [table[channel] for channel in labels(shape, 0, math.prod(shape))]
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
    if math.prod(shape) > _MOST_CHANNELS:
        raise DamagedError(where, f"claims {math.prod(shape)} channels")
    for label in labels(shape, 0, min(math.prod(shape), len(table) + 1)):
        if label not in table:
            raise DamagedError(where, f"channel {label} is missing")
    return shape
