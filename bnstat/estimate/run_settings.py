"""The settings for running a model on data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
