"""A model as Parquet, the same table as in CSV: one row a channel, by the library `pyarrow`.

Columns `layer` and `channel` are text, the others float32, or float64 where a layer is of that.
A cell is null where the layer lacks the role.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from math import prod
from typing import Any, BinaryIO

import numpy as np

from bnstat.errors import UnsupportedError
from bnstat.model import Array, BatchNorm, Model, as_float64, printable
from bnstat.output.channels import labels
from bnstat.output.documents.exports.form import Form


def dump(
    model: Model,
    file: BinaryIO,
    form: Form,
    *,
    track: Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]] = iter,
) -> None:
    """Write a model as Parquet.

    Args:
        model: what to write.
        file: open for writing bytes.
        form: what is written, and under which names.
        track: passes the layers on, such as to show progress.

    Raises:
        BnstatError: a variable cannot be read, or `pyarrow` is not installed.
    """
    arrow, parquet = _libraries()
    wide = any(
        variable.dtype not in ("float16", "bfloat16", "float32")
        for layer in model.layers
        for variable in layer.variables.values()
    )
    dtype = np.dtype(np.float64 if wide else np.float32)
    kind = arrow.from_numpy_dtype(dtype)
    fields = [("layer", arrow.string()), ("channel", arrow.string())]
    schema = arrow.schema([*fields, *((label, kind) for label in form.labels)])
    with parquet.ParquetWriter(file, schema) as writer:
        for layer in track(model.layers):
            arrays = [form.array(layer, part) for part in form.parts]
            shape = max((each.shape for each in arrays if each is not None), key=prod, default=(0,))
            size = prod(shape)
            columns = [
                arrow.array(repeat(printable(form.name(layer)), size), arrow.string(), size=size),
                arrow.array(labels(shape, 0, size), arrow.string()),
                *(arrow.array(_column(each, size, dtype), kind) for each in arrays),
            ]
            writer.write_table(arrow.table(columns, schema))


def _libraries() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UnsupportedError("Parquet", "is written by pyarrow", "pip install pyarrow") from error
    return pyarrow, parquet


def _column(
    array: Array | None, size: int, dtype: np.dtype[np.generic]
) -> list[float | None] | Array:
    """A role's numbers; None where there is no array, or it has fewer elements."""
    if array is None:
        return [None] * size
    numbers = as_float64(array).ravel()
    if numbers.size == size:
        return numbers.astype(dtype)
    return [*numbers.tolist(), *[None] * (size - numbers.size)]
