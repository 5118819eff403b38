"""Images: JPEG, PNG, GIF and BMP, in a folder and in the folders below, and what they become.

TFRecords of `tf.Example`, as they are or packed by gzip; one file, or a folder of shards.

Sources: tensorflow/core/lib/io/record_writer.h, tensorflow/core/example/{example,feature}.proto.

Folders that `tf.data.Dataset.save` wrote.

Source: tensorflow/python/data/ops/save_op.py and load_op.py.
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

from bnstat.errors import AmbiguousError, DamagedError, NotFoundError, UnsupportedError, first_line
from bnstat.estimate.data.batches import Raw, Source, Wanted, eagerly
from bnstat.estimate.data.memory import Batches
from bnstat.formats.dtypes import numpy_dtype
from bnstat.formats.tensorflow.sstable import masked_crc32c
from bnstat.model import Array
from bnstat.text import natural_key

_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp")
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Images:
    """How images become arrays.

    Attributes:
        size: height and width that they are resized to; the model's own where it has one.
        scale: what their numbers from 0 to 255 are multiplied by.
    """

    size: tuple[int, int] | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Form:
    """How a model takes an image.

    Attributes:
        size: height and width; None where it takes any, and nobody says.
        channels: 1, 3 or 4.
        first: whether the channels are the first axis, and not the last.
        dtype: of the numbers; whole ones are rounded.
        scale: what their numbers from 0 to 255 are multiplied by.
    """

    size: tuple[int, int] | None
    channels: int
    first: bool
    dtype: np.dtype[Any]
    scale: float

    def decoded(self, data: bytes, where: str) -> Array:
        """An image `[height, width, channels]`, or as the model wants it.

        Raises:
            AmbiguousError: the size is not known.
            DamagedError: TensorFlow cannot decode it.
        """
        import tensorflow as tf

        if self.size is None:
            raise AmbiguousError(where, "the model takes images of any size", "say --image-size")
        with eagerly():
            try:
                image = tf.io.decode_image(data, channels=self.channels, expand_animations=False)
            except tf.errors.OpError:
                raise DamagedError(
                    where, f"is no image of {self.channels} channels that TensorFlow can decode"
                ) from None
            resized = tf.image.resize(tf.cast(image, tf.float32), self.size)
        array = resized.numpy() * np.float32(self.scale)
        if self.first:
            array = array.transpose(2, 0, 1)
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            array = np.clip(np.rint(array), limits.min, limits.max).astype(self.dtype)
        return np.asarray(array)


@dataclass(frozen=True)
class Pictures:
    """Image files.

    Attributes:
        where: the folder.
        files: their paths.
        name: the input that they are for.
        form: how it takes them; None where it takes the files' bytes.
    """

    where: str
    files: tuple[str, ...]
    name: str
    form: Form | None

    def batches(self, size: int) -> Iterator[Raw]:
        """The images in batches."""
        for start in range(0, len(self.files), size):
            images = [self._image(path) for path in self.files[start : start + size]]
            yield {self.name: np.stack(images)}

    def _image(self, path: str) -> Array:
        with open(path, "rb") as file:
            data = file.read()
        return np.asarray(data, object) if self.form is None else self.form.decoded(data, path)


def has_images(path: str) -> bool:
    """Whether there is an image in a folder, or below."""
    return next(_files(path), None) is not None


def is_image(data: bytes) -> bool:
    """Whether bytes begin as an image does."""
    return data.startswith(_STARTS)


def takes_bytes(wanted: Wanted) -> bool:
    """Whether an input is one text for each sample, such as an encoded image."""
    return wanted.dtype == "string" and wanted.shape is not None and len(wanted.shape) == 1


def form_of(inputs: Mapping[str, Wanted], images: Images) -> Form | None:
    """How the only input of a model takes images; None where it takes none."""
    wanted = next(iter(inputs.values()), None)
    shape = wanted.shape if wanted is not None else None
    if len(inputs) != 1 or wanted is None or shape is None or len(shape) != 4:
        return None
    if wanted.dtype == "string":
        return None
    first = shape[1] in (1, 3) and shape[3] not in (*_CHANNELS, None)
    channels = shape[1] if first else shape[3]
    height, width = images.size or (shape[2:4] if first else shape[1:3])
    if channels not in (*_CHANNELS, None):
        return None
    size = None if height is None or width is None else (height, width)
    return Form(size, channels or 3, first, numpy_dtype(wanted.dtype, "input"), images.scale)


def open_images(path: str, inputs: Mapping[str, Wanted], images: Images) -> Source:
    """The images of a folder, for the only input of a model.

    Args:
        path: the folder.
        inputs: the model's.
        images: how they become arrays.

    Raises:
        UnsupportedError: the model takes no images.
    """
    name, wanted = next(iter(inputs.items()))
    form = form_of(inputs, images)
    if form is None and not (len(inputs) == 1 and takes_bytes(wanted)):
        raise UnsupportedError(
            path, "is a folder of images, which the model does not take", "give an .npz"
        )
    files = sorted(_files(path), key=natural_key)
    return Pictures(path, tuple(files), name, form)


def _files(path: str) -> Iterator[str]:
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(_ENDINGS) and not name.startswith("."):
                yield os.path.join(folder, name)


_RECORDS_GZIP = b"\x1f\x8b"
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
    packed = head.startswith(_RECORDS_GZIP) and not _is_head(head)
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


_SPEC = "dataset_spec.pb"
_SHARD = ".snapshot"
_DATASETS_GZIP = b"\x1f\x8b"


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
        return "GZIP" if file.read(2) == _DATASETS_GZIP else None
