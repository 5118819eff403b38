"""A folder of images: JPEG, PNG, GIF and BMP, in it and in the folders below."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bnstat.errors import AmbiguousError, DamagedError, UnsupportedError
from bnstat.mending.estimating.data.batches import Raw, Source, Wanted
from bnstat.model import Array
from bnstat.natural import natural_key

_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp")


@dataclass(frozen=True)
class Pictures:
    """Images as arrays `[height, width, channels]` of float32.

    Attributes:
        where: the folder.
        files: their paths.
        name: the input that they are for.
        size: height and width that they are resized to.
        channels: 1 or 3.
        scale: what their numbers from 0 to 255 are multiplied by.
    """

    where: str
    files: tuple[str, ...]
    name: str
    size: tuple[int, int]
    channels: int
    scale: float

    def batches(self, size: int) -> Iterator[Raw]:
        """The images in batches."""
        for start in range(0, len(self.files), size):
            images = [self._image(path) for path in self.files[start : start + size]]
            yield {self.name: np.stack(images)}

    def _image(self, path: str) -> Array:
        import tensorflow as tf

        with open(path, "rb") as file:
            data = file.read()
        try:
            image = tf.io.decode_image(data, channels=self.channels, expand_animations=False)
        except tf.errors.OpError:
            raise DamagedError(path, "is no image that TensorFlow can decode") from None
        resized = tf.image.resize(tf.cast(image, tf.float32), self.size)
        return np.asarray(resized.numpy() * np.float32(self.scale))


def has_images(path: str) -> bool:
    """Whether there is an image in a folder, or below."""
    return next(_files(path), None) is not None


def open_images(
    path: str,
    inputs: Mapping[str, Wanted],
    size: tuple[int, int] | None,
    scale: float,
) -> Source:
    """The images of a folder, for the only input of a model.

    Args:
        path: the folder.
        inputs: the model's.
        size: height and width that they are resized to; the model's own if None.
        scale: what their numbers from 0 to 255 are multiplied by.

    Raises:
        UnsupportedError: the model takes no images.
        AmbiguousError: the size is not known.
    """
    name, wanted = next(iter(inputs.items()))
    shape = wanted.shape
    if len(inputs) != 1 or shape is None or len(shape) != 4 or shape[3] not in (1, 3, None):
        raise UnsupportedError(
            path, "is a folder of images, which the model does not take", "give an .npz"
        )
    height, width = size if size is not None else shape[1:3]
    if height is None or width is None:
        raise AmbiguousError(path, "the model takes images of any size", "say --image-size")
    files = sorted(_files(path), key=natural_key)
    return Pictures(path, tuple(files), name, (height, width), shape[3] or 3, scale)


def _files(path: str) -> Iterator[str]:
    for folder, _, names in os.walk(path):
        yield from (os.path.join(folder, name) for name in names if name.lower().endswith(_ENDINGS))
