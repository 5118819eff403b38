"""Open the data that a model runs on: a path, a function's name, or a Python object."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bnstat.errors import NotFoundError, UnknownFormatError
from bnstat.estimate.data import batches, stored
from bnstat.estimate.data.batches import LABELS, Arrays, BatchSource, Data, Input, SizedData
from bnstat.estimate.data.stored import Images


@dataclass(frozen=True)
class Settings:
    """The keyword arguments of `recalibrate` and `drift` that control how a model is run.

    Attributes:
        samples: the largest number of samples to use.
        batch_size: the number of samples in a batch.
        layers: globs of layer names; empty for all layers.
        labels: the name of the labels in the data, to compute the accuracy.
        inputs, outputs: the names of inputs and outputs, or of tensors of the graph, if they cannot
            be detected. The first output is compared with the labels.
        feeds: name of a placeholder that takes no data, such as `keep_prob` -> its value.
        imports: Python modules that define custom classes of a Keras model.
        signature: the name of a SavedModel's signature; by default `serving_default`.
        trust: run ops, build layers and import modules that are otherwise refused because they can
            access files or run code.
        images: options for converting images to arrays.
        checkpoint, step, patterns, include_shadows: as for `bnstat.load`.
    """

    samples: int = 4096
    batch_size: int = 64
    layers: Sequence[str] = ()
    labels: str | None = None
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    feeds: Mapping[str, Any] = field(default_factory=dict)
    imports: Sequence[str] = ()
    signature: str | None = None
    trust: bool = False
    images: Images = field(default_factory=Images)
    checkpoint: str | None = None
    step: int | None = None
    patterns: Sequence[tuple[str, str]] = ()
    include_shadows: bool = False


def open_data(data: Any, inputs: Mapping[str, Input], settings: Settings) -> Data:
    """Open data; check that the first batch, or all data in memory, fits the model."""
    source = _source(data, inputs, settings)
    kind = Data if source.samples is None else SizedData
    opened = kind(source, inputs, settings.batch_size, settings.samples, settings.labels)
    for _ in opened:
        if kind is Data:
            break
    return opened


def example_of(data: Any, settings: Settings) -> Arrays:
    """Return name -> array of the first batch, without labels. An unnamed array becomes `input`."""
    arrays = next(iter(_source(data, {}, settings).batches()), {})
    labels = (settings.labels, LABELS)
    return {name or "input": array for name, array in arrays.items() if name not in labels}


def _source(data: Any, inputs: Mapping[str, Input], settings: Settings) -> BatchSource:
    labels = [] if settings.labels is None else [settings.labels]
    names = [*inputs, *labels] if inputs else []
    if not isinstance(data, (str, os.PathLike)):
        return batches.source_of_object(data, inputs, names)
    path = os.fspath(data)
    if ":" in path and not os.path.exists(path):
        return batches.source_of_code(path, inputs, names)
    if not os.path.exists(path):
        raise NotFoundError(path, "does not exist")
    if os.path.splitext(path)[1].lower() in (".npz", ".npy"):
        return batches.open_numpy(path, names)
    if os.path.exists(os.path.join(path, "dataset_spec.pb")):
        return stored.open_saved_dataset(path, inputs)
    if os.path.isdir(path) and any(stored.image_files(path)):
        return stored.open_images(path, inputs, settings.images)
    if files := stored.record_files(path):
        return stored.open_records(path, files, inputs, settings.labels, settings.images)
    raise UnknownFormatError(
        path,
        "is not in a data format that bnstat reads",
        "pass an .npz, an .npy, a folder of tf.data.Dataset.save, a TFRecord of tf.Example "
        "or a folder of them, a folder of images, or module:function",
    )
