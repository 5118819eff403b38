"""Text with all variables of a model: shapes, values, and why they count as batch norm."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from bnstat.errors import BnstatError
from bnstat.exchange.decimals import labels, shortest
from bnstat.model import ROLES, Array, BatchNorm, Model, Variable
from bnstat.output.terminal.overview import Track, footnotes, header
from bnstat.output.terminal.screen import Screen, legible, sentence
from bnstat.output.terminal.table import GAP, Column, legend, rows, shorten, table, total_width

_INDENT: Final = "  "
_ROW_LENGTHS: Final = (10, 5, 2, 1)  # the possible numbers of values per row
_CHUNK: Final = 20_000
_PIPE_WIDTH: Final = 100
_LEAST_KEY: Final = 16


def variables(model: Model, screen: Screen) -> Iterator[str]:
    """Yield the lines that list the layers and their variables."""
    yield from header(model, screen)
    pairs = {layer.name: list(_variables(layer)) for layer in model.layers}
    listed = [pair for layer in model.layers for pair in pairs[layer.name]]
    columns = [
        Column("", [_INDENT + legible(role) for role, _ in listed]),
        Column("", [variable.dtype for _, variable in listed]),
        Column("", [_shape(variable) for _, variable in listed]),
    ]
    keys = [legible(variable.key) for _, variable in listed]
    if screen.width is not None:
        room = max(_LEAST_KEY, screen.width - total_width(columns) - len(GAP))
        keys = [shorten(key, room, screen.glyphs.ellipsis, head=0.7) for key in keys]
    lines = rows([*columns, Column("", keys)], screen)
    for layer in model.layers:
        yield from ("", screen.style(legible(layer.name), "bold"))
        yield from itertools.islice(lines, len(pairs[layer.name]))
    yield from _notes(model, screen)


def values(model: Model, screen: Screen, track: Track = iter) -> Iterator[str]:
    """Yield the lines with every value of every layer."""
    yield from header(model, screen)
    for layer in track(model.layers):
        yield from ("", screen.style(legible(layer.name), "bold"))
        for role, variable in _variables(layer):
            yield f"{_INDENT}{legible(role)}  {screen.style(_type(variable), 'dim')}"
            array = layer.array(role)
            yield from _values(variable.read() if array is None else array, screen)
    yield from _notes(model, screen)


def explanations(model: Model, screen: Screen) -> Iterator[str]:
    """Yield the lines that explain why each variable of the file counts as batch norm or not."""
    explanations = model.explain()
    keys = [legible(explanation.key) for explanation in explanations]
    types, reasons = [], []
    for explanation in explanations:
        try:
            types.append(_type(model.stored[explanation.key]))
        except (KeyError, BnstatError):
            types.append("")
        is_role = explanation.role and explanation.layer
        start = f"{explanation.role} of {explanation.layer}: " if is_role else ""
        reasons.append(sentence(f"{start}{explanation.reason}"))
    columns = [Column("variable", keys), Column("type", types), Column("why", reasons)]
    if not any(types):
        del columns[1]
    yield ""
    if screen.width is None or total_width(columns) <= screen.width:
        yield from table(columns, screen)
    else:
        for key, about, reason in zip(keys, types, reasons, strict=True):
            yield key
            yield _INDENT + screen.style(f"{about}{GAP}{reason}" if about else reason, "dim")


def _notes(model: Model, screen: Screen) -> Iterator[str]:
    if notes := list(footnotes(model)):
        yield ""
        yield from legend(notes, screen)


def _variables(layer: BatchNorm) -> Iterator[tuple[str, Variable]]:
    """Yield (role, variable) pairs; the role of an undecided variable is `role unknown`."""
    for role in ROLES:
        if role in layer.variables:
            yield role, layer.variables[role]
    yield from layer.extra.items()
    for variable in layer.undecided:
        yield "role unknown", variable


def _type(variable: Variable) -> str:
    return f"{variable.dtype} {_shape(variable)}"


def _shape(variable: Variable) -> str:
    return f"[{','.join(map(str, variable.shape))}]"


def _values(array: Array, screen: Screen) -> Iterator[str]:
    """Yield lines of values, each with the channel of its first value."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        texts = shortest(flat[start : start + _CHUNK], {})
        stop = start + len(texts)
        width = max(map(len, texts))
        label_width = max(map(len, labels(array.shape, start, stop)))
        room = (screen.width or _PIPE_WIDTH) - 2 * len(_INDENT) - label_width
        length = next((length for length in _ROW_LENGTHS if length * (width + len(GAP)) <= room), 1)
        for label, first in zip(
            labels(array.shape, start, stop, length), range(0, len(texts), length), strict=True
        ):
            line = GAP.join(f"{text:>{width}}" for text in texts[first : first + length])
            yield f"{2 * _INDENT}{screen.style(f'{label:>{label_width}}', 'dim')}{GAP}{line}"
