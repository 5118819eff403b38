"""A model as JSON, losslessly; `schema.json` beside this module describes it.

Numbers are the shortest that read back to the stored bits; NaN and the infinities are strings.
`values` is nested as `shape` says, but for tensors without elements, which are `[]`. Characters
that are not printable are written as escapes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Final

import numpy as np

from bnstat.model import ROLES, Array, BatchNorm, Model, Variable
from bnstat.output.documents.exports.form import PLAIN, Form
from bnstat.output.numbers import WORDS, chunks, shortest

SCHEMA: Final = 1
"""The version of the form."""

_WORDS = {word: text if text in ("true", "false") else f'"{text}"' for word, text in WORDS.items()}


def dump(
    model: Model,
    file: IO[str],
    values: bool = True,
    form: Form = PLAIN,
    *,
    track: Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]] = iter,
) -> None:
    """Write a model as JSON.

    Args:
        model: what to write.
        file: open for writing text in any encoding that has all of Unicode.
        values: whether to write the values, or names, shapes and dtypes alone.
        form: what is written, and what other frameworks call it.
        track: passes the layers on, such as to show progress.

    Raises:
        BnstatError: a variable cannot be read.
    """
    names = f' "names": {encode(form.names)},\n' if form.names else ""
    source = _object(_source(model))
    file.write(f'{{"schema": {SCHEMA},\n{names} "source": {source},\n "layers": [')
    separator = "\n"
    for layer in track(model.layers):
        file.write(separator)
        for piece in _folded(layer, form) if form.folded else _layer(layer, values, form):
            file.write(piece)
        separator = ",\n"
    file.write("]")
    separator = ',\n "undecided": [\n'
    undecided = () if form.folded else model.undecided
    for layer in undecided:
        file.write(separator)
        for piece in _layer(layer, values, form):
            file.write(piece)
        separator = ",\n"
    file.write("]}\n" if undecided else "}\n")


def encode(value: object) -> str:
    """A string, number, bool, None or a sequence of them as JSON."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=not value.isprintable())
        return text.replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(encode, value))}]"
    text = json.dumps(value)
    return f'"{text}"' if text in ("NaN", "Infinity", "-Infinity") else text


def _source(model: Model) -> dict[str, object]:
    source = model.source
    return {
        "path": source.path,
        "format": source.format,
        "checkpoint": source.checkpoint,
        "step": source.step,
        "writer": source.writer,
    }


def _object(items: Mapping[str, object]) -> str:
    return f"{{{_members(items)}}}"


def _members(items: Mapping[str, object]) -> str:
    return ", ".join(f"{encode(key)}: {encode(value)}" for key, value in items.items())


def _folded(layer: BatchNorm, form: Form) -> Iterator[str]:
    """Scale and shift, which no variable of the file holds."""
    known = {
        "name": form.name(layer),
        "channels": layer.channels,
        "epsilon": form.epsilon_of(layer),
    }
    yield f"  {{{_members(known)}"
    for part in form.parts:
        array = form.array(layer, part)
        if array is not None:
            key = encode(form.key(layer, part)) if form.names else None
            yield f',\n   "{part}": {{'
            yield f'"name": {key}, ' if key else ""
            yield _members({"dtype": array.dtype.name, "shape": array.shape})
            yield ', "values": '
            yield from _values(array)
            yield "}"
    yield "}"


def _layer(layer: BatchNorm, values: bool, form: Form) -> Iterator[str]:
    known = {
        "name": form.name(layer),
        "channels": layer.channels,
        "epsilon": layer.epsilon,
        "momentum": form.momentum(layer),
        "axis": layer.axis,
        "evidence": layer.evidence,
    }
    yield f"  {{{_members(known)}"
    for role in ROLES:
        yield f',\n   "{role}": '
        array = layer.array(role) if values else None
        name = form.key(layer, role) if form.names else None
        variable = layer.variables.get(role)
        yield from ["null"] if variable is None else _variable(variable, array, name)
    yield f',\n   "trainable": {encode(layer.trainable)}'
    if layer.extra:
        yield ',\n   "extra": {'
        for number, (label, variable) in enumerate(layer.extra.items()):
            yield f"{', ' if number else ''}{encode(label)}: "
            yield from _variable(variable, variable.read() if values else None)
        yield "}"
    if layer.undecided:
        yield ',\n   "undecided": ['
        for number, variable in enumerate(layer.undecided):
            yield ", " if number else ""
            yield from _variable(variable, variable.read() if values else None)
        yield "]"
    if layer.notes:
        yield f',\n   "notes": {encode(list(layer.notes))}'
    yield "}"


def _variable(variable: Variable, array: Array | None, name: str | None = None) -> Iterator[str]:
    known = {"variable": variable.key, "dtype": variable.dtype, "shape": variable.shape}
    named = {} if name is None else {"name": name}
    yield f"{{{_members({**named, **known})}"
    if array is not None:
        yield ', "values": '
        yield from _values(array)
    yield "}"


def _values(array: Array) -> Iterator[str]:
    """The elements, nested as the shape says, a chunk at a time."""
    if not array.size or not array.ndim:
        yield "[]" if array.ndim else shortest(array.reshape(-1), _WORDS)[0]
        return
    start = 0
    for chunk in chunks(array):
        texts = _nested(shortest(chunk, _WORDS), start, array.shape)
        yield f"{', ' if start else '['}{', '.join(texts)}"
        start += chunk.size
    yield "]"


def _nested(texts: list[str], start: int, shape: tuple[int, ...]) -> list[str]:
    """The elements from position `start` on, with the brackets of all lists but the outermost.

    A list begins before each element whose position is a multiple of the list's number of
    elements, and ends after each element that is followed by such a position.
    """
    sizes = [math.prod(shape[axis:]) for axis in range(1, len(shape))]
    if not sizes:
        return texts
    positions = np.arange(start, start + len(texts))[:, np.newaxis]
    begin = (positions % sizes == 0).sum(axis=1).tolist()
    end = ((positions + 1) % sizes == 0).sum(axis=1).tolist()
    return [
        "[" * before + text + "]" * after
        for before, text, after in zip(begin, texts, end, strict=True)
    ]
