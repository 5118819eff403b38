"""The values of a model as JSON, lossless; `schema.json` beside this module is the schema.

Numbers have the fewest digits that read back to the stored bits; NaN and the infinities are
strings. Characters that are not printable are written as escapes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any, Final

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.exchange.decimals import WORDS, nested_json
from bnstat.exchange.naming import DEFAULTS, NAMINGS, PARTS_FOLDED, ExportOptions
from bnstat.exchange.values import Document, Given, refused_folded
from bnstat.formats.dtypes import as_shape, numpy_dtype
from bnstat.model import ROLES, Array, BatchNorm, Model, Variable, printable
from bnstat.storage.files import File

_SCHEMA: Final = 1
_CHUNK: Final = 1 << 16  # elements that are converted to decimal at a time


def dump(model: Model, file: IO[str], options: ExportOptions = DEFAULTS) -> None:
    """Write a model as JSON; see `ExportModule.dump`."""
    for piece in _document(model, options):  # `writelines` would collect all pieces in memory.
        file.write(piece)


def _document(model: Model, options: ExportOptions) -> Iterator[str]:
    described = _members(**asdict(model.source))
    names = f' "names": {encode(options.names)},\n' if options.names else ""
    yield f'{{"schema": {_SCHEMA},\n{names} "source": {{{described}}},\n'
    yield from _list("layers", options.track(model.layers), options)
    if model.undecided and not options.folded:
        yield ",\n"
        yield from _list("undecided", model.undecided, options)
    yield "}\n"


def _list(member: str, layers: Iterable[BatchNorm], options: ExportOptions) -> Iterator[str]:
    yield f' "{member}": ['
    for number, layer in enumerate(layers):
        yield ",\n" if number else "\n"
        yield from _folded(layer, options) if options.folded else _layer(layer, options)
    yield "]"


def encode(value: object) -> str:
    """Return a string, number, bool, None, or a sequence of such values, as JSON."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=not value.isprintable())
        return text.replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(encode, value))}]"
    text = json.dumps(value)
    return f'"{text}"' if text in WORDS.values() else text


def _members(**items: object) -> str:
    return ", ".join(f'"{key}": {encode(value)}' for key, value in items.items())


def _folded(layer: BatchNorm, options: ExportOptions) -> Iterator[str]:
    name, epsilon = options.name(layer), options.epsilon_of(layer)
    yield f"  {{{_members(name=name, channels=layer.channels, epsilon=epsilon)}"
    for part, array in zip(options.parts, layer.scale_and_shift(epsilon), strict=True):
        named = {"name": options.key(layer, part)} if options.names else {}
        yield f',\n   "{part}": '
        yield from _described(array, **named, dtype=array.dtype.name, shape=array.shape)
    yield "}"


def _layer(layer: BatchNorm, options: ExportOptions) -> Iterator[str]:
    name, momentum = options.name(layer), options.momentum(layer)
    settings = {"epsilon": layer.epsilon, "momentum": momentum, "axis": layer.axis}
    yield f"  {{{_members(name=name, channels=layer.channels, **settings, evidence=layer.evidence)}"
    for role in ROLES:
        yield f',\n   "{role}": '
        if role in layer.variables:
            array = layer.array(role) if options.values else None
            named = {"name": options.key(layer, role)} if options.names else {}
            yield from _variable(layer.variables[role], array, **named)
        else:
            yield "null"
    yield f',\n   "trainable": {encode(layer.trainable)}'
    if layer.extra:
        yield ',\n   "extra": {'
        for number, (label, variable) in enumerate(layer.extra.items()):
            yield f"{', ' if number else ''}{encode(label)}: "
            yield from _variable(variable, variable.read() if options.values else None)
        yield "}"
    if layer.undecided:
        yield ',\n   "undecided": ['
        for number, variable in enumerate(layer.undecided):
            yield ", " if number else ""
            yield from _variable(variable, variable.read() if options.values else None)
        yield "]"
    if layer.notes:
        yield f',\n   "notes": {encode(list(layer.notes))}'
    yield "}"


