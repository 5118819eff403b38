"""A model opened as what it is made of, and a copy compared with what it should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import NamedTuple

from bnstat.discovery import discover
from bnstat.errors import BnstatError, ChangedError
from bnstat.formats.contents import Contents, Reading
from bnstat.formats.locate import locate
from bnstat.loading import configurer
from bnstat.mending.fitting import different
from bnstat.model import Array, BatchNorm, Model, Source
from bnstat.storage.address import refuse_url


class Opened(NamedTuple):
    """A model, and the file's contents that it was found in."""

    contents: Contents
    model: Model


class Looking(NamedTuple):
    """How layers are looked for: the options of `load` that say so."""

    patterns: Sequence[tuple[str, str]] = ()
    include_shadows: bool = False
    config: str | PathLike[str] | None = None

    def open(self, path: str, checkpoint: str | None = None, step: int | None = None) -> Opened:
        """Open the model at a path, with bnstat's own reader, and read its arrays.

        Raises:
            BnstatError: as `bnstat.load`.
        """
        refuse_url(path, "a model is mended where it lies on disk")
        found = locate(path).choose(path, checkpoint, step)
        contents = found.open(Source(path, "", found.name, found.step), Reading())
        if self.config is not None:
            contents = configurer(self.config)(contents)
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
        copied = _arrays_of(layers.pop(layer.name, None))
        for key, stored in _arrays_of(layer).items():
            if key not in copied or _differ(arrays.get(key, stored), copied[key]):
                raise _changed(original, layer.name)
    if layers:
        raise _changed(original, next(iter(layers)))


def _arrays_of(layer: BatchNorm | None) -> dict[str, Array]:
    """Return the arrays of a layer's roles and undecided variables by the keys of these."""
    if layer is None:
        return {}
    held = ((each.key, layer.array(role)) for role, each in layer.variables.items())
    roles = {key: array for key, array in held if array is not None}
    return roles | {each.key: each.read() for each in layer.undecided}


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
