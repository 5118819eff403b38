"""TensorFlow's own data: folders of `tf.data.Dataset.save`, and TFRecords of `tf.Example`.

Sources: tensorflow/python/data/ops/save_op.py, tensorflow/core/example/{example,feature}.proto,
tensorflow/core/lib/io/record_writer.h.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from bnstat.errors import DamagedError, NotFoundError
from bnstat.mending.estimating.data.batches import Raw, Source, Wanted
from bnstat.mending.estimating.data.memory import Batches
from bnstat.model import Array

_SPEC = "dataset_spec.pb"
_LARGEST_RECORD = 1 << 31
_LISTS = ("float_list", "int64_list", "bytes_list")


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
        dataset = tf.data.Dataset.load(path)
    except Exception as error:  # whatever TensorFlow's status says
        raise DamagedError(path, f"TensorFlow cannot load it: {_first_line(error)}") from None
    return Batches(path, lambda: dataset, inputs)


def is_records(path: str) -> bool:
    """Whether a file starts as a TFRecord does: with the length of a record and its checksum."""
    from bnstat.formats.tensorflow.tables.checksum import masked_crc32c

    with open(path, "rb") as file:
        head = file.read(12)
    if len(head) < 12:
        return False
    return struct.pack("<I", masked_crc32c(head[:8])) == head[8:]


@dataclass(frozen=True)
class Records:
    """The examples of a TFRecord.

    Attributes:
        where: the path.
        inputs: the model's: a feature is named and shaped as the input that it is for.
        labels: the name of a further feature, of one number.
    """

    where: str
    inputs: Mapping[str, Wanted]
    labels: str | None

    def batches(self, size: int) -> Iterator[Raw]:
        """The examples in batches."""
        samples: list[dict[str, Array]] = []
        for record in self._records():
            samples.append(self._sample(record))
            if len(samples) == size:
                yield {name: np.stack([each[name] for each in samples]) for name in samples[0]}
                samples = []
        if samples:
            yield {name: np.stack([each[name] for each in samples]) for name in samples[0]}

    def _records(self) -> Iterator[bytes]:
        import tensorflow as tf

        try:
            for record in tf.data.TFRecordDataset(self.where):
                yield record.numpy()
        except tf.errors.OpError as error:
            raise DamagedError(self.where, _first_line(error)) from None

    def _sample(self, record: bytes) -> dict[str, Array]:
        from tensorflow.core.example import example_pb2

        try:
            features = example_pb2.Example.FromString(record).features.feature
        except Exception:
            raise DamagedError(self.where, "a record is no tf.Example") from None
        sample = {name: self._feature(features, name, each) for name, each in self.inputs.items()}
        if self.labels is not None:
            sample[self.labels] = self._feature(features, self.labels, None)
        return sample

    def _feature(self, features: Any, name: str, wanted: Wanted | None) -> Array:
        if name not in features:
            there = ", ".join(sorted(features)[:8])
            raise NotFoundError(self.where, f"has no feature {name!r}", f"it has {there}")
        feature = features[name]
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value) if kind in _LISTS else []
        array = np.asarray(values, object if kind == "bytes_list" else None)
        if wanted is None or wanted.shape is None:
            return array.reshape(()) if array.size == 1 else array
        shape = [-1 if size is None else size for size in wanted.shape[1:]]
        known = prod(size for size in shape if size > 0)
        if shape.count(-1) > 1 or not known or array.size % known:
            raise DamagedError(
                self.where, f"the feature {name!r} has {array.size} values, the model takes {shape}"
            )
        try:
            return array.reshape(shape)
        except ValueError:
            raise DamagedError(
                self.where, f"the feature {name!r} has {array.size} values, the model takes {shape}"
            ) from None


def open_records(path: str, inputs: Mapping[str, Wanted], labels: str | None) -> Source:
    """The examples of a TFRecord, by the features of a model's signature."""
    return Records(path, inputs, labels)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
