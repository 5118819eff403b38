"""Folders that `tf.data.Dataset.save` wrote.

Source: tensorflow/python/data/ops/save_op.py and load_op.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from bnstat.errors import DamagedError, first_line
from bnstat.mending.estimating.data.batches import Source, Wanted
from bnstat.mending.estimating.data.eager import eagerly
from bnstat.mending.estimating.data.memory import Batches

_SPEC = "dataset_spec.pb"
_SHARD = ".snapshot"
_GZIP = b"\x1f\x8b"


def is_dataset(path: str) -> bool:
    """Whether a folder was written by `tf.data.Dataset.save`."""
    return os.path.exists(os.path.join(path, _SPEC))


def open_dataset(path: str, inputs: Mapping[str, Wanted]) -> Source:
    """The elements of a saved dataset, batches or samples.

    Raises:
        DamagedError: TensorFlow cannot load it.
    """
    import tensorflow as tf

    try:
        with eagerly():
            dataset = tf.data.Dataset.load(path, compression=_compression(path))
    except Exception as error:  # whatever TensorFlow's status says
        raise DamagedError(path, f"TensorFlow cannot load it: {first_line(error)}") from None
    return Batches(path, lambda: _elements(dataset), inputs)


def _elements(dataset: Any) -> Iterator[Any]:
    with eagerly():
        elements = iter(dataset)
    while True:
        with eagerly():
            element = next(elements, None)
        if element is None:
            return
        yield element


def _compression(path: str) -> str | None:
    """How it was packed, which `load` is to be told; what was saved there before may lie beside."""
    shards = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.endswith(_SHARD)
    ]
    if not shards:
        return None
    with open(max(shards, key=lambda shard: os.stat(shard).st_mtime_ns), "rb") as file:
        return "GZIP" if file.read(2) == _GZIP else None
