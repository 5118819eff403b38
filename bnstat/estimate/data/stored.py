"""Data in files: folders of images, TFRecords of `tf.Example`, and saved `tf.data` datasets.

Sources: tensorflow/core/lib/io/record_writer.h; tensorflow/core/example/{example,feature}.proto;
tensorflow/python/data/ops/save_op.py and load_op.py.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from bnstat.errors import AmbiguousError, DamagedError, NotFoundError, UnsupportedError, first_line
from bnstat.estimate.data.batches import Arrays, BatchSource, Input, source_of_batches
from bnstat.formats.dtypes import numpy_dtype
from bnstat.formats.tensorflow.sstable import masked_crc32c
from bnstat.model import Array
from bnstat.text import natural_key

_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp")
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")
_CHANNELS = (1, 3, 4)
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Images:
    """The options for converting images to arrays.

    Attributes:
        size: (height, width) after resizing; None for the size that the model takes.
        scale: pixel values, which are from 0 to 255, are multiplied by this factor.
    """

    size: tuple[int, int] | None = None
    scale: float = 1.0


Decoder = Callable[[bytes, str], Array]
"""Takes an image file's bytes and path (for messages); returns an array for the model."""


def open_images(path: str, inputs: Mapping[str, Input], images: Images) -> BatchSource:
    """Return a source of the images in a folder and all subfolders."""
    decode = image_decoder(inputs, images)
    if decode is None and (len(inputs) != 1 or not all(map(_takes_bytes, inputs.values()))):
        what = "is a folder of images, but the model does not take images"
        raise UnsupportedError(path, what, "pass an .npz")
    (name,) = inputs
    files = sorted(image_files(path), key=natural_key)

    def batches() -> Iterator[Arrays]:
        for file in files:
            with open(file, "rb") as stream:
                data = stream.read()
            yield {name: np.array([data], object) if decode is None else decode(data, file)[None]}

    return BatchSource(path, batches)


def image_files(path: str) -> Iterator[str]:
    """Yield the paths of the images in a folder and its subfolders."""
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(_IMAGE_ENDINGS) and not name.startswith("."):
                yield os.path.join(folder, name)


def image_decoder(inputs: Mapping[str, Input], images: Images) -> Decoder | None:
    """Return a function that decodes images for a model; None if the model does not take images.

    A model takes images if its only input is numeric and has four dimensions. The channel axis is
    the last axis if its size is 1, 3, 4 or unknown; else the second axis if its size is 1 or 3.
    """
    wanted = next(iter(inputs.values()), None)
    if len(inputs) != 1 or wanted is None or wanted.dtype == "string":
        return None
    shape = wanted.shape
    if shape is None or len(shape) != 4:
        return None
    is_first = shape[1] in (1, 3) and shape[3] not in (*_CHANNELS, None)
    channels = shape[1] if is_first else shape[3]
    height, width = images.size or (shape[2:4] if is_first else shape[1:3])
    if channels not in (*_CHANNELS, None):
        return None
    dtype: np.dtype[Any] = numpy_dtype(wanted.dtype, "input")

    def decode(data: bytes, where: str) -> Array:
        import tensorflow as tf
        from tensorflow.python.eager.context import eager_mode

        if height is None or width is None:
            raise AmbiguousError(where, "the model takes images of any size", "pass --image-size")
        count = channels or 3
        with eager_mode():
            try:
                image = tf.io.decode_image(data, channels=count, expand_animations=False)
            except tf.errors.OpError:
                what = f"is not an image of {count} channels that TensorFlow can decode"
                raise DamagedError(where, what) from None
            resized = tf.image.resize(tf.cast(image, tf.float32), (height, width))
        array: Array = resized.numpy() * np.float32(images.scale)
        if is_first:
            array = array.transpose(2, 0, 1)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            array = np.clip(np.rint(array), limits.min, limits.max).astype(dtype)
        return array

    return decode


def _takes_bytes(wanted: Input) -> bool:
    """Return True if an input takes one string per sample, such as an encoded image."""
    return wanted.dtype == "string" and wanted.shape is not None and len(wanted.shape) == 1


_HEAD_SIZE = 12  # the record's length, and the length's checksum

_CHUNK = 1 << 20


def open_records(
    path: str, files: Sequence[str], inputs: Mapping[str, Input], labels: str | None, images: Images
) -> BatchSource:
    """Return a source of the examples in TFRecord files. Inputs take the features of the same name.

    If the model's only input takes strings, and no feature has the name of the input, the input
    gets the serialized examples, for the model to parse.
    """
    from tensorflow.core.example import example_pb2

    decode = image_decoder(inputs, images)

    def sample(record: bytes, number: int, file: str) -> Arrays:
        try:
            features = example_pb2.Example.FromString(record).features.feature
        except Exception:  # protobuf's parsers differ in what they raise
            raise DamagedError(file, f"record {number} is not a valid tf.Example") from None
        arrays = {}
        for name, wanted in inputs.items():
            if name not in features and len(inputs) == 1 and _takes_bytes(wanted):
                arrays[name] = np.asarray(record, object)
            else:
                arrays[name] = _feature(features, name, wanted, decode, file)
        if labels is not None:
            arrays[labels] = _feature(features, labels, None, decode, file)
        return arrays

    def batches() -> Iterator[Arrays]:
        for file in files:
            for number, record in enumerate(_records(file)):
                arrays = sample(record, number, file)
                yield {name: array[np.newaxis] for name, array in arrays.items()}

    return BatchSource(path, batches)


