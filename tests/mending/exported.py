"""Layers from memory, exported, and the arrays that come of what was exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bnstat.exchange import csv as csv_form
from bnstat.exchange import json as json_form
from bnstat.exchange import npz as npz_form
from bnstat.exchange import parquet as parquet_form
from bnstat.exchange import safetensors as safetensors_form
from bnstat.exchange.form import PLAIN, Form
from bnstat.exchange.registry import taken
from bnstat.mending.pairing import assignments, fit
from bnstat.model import ROLES, BatchNorm, Model, Source, Variable

BINARY: dict[str, Any] = {
    "npz": npz_form.dump,
    "safetensors": safetensors_form.dump,
    "parquet": parquet_form.dump,
}
KINDS = ("json", "csv", *BINARY)


def dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def layer(name: str, **roles: Any) -> BatchNorm:
    arrays = {role: np.asarray(array) for role, array in roles.items()}
    return BatchNorm(
        name,
        {
            role: Variable(
                f"{name}/{role}", role, array.dtype.name, array.shape, lambda array=array: array
            )
            for role, array in arrays.items()
        },
    )


def model(*layers: BatchNorm) -> Model:
    return Model(Source("m", "keras-h5"), layers)


def exported(of: Model, kind: str, path: Path, form: Form = PLAIN) -> Path:
    """A model written in a form of `export`, into a folder."""
    path = path / f"values.{kind}"
    if kind in BINARY:
        with path.open("wb") as file:
            BINARY[kind](of, file, form)
    elif kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as text:
            csv_form.dump(of, text, form)
    else:
        with path.open("w", encoding="utf-8", newline="") as text:
            json_form.dump(of, text, form=form)
    return path


def fitted(target: Model, values: Any) -> dict[str, Any]:
    found = values if isinstance(values, Model) else taken(values)
    return fit(assignments(target, found, ROLES, ()))[0]


def two_layers() -> Model:
    """Two layers of three channels, each with gamma and beta."""
    arrays = {"gamma": np.arange(3, dtype="f4"), "beta": np.ones(3, "f4")}
    return model(layer("bn", **arrays), layer("other", **arrays))