def _variable(variable: Variable, array: Array | None, **named: str) -> Iterator[str]:
    described = {"variable": variable.key, "dtype": variable.dtype, "shape": variable.shape}
    return _described(array, **named, **described)


def _described(array: Array | None, **members: object) -> Iterator[str]:
    yield f"{{{_members(**members)}"
    if array is not None:
        yield ', "values": '
        yield from _values(array)
    yield "}"


def _values(array: Array) -> Iterator[str]:
    if not array.ndim:
        yield nested_json(array.reshape(1))[1:-1]
        return
    if not array.size:
        yield "[]"
        return
    row_size = array.size // len(array)
    rows = max(1, _CHUNK // row_size)
    for start in range(0, len(array), rows):
        yield ", " if start else "["
        if row_size > _CHUNK:
            yield from _values(array[start])
        else:
            yield nested_json(array[start : start + rows])[1:-1]
    yield "]"


_DOCUMENT: Final = {"schema", "source", "layers", "undecided", "names"}
_LAYER: Final = {
    "name", "channels", "epsilon", "momentum", "axis", "evidence", "trainable", "extra",
    "undecided", "notes", *ROLES,
}  # fmt: skip
_VARIABLE: Final = {"name", "variable", "dtype", "shape", "values"}
_MOST_DIMS: Final = 32


class Number(str):
    """A number, kept as the document's text, because `apply` rounds the number later."""

    __slots__ = ()


def matches(file: File) -> bool:
    """Return True for a JSON object that is not the index of a model's sharded weights."""
    if not file.head(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return False
    return b'"weight_map"' not in file.head(file.size)


def read(file: File) -> Document:
    """Read the values in a file; see `ExportModule.read`."""
    return read_document(parse(file.read(), file.path), file.path)


def read_document(parsed: object, path: str) -> Document:
    """Return the values in a parsed document, which may be encoded in another format than JSON.

    Args:
        parsed: the document as dicts with strings as keys, lists, strings, None and bools, with
            each number as a `Number`.
        path: the path of the file, for messages.

    Raises:
        DamagedError: the document is not like `schema.json`, or a shape does not fit its values.
        UnsupportedError: the document has another schema version, or contains scales and shifts.
    """
    document = _object(parsed, _DOCUMENT, path, "")
    if document.get("schema", Number(_SCHEMA)) != Number(_SCHEMA):
        raise UnsupportedError(path, f"schema is not {_SCHEMA}", "export it again")
    layers: dict[str, Mapping[str, Given]] = {}
    for place, item in (
        *_items(document, "layers", path),
        *_items({"undecided": [], **document}, "undecided", path),
    ):
        if isinstance(item, dict) and not item.keys().isdisjoint(PARTS_FOLDED):
            raise refused_folded(f"{path}: {place}")
        layer = _object(item, _LAYER, path, place)
        name = layer.get("name")
        if type(name) is not str:
            raise _wrong(path, f"{place}.name", "is not text")
        if name in layers:
            raise _wrong(path, f"{place}.name", "is the name of an earlier layer too")
        given = {
            role: _given(layer[role], path, f"{place}.{role}")
            for role in ROLES
            if layer.get(role) is not None
        }
        for inner, entry in _items({"undecided": [], **layer}, "undecided", path, f"{place}."):
            key = _object(entry, _VARIABLE, path, inner).get("variable")
            if type(key) is not str:
                raise _wrong(path, f"{inner}.variable", "is not text")
            if key in given or key in ROLES:
                raise _wrong(path, f"{inner}.variable", "is the key of an earlier variable too")
            given[key] = _given(entry, path, inner)
        layers[name] = given
    names = document.get("names", "keras")
    if type(names) is not str or names not in NAMINGS:
        raise _wrong(path, "names", f"is not one of {', '.join(NAMINGS)}")
    return Document(path, layers, NAMINGS[names].spell)


def _items(
    parent: Mapping[str, Any], member: str, path: str, within: str = ""
) -> Iterator[tuple[str, object]]:
    """Yield the position (`layers[0]`) and the value of each element of the list `member`."""
    place, elements = f"{within}{member}", parent.get(member)
    if not isinstance(elements, list):
        raise _wrong(path, place, "is not a list")
    for number, element in enumerate(elements):
        yield f"{place}[{number}]", element


def parse(data: bytes, where: str) -> object:
    """Parse JSON in UTF-8; numbers become `Number`s. Raise a `DamagedError` for invalid JSON."""

    def members(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) < len(pairs):
            names = [name for name, _ in pairs]
            name = next(name for name in names if names.count(name) > 1)
            raise DamagedError(where, f"has {printable(name[:80])!r} twice in one object")
        return result

    def constant(word: str) -> object:
        raise DamagedError(where, f"contains {word} without quotes", f'write "{word}"')

    try:
        parsed: object = json.loads(
            data.decode("utf-8-sig"),
            parse_float=Number,
            parse_int=Number,
            parse_constant=constant,
            object_pairs_hook=members,
        )
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if b"\n" in data.strip() else ""
        problem = f"is not JSON: {error.msg} in {line}column {error.colno}"
        raise DamagedError(where, problem) from error
    except UnicodeDecodeError as error:
        raise DamagedError(where, f"is not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise DamagedError(where, "is nested too deeply") from error
    return parsed


def _given(item: object, path: str, place: str) -> Given:
    variable = _object(item, _VARIABLE, path, place)
    if "values" not in variable:
        raise _wrong(path, f"{place}.values", "is missing", "export without --no-values")
    dtype, values = variable.get("dtype"), variable["values"]
    if dtype is not None and type(dtype) is not str:
        raise _wrong(path, f"{place}.dtype", "is not text")
    if dtype is not None:
        numpy_dtype(dtype, f"{path}: {place}.dtype")
    if "shape" in variable:
        sizes = variable["shape"]
        are_sizes = isinstance(sizes, list) and all(
            type(size) is Number and size.isdecimal() and len(size) < 20 for size in sizes
        )
        as_stored = as_shape([int(size) for size in sizes]) if are_sizes else None
        if as_stored is None:
            raise _wrong(path, f"{place}.shape", "is not a list of sizes that an array can have")
        shape = as_stored
    else:
        shape, inner = (), values
        while isinstance(inner, list):
            shape, inner = (*shape, len(inner)), inner[0] if inner else None
        if len(shape) > _MOST_DIMS:
            raise _wrong(path, f"{place}.values", "has too many dimensions")
    if 0 in shape and values != []:
        raise _wrong(path, f"{place}.values", f"is not [], but the shape {list(shape)} is empty")
    # The values prove the shape before memory is reserved for it.
    flat = [] if 0 in shape else list(_flat(values, shape, path, f"{place}.values"))
    array = np.empty(len(flat), object)
    array[:] = flat
    return Given(array.reshape(shape), dtype)


def _flat(values: object, shape: tuple[int, ...], path: str, place: str) -> Iterator[str]:
    if not shape:
        if not isinstance(values, str) or not (type(values) is Number or values in WORDS.values()):
            raise _wrong(path, place, "is not a number")
        yield str(values)
    elif not isinstance(values, list) or len(values) != shape[0]:
        count = len(values) if isinstance(values, list) else "no"
        raise _wrong(path, place, f"has {count} elements, but the shape requires {shape[0]}")
    elif len(shape) == 1 and all(type(item) is Number for item in values):
        yield from values
    else:
        for number, item in enumerate(values):
            yield from _flat(item, shape[1:], path, f"{place}[{number}]")


def _object(item: object, known: set[str], path: str, place: str) -> dict[str, Any]:
    """Return a JSON object; raise if the item is not one, or has an unknown member."""
    if not isinstance(item, dict):
        raise _wrong(path, place or "the document", "is not an object")
    for name in item:
        if name not in known:
            member = f"{place}.{name[:80]}".removeprefix(".")
            raise _wrong(
                path, member, "is not a known member", f"known: {', '.join(sorted(known))}"
            )
    return item


def _wrong(path: str, place: str, problem: str, hint: str = "") -> DamagedError:
    return DamagedError(path, f"{place} {problem}", hint)
