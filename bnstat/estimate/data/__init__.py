"""Data for a model that is run: from a path, from code, or from a Python caller."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bnstat.errors import NotFoundError, UnknownFormatError
from bnstat.estimate.data.batches import Arrays, Batch, BatchSource, Data, Input, SizedData
from bnstat.estimate.data.files import (
    Images,
    RecordFiles,
    image_files,
    image_format_of,
    is_saved_dataset,
    open_images,
    open_saved_dataset,
    record_files,
)
from bnstat.estimate.data.memory import (
    LABELS,
    ArraySource,
    needed,
    open_numpy,
    source_of_code,
    source_of_object,
)

if TYPE_CHECKING:
    from bnstat.estimate.settings import Settings

__all__ = ["Batch", "Data", "Images", "Input", "example_of", "open_data"]


def open_data(data: Any, inputs: Mapping[str, Input], settings: Settings) -> Data:
    """Return data that fits a model.

    Args:
        data: a path, `module:function`, or arrays or a dataset in memory.
        inputs: the inputs of the model, by name.
        settings: the number of samples, the size of a batch, the labels, and how images become
            arrays.

    Raises:
        NotFoundError: there is no such path, or the array of an input is missing.
        UnknownFormatError: the data has an unknown format.
        BnstatError: the data does not fit the model.
    """
    labels = settings.labels
    source = _source(data, inputs, settings)
    if not isinstance(source, ArraySource):
        opened = Data(source, inputs, settings.batch_size, settings.samples, labels)
        next(iter(opened))
        return opened
    names = needed(source.arrays, _names(inputs, labels))
    source = ArraySource(source.where, {name: source.arrays[name] for name in names})
    available = len(next(iter(source.arrays.values()), ()))
    sized = SizedData(source, inputs, settings.batch_size, settings.samples, labels, available)
    for _ in sized:  # all arrays are in memory, so they can be checked before the run
        pass
    return sized


def _names(inputs: Mapping[str, Input], labels: str | None) -> list[str]:
    return [*inputs, *([] if labels is None else [labels])]


def example_of(data: Any, settings: Settings) -> Arrays:
    """Return the first sample of data, for a model that does not record its inputs.

    Raises:
        BnstatError: the data cannot be read without knowing the inputs.
    """
    arrays = next(iter(_source(data, {}, settings).batches(1)), {})
    names = [name for name in arrays if name not in (settings.labels, LABELS)]
    return {name or "input": arrays[name] for name in names}


def _source(data: Any, inputs: Mapping[str, Input], settings: Settings) -> BatchSource:
    if not isinstance(data, (str, os.PathLike)):
        return source_of_object(data, inputs)
    path = os.fspath(data)
    if ":" in path and not os.path.exists(path):
        return source_of_code(path, inputs)
    if not os.path.exists(path):
        raise NotFoundError(path, "there is no such data")
    if os.path.splitext(path)[1].lower() in (".npz", ".npy"):
        return open_numpy(path, _names(inputs, settings.labels))
    if os.path.isdir(path) and is_saved_dataset(path):
        return open_saved_dataset(path, inputs)
    if os.path.isdir(path) and any(image_files(path)):
        return open_images(path, inputs, settings.images)
    if files := record_files(path):
        image_format = image_format_of(inputs, settings.images)
        return RecordFiles(path, tuple(files), inputs, settings.labels, image_format)
    raise UnknownFormatError(
        path,
        "is not data that bnstat knows",
        "pass an .npz, an .npy, a folder of tf.data.Dataset.save, a TFRecord of tf.Example "
        "or a folder of them, a folder of images, or module:function",
    )
