"""Values for `apply`: from memory, from a file that `export` wrote, or from any model."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from bnstat.errors import BnstatError, UnknownFormatError, UnsupportedError
from bnstat.exchange.naming import NAMINGS, PARTS_FOLDED, Naming
from bnstat.exchange.registry import FORMATS
from bnstat.exchange.values import Document, Given, refused_folded
from bnstat.loading import load
from bnstat.model import ROLES, BatchNorm, Model, Variable
from bnstat.storage.local import LocalFile, kind_of

Values = Mapping[str, Mapping[str, ArrayLike | None]]
"""A layer's name -> role -> array; None leaves the role unchanged."""

_LARGEST: Final = 1 << 30
"""Bytes of a file of values."""


def values_of(values: Values | Model | str | PathLike[str]) -> Document | Model:
    """Return the values that a caller passes in memory or as a path.

    Raises:
        BnstatError: the path does not exist, or the file cannot be read.
    """
    if isinstance(values, Model):
        return values
    if not isinstance(values, Mapping):
        return read_values(fspath(values))
    layers = {
        name: {role: Given(np.asarray(array)) for role, array in roles.items() if array is not None}
        for name, roles in values.items()
    }
    return Document("values", layers)


def read_values(path: str) -> Document | Model:
    """Read the values at a path: a file that `export` wrote, or any model.

    Raises:
        BnstatError: the path does not exist, or the file cannot be read.
    """
    if kind_of(path) == stat.S_IFREG:
        file = LocalFile(path)
        for row in FORMATS:
            if not row.is_model and row.module.matches(file):
                if file.size > _LARGEST:
                    raise UnsupportedError(path, f"is larger than 1 GiB, too large for {row.title}")
                return row.module.read(file)
    try:
        model = as_exported(load(path))
    except UnknownFormatError as error:
        raise UnknownFormatError(
            path, "contains no values", "pass a file that bnstat export wrote, or a model"
        ) from error
    if not model.layers:
        raise BnstatError(path, "contains no batch-norm layer to take values from")
    return model


def as_exported(model: Model) -> Model:
    """Return the layers that the tensors of an exported file are named after.

    Names alone do not prove that tensors belong to batch norm, for example Flax's
    `batch_stats/x/mean` and `batch_stats/x/var` without a scale and a bias. But if every tensor has
    a name that `export` writes, and every layer has both moving statistics, the file is an export.
    Any other model is returned unchanged.

    Raises:
        UnsupportedError: the tensors are scales and shifts.
    """
    for naming in NAMINGS.values():
        layers = _layers(naming, model.stored.values())
        if not layers:
            continue
        parts = {part for variables in layers.values() for part in variables}
        if parts == {*PARTS_FOLDED} and not model.layers:
            raise refused_folded(model.source.path)
        if parts <= {*ROLES} and all(
            {"moving_mean", "moving_variance"} <= variables.keys() for variables in layers.values()
        ):
            norms = [BatchNorm(name, variables) for name, variables in layers.items()]
            return Model(model.source, norms, stored=model.stored)
    return model


def _layers(naming: Naming, tensors: Iterable[Variable]) -> dict[str, dict[str, Variable]]:
    """Return layer name -> part -> tensor, or nothing if a tensor has another name."""
    layers: dict[str, dict[str, Variable]] = {}
    for tensor in tensors:
        parsed = naming.parse(tensor.key)
        if parsed is None:
            return {}
        name, part = parsed
        layers.setdefault(name, {})[part] = tensor
    return layers
