"""TFRecords of `tf.Example`, as they are or packed by gzip; one file, or a folder of shards.

Sources: tensorflow/core/lib/io/record_writer.h, tensorflow/core/example/{example,feature}.proto.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import IO, Any

import numpy as np

from bnstat.errors import DamagedError, NotFoundError
from bnstat.formats.dtypes import numpy_dtype
from bnstat.formats.tensorflow.tables.checksum import masked_crc32c
from bnstat.mending.estimating.data.batches import Raw, Wanted
from bnstat.mending.estimating.data.pictures import Form, is_image, takes_bytes
from bnstat.model import Array
from bnstat.natural import natural_key

_GZIP = b"\x1f\x8b"
_HEAD = 12
"""Bytes before a record: its length, and the checksum of that."""

_CHUNK = 1 << 20
_LISTS = ("float_list", "int64_list", "bytes_list")


@dataclass(frozen=True)
class Records:
    """The examples of some TFRecords.

    A feature is named and shaped as the input that it is for; one that holds a number's bytes or an
    encoded image is decoded. A model whose only input is text, and of no feature's name, takes the
    examples themselves, which its own graph parses.

    Attributes:
        where: the path.
        files: the files.
        inputs: the model's.
        labels: the name of a further feature, of one number.
        form: how the model takes images, where it takes any.
    """

    where: str
    files: tuple[str, ...]
    inputs: Mapping[str, Wanted]
    labels: str | None
    form: Form | None

    def batches(self, size: int) -> Iterator[Raw]:
        """The examples in batches."""
        samples: list[dict[str, Array]] = []
        for path in self.files:
            for record in records(path):
                samples.append(self._sample(record, path))
                if len(samples) == size:
                    yield _stacked(samples)
                    samples = []
        if samples:
            yield _stacked(samples)

    def _sample(self, record: bytes, path: str) -> dict[str, Array]:
        from tensorflow.core.example import example_pb2

        sample = {}
        try:
            features = example_pb2.Example.FromString(record).features.feature
        except Exception:  # protobuf's parsers differ in what they raise
            raise DamagedError(path, "a record is no tf.Example") from None
        for name, wanted in self.inputs.items():
            if name not in features and len(self.inputs) == 1 and takes_bytes(wanted):
                sample[name] = np.asarray(record, object)
            else:
                sample[name] = self._feature(features, name, wanted, path)
        if self.labels is not None:
            sample[self.labels] = self._feature(features, self.labels, None, path)
        return sample

    def _feature(self, features: Any, name: str, wanted: Wanted | None, path: str) -> Array:
        if name not in features:
            there = ", ".join(sorted(features)[:8])
            raise NotFoundError(path, f"has no feature {name!r}", f"it has {there}")
        feature = features[name]
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value) if kind in _LISTS else []
        if kind == "bytes_list" and wanted is not None and wanted.dtype != "string":
            if len(values) == 1:
                return self._unpacked(values[0], name, wanted, path)
            raise _misfit(path, name, "texts", wanted)
        array = np.asarray(values, object if kind == "bytes_list" else None)
        if wanted is None or wanted.shape is None:
            return array.reshape(()) if array.size == 1 else array
        fitted = _reshaped(array, wanted)
        if fitted is None:
            raise _misfit(path, name, f"{array.size} values", wanted)
        return fitted

    def _unpacked(self, data: bytes, name: str, wanted: Wanted, path: str) -> Array:
        """The numbers of a feature of bytes: as they lie there, or an encoded image."""
        for dtype in (np.dtype(np.uint8), numpy_dtype(wanted.dtype, name)):
            known = None in (wanted.shape or (None, None))[1:]
            if not known and len(data) == prod(_sizes(wanted)) * dtype.itemsize:
                return np.frombuffer(data, dtype).reshape(_sizes(wanted))
        if self.form is not None and is_image(data):
            return self.form.decoded(data, f"{path}, feature {name!r}")
        raise _misfit(path, name, f"{len(data)} bytes", wanted)


def is_records(path: str) -> bool:
    """Whether a file starts as a TFRecord does: with the length of a record and its checksum."""
    try:
        with _opened(path) as file:
            head = file.read(_HEAD)
    except (OSError, EOFError, zlib.error):
        return False
    return _is_head(head)


def record_files(folder: str) -> list[str]:
    """The TFRecords in a folder, in their natural order."""
    names = sorted(os.listdir(folder), key=natural_key)
    paths = [os.path.join(folder, name) for name in names if not name.startswith(".")]
    return [path for path in paths if os.path.isfile(path) and is_records(path)]


def records(path: str) -> Iterator[bytes]:
    """The records of a TFRecord file, one after the other.

    Raises:
        DamagedError: it is cut short, or a checksum is wrong.
    """
    number = 0
    try:
        with _opened(path) as file:
            while head := file.read(_HEAD):
                if not _is_head(head):
                    raise DamagedError(path, f"is damaged, or ends, at record {number}")
                (length,) = struct.unpack("<Q", head[:8])
                data = _read(file, length + 4)
                body, crc = data[:length], data[length:]
                if len(crc) < 4:
                    raise DamagedError(path, f"ends within record {number}")
                if struct.pack("<I", masked_crc32c(body)) != crc:
                    raise DamagedError(path, f"record {number} has a wrong checksum")
                yield body
                number += 1
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DamagedError(path, f"cannot be unpacked at record {number}: {error}") from None


def _is_head(head: bytes) -> bool:
    return len(head) == _HEAD and struct.pack("<I", masked_crc32c(head[:8])) == head[8:]


def _opened(path: str) -> IO[bytes]:
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    packed = head.startswith(_GZIP) and not _is_head(head)
    return gzip.open(path) if packed else open(path, "rb")  # type: ignore[return-value]


def _read(file: IO[bytes], size: int) -> bytes:
    """So many bytes, or all that there are, whatever the size says."""
    parts = []
    while size > 0 and (part := file.read(min(size, _CHUNK))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _sizes(wanted: Wanted) -> list[int]:
    """The shape of a sample; -1 in place of unknown sizes."""
    return [-1 if size is None else size for size in (wanted.shape or ())[1:]]


def _reshaped(array: Array, wanted: Wanted) -> Array | None:
    shape = _sizes(wanted)
    if shape.count(-1) > 1 or 0 in shape:
        return None
    try:
        return array.reshape(shape)
    except ValueError:
        return None


def _misfit(path: str, name: str, has: str, wanted: Wanted) -> DamagedError:
    return DamagedError(
        path,
        f"the feature {name!r} has {has}, the model takes {_sizes(wanted)} of {wanted.dtype}",
        "decode it in a function, and give file.py:function",
    )


def _stacked(samples: list[dict[str, Array]]) -> Raw:
    return {name: np.stack([each[name] for each in samples]) for name in samples[0]}
