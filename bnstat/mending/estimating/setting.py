"""From what a caller says to a model and data that fit each other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bnstat.mending.estimating.data import Data, Images, example_of, open_data
from bnstat.model import Model

if TYPE_CHECKING:
    from bnstat.live import LiveModel
    from bnstat.mending.estimating.running.opening import Running
    from bnstat.mending.estimating.running.subject import Subject

SAMPLES = 4096
BATCH_SIZE = 64


@dataclass(frozen=True)
class Settings:
    """How a model is run over data.

    Attributes:
        samples: how many samples are taken at most.
        batch_size: how many at a time.
        layers: globs of the layers' names; all if empty.
        labels: the name of the labels in the data, where accuracy is wanted.
        inputs, outputs: names of what is fed and of the answer, where they are not obvious.
        feeds: name of a placeholder that takes no data, such as `keep_prob` -> its value.
        imports: Python modules that define a Keras model's custom classes.
        signature: the name of a SavedModel's signature; the one that is served, if None.
        trust: run ops, build layers and import modules that are refused otherwise because they
            can read and write files or run code.
        images: how a folder of images becomes arrays.
        checkpoint, step, patterns, include_shadows: as for `bnstat.load`.
    """

    samples: int = SAMPLES
    batch_size: int = BATCH_SIZE
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

    def running(self) -> Running:
        """The part that says how to run a model."""
        from bnstat.mending.estimating.running.opening import Running

        return Running(
            tuple(self.inputs),
            tuple(self.outputs),
            self.feeds,
            tuple(self.imports),
            self.signature,
            self.trust,
        )


@dataclass(frozen=True)
class Scene:
    """A model and data that fit each other.

    Attributes:
        model: the model's layers.
        subject: the same, ready to be measured.
        data: what it is fed.
        live: where the model is in memory.
    """

    model: Model
    subject: Subject
    data: Data
    live: LiveModel | None


def scene(thing: Any, data: Any, settings: Settings) -> Scene:
    """Open a model and data for it.

    Args:
        thing: a path, or a model in memory.
        data: a path, `module:function`, or arrays or a dataset in memory.
        settings: how to run it.

    Raises:
        BnstatError: one of them cannot be opened, or they do not fit.
    """
    live = None
    if isinstance(thing, (str, os.PathLike)):
        model, subject = _on_disk(os.fspath(thing), settings)
    else:
        from bnstat.live import live_model
        from bnstat.loading import narrow
        from bnstat.mending.estimating.running.opening import subject_of_live

        live = live_model(thing)
        model = live.model
        layers = narrow(model, settings.layers).layers
        subject = subject_of_live(
            thing, live, layers, lambda: example_of(data, settings.labels), settings.running()
        )
    opened = open_data(
        data,
        subject.inputs,
        batch_size=settings.batch_size,
        samples=settings.samples,
        labels=settings.labels,
        images=settings.images,
    )
    return Scene(model, subject, opened, live)


def _on_disk(path: str, settings: Settings) -> tuple[Model, Subject]:
    from bnstat.discovery import discover
    from bnstat.loading import narrow, open_contents
    from bnstat.mending.estimating.running.opening import open_subject
    from bnstat.storage.address import refuse_url

    refuse_url(path, "TensorFlow runs models that lie on disk")
    contents = open_contents(path, settings.checkpoint, settings.step)
    model = discover(contents, patterns=settings.patterns, include_shadows=settings.include_shadows)
    layers = narrow(model, settings.layers).layers
    return model, open_subject(path, contents, model, layers, settings.running())