def _feature(
    features: Any, name: str, wanted: Input | None, decode: Decoder | None, file: str
) -> Array:
    """Return the feature `name` in the shape of the input `wanted`, which is None for labels."""
    if name not in features:
        names = ", ".join(sorted(features)[:8])
        raise NotFoundError(file, f"has no feature {name!r}", f"its features are {names}")
    kind = features[name].WhichOneof("kind")
    values = [] if kind is None else list(getattr(features[name], kind).value)
    if kind == "bytes_list" and wanted is not None and wanted.dtype != "string":
        if len(values) == 1:
            return _decoded(values[0], name, wanted, decode, file)
        raise _misfit(file, name, "several strings", wanted)
    array = np.asarray(values, object if kind == "bytes_list" else None)
    if wanted is None or wanted.shape is None:
        return array.reshape(()) if array.size == 1 else array
    sizes = _sizes(wanted)
    if sizes.count(-1) <= 1 and 0 not in sizes:
        with suppress(ValueError):
            return array.reshape(sizes)
    raise _misfit(file, name, f"{array.size} values", wanted)


def _decoded(data: bytes, name: str, wanted: Input, decode: Decoder | None, file: str) -> Array:
    """Decode a feature's bytes: raw values in uint8 or the input's dtype, or an encoded image."""
    sizes = _sizes(wanted)
    for dtype in (np.dtype(np.uint8), numpy_dtype(wanted.dtype, name)):
        is_known = wanted.shape is not None and -1 not in sizes
        if is_known and len(data) == prod(sizes) * dtype.itemsize:
            return np.frombuffer(data, dtype).reshape(sizes)
    if decode is not None and data.startswith(_IMAGE_STARTS):
        return decode(data, f"{file}, feature {name!r}")
    raise _misfit(file, name, f"{len(data)} bytes", wanted)


def _sizes(wanted: Input) -> list[int]:
    """Return the shape of a sample, with -1 for unknown sizes."""
    return [-1 if size is None else size for size in (wanted.shape or ())[1:]]


def _misfit(path: str, name: str, has: str, wanted: Input) -> DamagedError:
    return DamagedError(
        path,
        f"the feature {name!r} has {has}, but the model takes {_sizes(wanted)} of {wanted.dtype}",
        "decode it in a Python function, and pass FILE.py:FUNCTION as the data",
    )


def record_files(path: str) -> list[str]:
    """Return the TFRecord files at a path, a folder or a single file, in natural order."""
    if not os.path.isdir(path):
        return [path] if _is_record_file(path) else []
    names = sorted(os.listdir(path), key=natural_key)
    files = [os.path.join(path, name) for name in names if not name.startswith(".")]
    return [file for file in files if os.path.isfile(file) and _is_record_file(file)]


def _is_record_file(path: str) -> bool:
    try:
        with _opened(path) as file:
            return _is_head(file.read(_HEAD_SIZE))
    except (OSError, EOFError, zlib.error):
        return False


def _records(path: str) -> Iterator[bytes]:
    """Yield the records of a TFRecord file.

    TensorFlow's reader is not used, because it ends the process if a length is wrong, and accepts a
    file that ends within the head of a record.
    """
    number = 0
    try:
        with _opened(path) as file:
            while head := file.read(_HEAD_SIZE):
                if not _is_head(head):
                    raise DamagedError(path, f"is damaged, or ends, at record {number}")
                (length,) = struct.unpack("<Q", head[:8])
                data = _read(file, length + 4)
                record, checksum = data[:length], data[length:]
                if len(checksum) < 4:
                    raise DamagedError(path, f"ends within record {number}")
                if struct.pack("<I", masked_crc32c(record)) != checksum:
                    raise DamagedError(path, f"record {number} has a wrong checksum")
                yield record
                number += 1
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DamagedError(path, f"cannot be unpacked at record {number}: {error}") from None


def _is_head(head: bytes) -> bool:
    is_whole = len(head) == _HEAD_SIZE
    return is_whole and struct.pack("<I", masked_crc32c(head[:8])) == head[8:]


def _opened(path: str) -> IO[bytes]:
    with open(path, "rb") as file:
        head = file.read(_HEAD_SIZE)
    is_packed = head.startswith(_GZIP) and not _is_head(head)
    return gzip.open(path) if is_packed else open(path, "rb")  # type: ignore[return-value]


def _read(file: IO[bytes], size: int) -> bytes:
    """Read up to `size` bytes in chunks, so that a wrong `size` does not exhaust memory."""
    parts = []
    while size > 0 and (part := file.read(min(size, _CHUNK))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def open_saved_dataset(path: str, inputs: Mapping[str, Input]) -> BatchSource:
    """Return a source of the elements of a saved `tf.data` dataset: batches or single samples."""
    import tensorflow as tf
    from tensorflow.python.eager.context import eager_mode

    def elements() -> Iterator[Any]:
        with eager_mode():
            iterator = iter(dataset)
        while True:
            with eager_mode():
                element = next(iterator, None)
            if element is None:
                return
            yield element

    try:
        with eager_mode():
            dataset = tf.data.Dataset.load(path, compression=_compression(path))
    except Exception as error:  # whatever TensorFlow raises
        raise DamagedError(path, f"TensorFlow cannot load it: {first_line(error)}") from None
    return source_of_batches(path, elements, inputs)


def _compression(path: str) -> str | None:
    """Return the compression of the newest shard of a saved dataset: `GZIP` or None."""
    shards = list(Path(path).rglob("*.snapshot"))
    if not shards:
        return None
    # The dataset does not record the compression, and shards of an older dataset may remain.
    with max(shards, key=lambda shard: shard.stat().st_mtime_ns).open("rb") as file:
        return "GZIP" if file.read(2) == _GZIP else None
