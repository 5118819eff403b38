"""New values: from a file or from memory, as bnstat itself writes them or as another model."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from os import PathLike, fspath

import numpy as np
from numpy.typing import ArrayLike

from bnstat.errors import BnstatError, UnknownFormatError
from bnstat.exchange import csv, json, parquet
from bnstat.exchange.named import as_exported
from bnstat.exchange.values import Document, Given
from bnstat.loading import load
from bnstat.model import Model
from bnstat.storage.local import LocalFile, kind_of

_ZIP = b"PK\x03\x04"

Values = Mapping[str, Mapping[str, ArrayLike | None]]
"""A layer's name -> role -> array; None where the role keeps what it has."""


def taken(values: Values | Model | str | PathLike[str]) -> Document | Model:
    """The values that a caller gives: in memory, or by the path of what holds them.

    Raises:
        BnstatError: there is nothing of that path, or what is there cannot be read.
    """
    if isinstance(values, Model):
        return values
    if isinstance(values, Mapping):
        layers = {
            name: {
                role: Given(np.asarray(array)) for role, array in roles.items() if array is not None
            }
            for name, roles in values.items()
        }
        return Document("values", "memory", layers)
    return read_values(fspath(values))


def read_values(path: str) -> Document | Model:
    """The values at a path: those of an export, told by its content, or of any model.

    Raises:
        BnstatError: there is nothing of that path, or what is there cannot be read.
    """
    if kind_of(path) == stat.S_IFREG:
        file = LocalFile(path)
        if file.head(len(_ZIP)) == _ZIP:
            from bnstat.exchange import npz

            if npz.is_npz(file):
                return npz.read(file)
        if file.head(len(parquet.MAGIC)) == parquet.MAGIC:
            return parquet.read(file)
        if json.is_json(file):
            return json.read(file)
        if csv.is_csv(file):
            return csv.read(file)
    try:
        model = as_exported(load(path))
    except UnknownFormatError as error:
        raise UnknownFormatError(
            path, "holds no values", "give a file that bnstat export wrote, or a model"
        ) from error
    if not model.layers:
        raise BnstatError(path, "no batch-norm layer is in it to take values from")
    return model
