"""A model as CSV (RFC 4180, but for plain line ends): one row a channel.

The columns are `layer`, `channel`, `gamma`, `beta`, `moving_mean` and `moving_variance`, or what
another form has in their place. A cell is empty where the layer lacks the role.
`channel` is the index of the channel, or, in a layer whose
variables are no vectors, the index in each dimension: `0:3:1` (see `bnstat.output.channels`).
Numbers are the shortest that read back to the stored bits.

A spreadsheet takes a cell that begins with `=`, `+`, `-` or `@` as a formula: a layer's name that
does so gets an apostrophe before it. Characters that are not printable are written as escapes.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import IO, Final

from bnstat.errors import UnsupportedError
from bnstat.model import Array, BatchNorm, Model, printable
from bnstat.output.channels import labels
from bnstat.output.documents.exports.form import PLAIN, Form
from bnstat.output.numbers import CHUNK, shortest

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
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("layer", "channel", *form.labels))
    for layer in track(model.layers):
        name = cell(form.name(layer))
        arrays = [form.array(layer, part) for part in form.parts]
        shape = max((array.shape for array in arrays if array is not None), key=_size, default=(0,))
        for start in range(0, _size(shape), CHUNK):
            stop = min(start + CHUNK, _size(shape))
            columns = [_column(array, start, stop) for array in arrays]
            writer.writerows(zip(repeat(name), labels(shape, start, stop), *columns, strict=False))


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


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
