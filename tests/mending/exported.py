"""Layers in memory, their exports, and the arrays that are read from these."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bnstat.exchange.naming import DEFAULTS, ExportOptions
from bnstat.exchange.registry import FORMATS, values_of
from bnstat.exchange.values import Document
from bnstat.mending.pairing import fit
from bnstat.model import BatchNorm, Model, Source
from tests.output import models

KINDS = [row.name for row in FORMATS]
DOCUMENTS = [row.name for row in FORMATS if row.is_document]
"""The formats that also contain undecided variables."""


def dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def layer(name: str, **roles: Any) -> BatchNorm:
    return models.layer(name, roles)


def model(*layers: BatchNorm) -> Model:
    return Model(Source("m", "keras-h5"), layers)


def dumped(of: Model, kind: str, options: ExportOptions = DEFAULTS) -> bytes:
    """Return a model in a format of `export`."""
    (row,) = (row for row in FORMATS if row.name == kind)
    file: Any = io.BytesIO() if row.is_binary else io.StringIO(newline="")
    row.module.dump(of, file, options)
    return bytes(file.getvalue() if row.is_binary else file.getvalue().encode())


def exported(of: Model, kind: str, path: Path, options: ExportOptions = DEFAULTS) -> Path:
    """Write a model into a folder in a format of `export`."""
    path = path / f"values.{kind}"
    path.write_bytes(dumped(of, kind, options))
    return path


def fitted(target: Model, values: Any) -> dict[str, Any]:
    """Return the new array of each variable by key."""
    is_read = isinstance(values, (Document, Model))
    return fit(target, values if is_read else values_of(values))[0]
