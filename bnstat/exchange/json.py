"""A model as JSON, losslessly; `schema.json` beside this module describes it.

Numbers are the shortest that read back to the stored bits; NaN and the infinities are strings.
`values` is nested as `shape` says, but for tensors without elements, which are `[]`. Characters
that are not printable are written as escapes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, Final

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.exchange.form import NAMINGS, PARTS_FOLDED, PLAIN, Form
from bnstat.exchange.values import Document, Given, refused_folded
from bnstat.formats.dtypes import numpy_dtype
from bnstat.model import ROLES, Array, BatchNorm, Model, Variable, printable
from bnstat.output.numbers import CHUNK, nested_json
from bnstat.storage.files import File

SCHEMA: Final = 1
"""The version of the form."""


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
    """Yield the elements, nested as the shape says, in pieces of about `CHUNK` elements."""
    if not array.ndim:
        yield nested_json(array.reshape(1))[1:-1]
        return
    if not array.size:
        yield "[]"
        return
    row_size = array.size // len(array)
    rows = max(1, CHUNK // row_size)
    for start in range(0, len(array), rows):
        yield ", " if start else "["
        if row_size > CHUNK:
            yield from _values(array[start])
        else:
            yield nested_json(array[start : start + rows])[1:-1]
    yield "]"


_LARGEST: Final = 1 << 30
_DOCUMENT: Final = {"schema", "source", "layers", "undecided", "names"}
_LAYER: Final = {
    "name", "channels", "epsilon", "momentum", "axis", "evidence", "trainable", "extra",
    "undecided", "notes", *ROLES,
}  # fmt: skip
_FOLDED: Final = frozenset(PARTS_FOLDED)
_ROLE: Final = {"name", "variable", "dtype", "shape", "values"}
_JSON_WORDS: Final = {"NaN", "Infinity", "-Infinity"}


class _Number(str):
    """A number as the document spells it."""

    __slots__ = ()


def is_json(file: File) -> bool:
    """Whether a file is a JSON object that is no model's index of sharded weights."""
    if not file.head(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return False
    return b'"weight_map"' not in file.head(_LARGEST)


def read(file: File) -> Document:
    """The values in a file of that form.

    Raises:
        DamagedError: it is no such JSON.
        UnsupportedError: it is of another version, or too large.
    """
    if file.size > _LARGEST:
        raise UnsupportedError(file.path, "is too large for JSON", "use NPZ")
    document = _json_object(_parsed(file), _DOCUMENT, file.path, "")
    if document.get("schema", _Number(SCHEMA)) != _Number(SCHEMA):
        raise UnsupportedError(file.path, f"schema: is not {SCHEMA}", "export it again")
    layers: dict[str, Mapping[str, Given]] = {}
    for key, item in (
        *_items(document, "layers", file.path, ""),
        *_items({"undecided": [], **document}, "undecided", file.path, ""),
    ):
        if isinstance(item, dict) and not _FOLDED.isdisjoint(item):
            raise refused_folded(f"{file.path}: {key}")
        layer = _json_object(item, _LAYER, file.path, key)
        name = layer.get("name")
        if type(name) is not str:
            raise _wrong(file.path, f"{key}.name", "is not text")
        if name in layers:
            raise _wrong(file.path, f"{key}.name", "is the name of an earlier layer too")
        layers[name] = {
            role: _json_values(layer[role], file.path, f"{key}.{role}")
            for role in ROLES
            if layer.get(role) is not None
        } | _undecided(layer, file.path, key)
    names = document.get("names", "keras")
    if type(names) is not str or names not in NAMINGS:
        raise _wrong(file.path, "names", f"is none of {', '.join(NAMINGS)}")
    return Document(file.path, "JSON", layers, NAMINGS[names].spelt)


def _items(
    document: Mapping[str, Any], member: str, path: str, key: str
) -> Iterator[tuple[str, object]]:
    """Yield the elements of a member that is a list, each with its place."""
    place = f"{key}.{member}" if key else member
    listed = document.get(member)
    if not isinstance(listed, list):
        raise _wrong(path, place, "is not a list")
    for number, item in enumerate(listed):
        yield f"{place}[{number}]", item


def _undecided(layer: Mapping[str, Any], path: str, key: str) -> dict[str, Given]:
    """Return the values of a layer's undecided variables by their keys in the model's file."""
    found: dict[str, Given] = {}
    for place, item in _items({"undecided": [], **layer}, "undecided", path, key):
        variable = _json_object(item, _ROLE, path, place).get("variable")
        if type(variable) is not str:
            raise _wrong(path, f"{place}.variable", "is not text")
        if variable in found or variable in ROLES:
            raise _wrong(path, f"{place}.variable", "is the key of an earlier variable too")
        found[variable] = _json_values(item, path, place)
    return found


def _parsed(file: File) -> object:
    def members(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DamagedError(file.path, f"has {printable(twice[:80])!r} twice in one object")
        return found

    def constant(word: str) -> object:
        raise DamagedError(file.path, f"has a bare {word}", f'write it as a text, "{word}"')

    try:
        text = file.read().decode("utf-8-sig")
        parsed: object = json.loads(
            text,
            parse_float=_Number,
            parse_int=_Number,
            parse_constant=constant,
            object_pairs_hook=members,
        )
    except json.JSONDecodeError as error:
        raise DamagedError(
            file.path, f"is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from error
    except UnicodeDecodeError as error:
        raise DamagedError(file.path, f"is not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise DamagedError(file.path, "is nested beyond reason") from error
    return parsed


def _json_values(item: object, path: str, key: str) -> Given:
    role = _json_object(item, _ROLE, path, key)
    if "values" not in role:
        raise _wrong(path, f"{key}.values", "is missing", "export without --no-values")
    dtype = role.get("dtype")
    if dtype is not None and type(dtype) is not str:
        raise _wrong(path, f"{key}.dtype", "is not text")
    if dtype is not None:
        numpy_dtype(dtype, f"{path}: {key}.dtype")
    shape = _shape(role["shape"], path, f"{key}.shape") if "shape" in role else None
    if shape is None:
        shape = tuple(_sizes(role["values"]))
    if 0 in shape:
        texts: list[str] = []
        if role["values"] != []:
            raise _wrong(path, f"{key}.values", f"is not empty, as shape {list(shape)} would be")
    else:
        texts = list(_flat(role["values"], shape, path, f"{key}.values"))
    array = np.empty(math.prod(shape), object)
    array[:] = texts
    return Given(array.reshape(shape), dtype)


def _shape(item: object, path: str, key: str) -> tuple[int, ...]:
    sizes = item if isinstance(item, list) else [item]
    if item is not sizes or not all(isinstance(s, _Number) and s.isdecimal() for s in sizes):
        raise _wrong(path, key, "is not a list of sizes")
    if len(sizes) > 32 or sum(map(len, sizes)) > 200:
        raise _wrong(path, key, "is beyond reason")
    return tuple(map(int, sizes))


def _sizes(values: object) -> Iterator[int]:
    """The shape that nested lists have, going by the first of each."""
    while isinstance(values, list):
        yield len(values)
        values = values[0] if values else None


def _flat(values: object, shape: tuple[int, ...], path: str, key: str) -> Iterator[str]:
    """The texts of nested lists of that shape, in C order."""
    if not shape:
        if not isinstance(values, str) or not (type(values) is _Number or values in _JSON_WORDS):
            raise _wrong(path, key, "is not a number")
        yield str(values)
    elif not isinstance(values, list) or len(values) != shape[0]:
        has = len(values) if isinstance(values, list) else "no"
        raise _wrong(path, key, f"has {has} elements, where its shape says {shape[0]}")
    else:
        for number, item in enumerate(values):
            yield from _flat(item, shape[1:], path, f"{key}[{number}]")


def _json_object(item: object, known: set[str], path: str, key: str) -> dict[str, Any]:
    """A JSON object that has no members but known ones."""
    if not isinstance(item, dict):
        raise _wrong(path, key or "the whole", "is not an object")
    for name in item:
        if name not in known:
            at = f"{key}.{name[:80]}" if key else name[:80]
            raise _wrong(path, at, "is not known", f"there may be {', '.join(sorted(known))}")
    return item


def _wrong(path: str, key: str, what: str, hint: str = "") -> DamagedError:
    return DamagedError(path, f"{key} {what}", hint)
