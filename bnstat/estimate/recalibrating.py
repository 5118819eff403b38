"""`bnstat.recalibrate` and `bnstat.drift`: run a model over data, and mend or judge it.

Unlike everything else here these two run the model, by TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from bnstat.errors import BnstatError, UnsupportedError
from bnstat.estimate.data import Data, Images, example_of, open_data
from bnstat.estimate.drift import Drift, measure_drift
from bnstat.estimate.passes import Track, untracked
from bnstat.estimate.recalibration import Recalibration, estimate
from bnstat.model import Model, Source

if TYPE_CHECKING:
    from bnstat.estimate.running.opening import Running
    from bnstat.estimate.running.subject import Subject
    from bnstat.live import LiveModel


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
        from bnstat.estimate.running.opening import Running

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
        from bnstat.estimate.running.opening import subject_of_live
        from bnstat.live import live_model
        from bnstat.loading import narrow

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
    from bnstat.estimate.running.opening import open_subject
    from bnstat.loading import narrow, open_contents
    from bnstat.storage.access import refuse_url

    refuse_url(path, "TensorFlow runs models that lie on disk")
    contents = open_contents(path, settings.checkpoint, settings.step)
    model = discover(contents, patterns=settings.patterns, include_shadows=settings.include_shadows)
    layers = narrow(model, settings.layers).layers
    return model, open_subject(path, contents, model, layers, settings.running())


def recalibrate(
    model: Any,
    data: Any,
    output: str | PathLike[str] | None = None,
    *,
    exact: bool = False,
    in_place: bool = False,
    force: bool = False,
    track: Track = untracked,
    **settings: Any,
) -> Recalibration:
    """Estimate the moving statistics of a model from data, and mend it with them.

    This runs the model, in inference. A model in memory is mended in place; of one on disk a
    copy is written as by `bnstat.apply`, or, without `output` and `in_place`, nothing.

    Args:
        model: a path as for `load`, or a model of Keras, tf-keras, a `tf.Module`, or a
            `tf.compat.v1.Session`.
        data: a path (`.npz`, `.npy`, a folder of `tf.data.Dataset.save`, a TFRecord of
            `tf.Example`, a folder of images), `module:function`, or arrays by input name, a pair
            `(x, y)`, a dataset or any iterable of batches, or a function that gives one.
        output: what the copy is called.
        exact: estimate in waves from the input to the output, each layer with those before it
            mended, so that nothing remains; instead of in one pass by each batch's statistics.
        in_place: put the copy in the place of the original.
        force: change the model even if it was trained with the statistics that it stores, or
            if the new ones lower its accuracy.
        track: passes batches on and shows how far it is.
        **settings: as `Settings` has them: `samples`, `batch_size`, `layers`, `labels`,
            `signature`, `inputs`, `outputs`, `feeds`, `imports`, `trust`, `images`,
            `checkpoint`, `step`, `patterns`, `include_shadows`.

    Raises:
        NotFoundError: there is no such model or data, or the data lacks an input.
        UnsupportedError: the model cannot be run, or would have to be trusted; or no layer of
            it can be mended.
        BnstatError: the data does not fit the model, the copy cannot be written, or the old
            statistics are to be kept (see `force`).
    """
    chosen = Settings(**settings)
    opened = scene(model, data, chosen)
    if opened.live is None and (output is not None or in_place):
        _refuse_impossible(opened.model.source, output, in_place)
    result = estimate(opened, exact=exact, track=track)
    _refuse_nothing(opened, result, "recalibrated")
    if result.objection and not force and (opened.live is not None or output or in_place):
        raise BnstatError(
            opened.model.source.path,
            result.objection,
            "keep the model as it is; --force (in Python force=True) recalibrates it nevertheless",
        )
    if opened.live is not None:
        _assign(opened, result)
    elif output is not None or in_place:
        _write(model, opened, result, output, in_place, chosen)
    return result


def drift(model: Any, data: Any, *, track: Track = untracked, **settings: Any) -> Drift:
    """Measure how far a model's stored statistics are from those of data.

    This runs the model, once, in inference, as it stands. If there are labels, or a layer holds
    the initial mean 0 and variance 1, it runs up to 512 samples once more, normalized with their
    own statistics, to find out with which statistics the model was trained.

    Args:
        model: as for `recalibrate`.
        data: as for `recalibrate`.
        track: as for `recalibrate`.
        **settings: as for `recalibrate`.

    Raises:
        As `recalibrate`.
    """
    opened = scene(model, data, Settings(**settings))
    result = measure_drift(opened, track=track)
    _refuse_nothing(opened, result, "measured")
    return result


def _refuse_nothing(opened: Scene, result: Drift | Recalibration, what: str) -> None:
    if not result.layers:
        name, why = next(iter(result.left.items()))
        raise UnsupportedError(
            opened.model.source.path, f"no layer of it can be {what}: {name}: {why}"
        )


def _refuse_impossible(source: Source, output: str | PathLike[str] | None, in_place: bool) -> None:
    """Raise now what writing the copy would raise after the run."""
    from bnstat.mending.layout import planned

    if in_place == (output is not None):
        raise BnstatError("output", "give either a copy's name or in_place")
    planned(source, output)


def _assign(opened: Scene, result: Recalibration) -> None:
    """Give the variables of a model in memory their new values."""
    if opened.live is None:
        return
    for name, roles in result.values.items():
        layer = opened.model[name]
        for role, array in roles.items():
            variable = layer.variables[role]
            opened.live.variables[variable.key].assign(array.reshape(variable.shape))


def _write(
    path: str | PathLike[str],
    opened: Scene,
    result: Recalibration,
    output: str | PathLike[str] | None,
    in_place: bool,
    settings: Settings,
) -> None:
    from bnstat.mending.apply import apply

    values = {
        name: {
            role: np.asarray(array).reshape(opened.model[name].variables[role].shape)
            for role, array in roles.items()
        }
        for name, roles in result.values.items()
    }
    apply(
        path,
        values,
        output,
        checkpoint=settings.checkpoint,
        step=settings.step,
        patterns=settings.patterns,
        include_shadows=settings.include_shadows,
        in_place=in_place,
    )


__all__ = ["Drift", "Recalibration", "Settings", "drift", "recalibrate"]
