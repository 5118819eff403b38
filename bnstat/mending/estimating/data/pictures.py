"""Images: JPEG, PNG, GIF and BMP, in a folder and in the folders below, and what they become."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnstat.errors import AmbiguousError, DamagedError, UnsupportedError
from bnstat.formats.dtypes import numpy_dtype
from bnstat.mending.estimating.data.batches import Raw, Source, Wanted
from bnstat.mending.estimating.data.eager import eagerly
from bnstat.model import Array
from bnstat.natural import natural_key

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
