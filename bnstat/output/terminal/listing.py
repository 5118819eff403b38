"""A model for people, in full: its variables, their values, and why they were taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from bnstat.model import ROLES, Array, BatchNorm, Explanation, Model, Variable
from bnstat.output.numbers import chunks, labels, shortest
from bnstat.output.terminal.overview import footnotes, header
from bnstat.output.terminal.screen import Screen, legible
from bnstat.output.terminal.table import GAP, Column, rows, shorten, table, total_width

_INDENT: Final = "  "
_ROW_LENGTHS: Final = (10, 5, 2, 1)
"""How many values a row may have: numbers that are easy to count in."""

_CHUNK: Final = 20_000
_PIPE_WIDTH: Final = 100
_LEAST_KEY: Final = 16


def variables(model: Model, screen: Screen) -> Iterator[str]:
    """The lines that list the layers and their variables, from the index alone."""
    yield from header(model, screen)
    listed = [(layer, *pair) for layer in model.layers for pair in _variables(layer)]
    columns = [
        Column("", [_INDENT + legible(role) for _, role, _ in listed]),
        Column("", [variable.dtype for _, _, variable in listed]),
        Column("", [_shape(variable) for _, _, variable in listed]),
    ]
    keys = _keys([variable.key for _, _, variable in listed], columns, screen)
    before = None
    for (layer, _, _), line in zip(listed, rows([*columns, keys], screen), strict=True):
        if layer is not before:
            yield from _heading(layer, screen)
            before = layer
        yield line
    yield from _notes(model)


def values(
    model: Model,
    screen: Screen,
    track: Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]] = iter,
) -> Iterator[str]:
    """The lines that show every value of every layer, each line with its first value's channel.

    Raises:
        BnstatError: a variable cannot be read.
    """
    yield from header(model, screen)
    for layer in track(model.layers):
        yield from _heading(layer, screen)
        for role, variable in _variables(layer):
            about = f"{variable.dtype} {_shape(variable)}"
            yield f"{_INDENT}{legible(role)}  {screen.style(about, 'dim')}"
            known = layer.array(role)
            yield from _wrapped(variable.read() if known is None else known, screen)
    yield from _notes(model)


def verdicts(model: Model, screen: Screen) -> Iterator[str]:
    """The lines that say why each variable of the file was, or was not, taken as batch norm."""
    found = model.explain()
    columns = [
        Column("variable", [legible(verdict.key) for verdict in found]),
        Column("why", [_reason(verdict) for verdict in found]),
    ]
    yield ""
    if screen.width is None or total_width(columns) <= screen.width:
        yield from table(columns, screen)
    else:
        for key, reason in zip(*(column.cells for column in columns), strict=True):
            yield key
            yield _INDENT + screen.style(reason, "dim")


def _reason(verdict: Explanation) -> str:
    taken = f"{verdict.role} of {verdict.layer}: " if verdict.role and verdict.layer else ""
    return legible(taken + verdict.reason)


def _heading(layer: BatchNorm, screen: Screen) -> Iterator[str]:
    yield ""
    yield screen.style(legible(layer.name), "bold")


def _notes(model: Model) -> Iterator[str]:
    for number, note in enumerate(footnotes(model)):
        if number == 0:
            yield ""
        yield note


def _variables(layer: BatchNorm) -> Iterator[tuple[str, Variable]]:
    """The variables of a layer, with the roles or else the labels that they are shown under."""
    for role in ROLES:
        if role in layer.variables:
            yield role, layer.variables[role]
    yield from layer.extra.items()
    for variable in layer.undecided:
        yield "role unknown", variable


def _shape(variable: Variable) -> str:
    return f"[{','.join(map(str, variable.shape))}]"


def _keys(keys: Sequence[str], beside: Sequence[Column], screen: Screen) -> Column:
    """The column of keys, cut to what the other columns leave of a terminal."""
    texts = [legible(key) for key in keys]
    if screen.width is not None:
        room = max(_LEAST_KEY, screen.width - total_width(beside) - len(GAP))
        texts = [shorten(text, room, screen.glyphs.ellipsis, head=0.7) for text in texts]
    return Column("variable", texts)


def _wrapped(array: Array, screen: Screen) -> Iterator[str]:
    """The values, as many a line as fit, with the channel of the first at the beginning."""
    start = 0
    for chunk in chunks(array, _CHUNK):
        texts = shortest(chunk, {})
        stop = start + chunk.size
        width = max(map(len, texts))
        label_width = max(map(len, labels(array.shape, start, stop)))
        room = (screen.width or _PIPE_WIDTH) - 2 * len(_INDENT) - label_width
        length = next((length for length in _ROW_LENGTHS if length * (width + len(GAP)) <= room), 1)
        for label, first in zip(
            labels(array.shape, start, stop, length), range(0, len(texts), length), strict=True
        ):
            line = GAP.join(f"{text:>{width}}" for text in texts[first : first + length])
            yield f"{2 * _INDENT}{screen.style(f'{label:>{label_width}}', 'dim')}{GAP}{line}"
        start = stop
