"""A model opened as what it is made of, and a copy compared with what it should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bnstat.discovery import discover
from bnstat.errors import BnstatError, ChangedError
from bnstat.formats.contents import Contents, Reading
from bnstat.formats.locate import locate
from bnstat.mending.fitting import different
from bnstat.model import Array, Model, Source
from bnstat.storage.address import refuse_url


class Opened(NamedTuple):
    """A model, and the file's contents that it was found in."""

    contents: Contents
    model: Model


class Looking(NamedTuple):
    """How layers are looked for: the options of `load` that say so."""

    patterns: Sequence[tuple[str, str]] = ()
    include_shadows: bool = False

    def open(self, path: str, checkpoint: str | None = None, step: int | None = None) -> Opened:
        """Open the model at a path, with bnstat's own reader, and read its arrays.

        Raises:
            BnstatError: as `bnstat.load`.
        """
        refuse_url(path, "a model is mended where it lies on disk")
        found = locate(path).choose(path, checkpoint, step)
        contents = found.open(Source(path, "", found.name, found.step), Reading())
        model = discover(contents, patterns=self.patterns, include_shadows=self.include_shadows)
        model.read()
        return Opened(contents, model)


def verify(copy: Model, original: Model, arrays: Mapping[str, Array]) -> None:
    """Make sure that a copy has new arrays where it should, and the old ones elsewhere.

    Args:
        copy: the finished copy as it is read.
        original: the model that was copied.
        arrays: key -> new array.

    Raises:
        ChangedError: a layer is another than it should be.
    """
    layers = {layer.name: layer for layer in (*copy.layers, *copy.incomplete)}
    for layer in (*original.layers, *original.incomplete):
        copied = layers.pop(layer.name, None)
        for role, variable in layer.variables.items():
            expected = arrays.get(variable.key, layer.array(role))
            array = None if copied is None else copied.array(role)
            if expected is None or array is None or _differ(expected, array):
                raise _changed(original, layer.name)
    if layers:
        raise _changed(original, next(iter(layers)))


def _differ(expected: Array, array: Array) -> bool:
    if (expected.shape, expected.dtype) != (array.shape, array.dtype):
        return True
    return bool(different(expected, array).any())


def _changed(original: Model, name: str) -> BnstatError:
    return ChangedError(
        original.source.path,
        f"the copy's {name} is not what it should be, so it was not kept",
        "did the model change meanwhile? Try again",
    )
