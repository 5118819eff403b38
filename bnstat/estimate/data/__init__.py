"""Data for a model that is run: from a path, from code, or from a Python caller."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from bnstat.errors import NotFoundError, UnknownFormatError
from bnstat.estimate.data.batches import Batch, Data, SizedData, Source, Wanted
from bnstat.estimate.data.files import Images
from bnstat.estimate.data.memory import LABELS, Arrays, is_numpy, needed, of_object, open_numpy
from bnstat.model import Array

__all__ = ["Batch", "Data", "Images", "example_of", "open_data"]


def open_data(
    data: Any,
    inputs: Mapping[str, Wanted],
    *,
    batch_size: int,
    samples: int,
    labels: str | None = None,
    images: Images | None = None,
) -> Data:
    """Data that fits a model.

    Args:
        data: a path, `module:function`, or arrays or a dataset in memory.
        inputs: the model's inputs by name.
        batch_size: samples in a batch.
        samples: samples to take at most.
        labels: the name of the labels, where accuracy is wanted.
        images: how images become arrays.

    Raises:
        NotFoundError: there is no such path, or an input's array is missing.
        UnknownFormatError: it is no data that is known.
        BnstatError: it does not fit the model.
    """
    source = _source(data, inputs, images or Images(), labels)
    if isinstance(source, Arrays):
        chosen = needed(source.arrays, _names(inputs, labels))
        source = Arrays(source.where, {name: source.arrays[name] for name in chosen})
        opened: Data = SizedData(
            source, inputs, batch_size, samples, labels, len(next(iter(source.arrays.values()), ()))
        )
        for _ in opened:  # all of it is at hand to be looked through before the run
            pass
    else:
        opened = Data(source, inputs, batch_size, samples, labels)
        next(iter(opened))
    return opened


def _names(inputs: Mapping[str, Wanted], labels: str | None) -> list[str]:
    """The names of all arrays that are needed."""
    return [*inputs, *([] if labels is None else [labels])]


def example_of(data: Any, labels: str | None) -> Mapping[str, Array]:
    """The first arrays of data, for a model that does not say what it takes.

    Raises:
        BnstatError: they cannot be had without knowing what the model takes.
    """
    source = _source(data, {}, Images(), labels)
    raw = next(iter(source.batches(1)), {})
    names = [name for name in raw if name not in (labels, LABELS)]
    return {name or "input": raw[name] for name in names}


def _source(data: Any, inputs: Mapping[str, Wanted], images: Images, labels: str | None) -> Source:
    if not isinstance(data, (str, os.PathLike)):
        return of_object(data, inputs)
    path = os.fspath(data)
    if ":" in path and not os.path.exists(path):
        from bnstat.estimate.data.memory import of_code

        return of_code(path, inputs)
    if not os.path.exists(path):
        raise NotFoundError(path, "there is no such data")
    if is_numpy(path):
        return open_numpy(path, _names(inputs, labels))
    from bnstat.estimate.data.files import (
        Records,
        form_of,
        has_images,
        is_dataset,
        is_records,
        open_dataset,
        open_images,
        record_files,
    )

    folder = os.path.isdir(path)
    if folder and is_dataset(path):
        return open_dataset(path, inputs)
    if folder and has_images(path):
        return open_images(path, inputs, images)
    files = record_files(path) if folder else [path] if is_records(path) else []
    if files:
        return Records(path, tuple(files), inputs, labels, form_of(inputs, images))
    raise UnknownFormatError(
        path,
        "is no data that bnstat knows",
        "give an .npz, an .npy, a folder of tf.data.Dataset.save, a TFRecord of tf.Example "
        "or a folder of them, a folder of images, or module:function",
    )
