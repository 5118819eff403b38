"""Load models: locate them at a path, open the files, find the batch-norm layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike, fspath
from typing import Any, Literal

from bnstat.discovery import discover
from bnstat.errors import BnstatError, ChangedError, NotFoundError, UnsupportedError
from bnstat.formats.contents import Contents, Reading
from bnstat.formats.detection import StoredModel
from bnstat.formats.locate import locate
from bnstat.model import BatchNorm, Model, Source, matches, near_names
from bnstat.storage.access import MAX_DOWNLOAD, Access, is_url, redact
from bnstat.storage.files import ahead

Reader = Literal["auto", "native", "tensorflow"]
Track = Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]]
"""A function that wraps an iterable of layers, for example to show progress."""


@dataclass(frozen=True)
class Options:
    """The options of `load` that apply to every model at a path; see `load`."""

    reader: Reader = "auto"
    patterns: Sequence[tuple[str, str]] = ()
    include_shadows: bool = False
    layers: Sequence[str] = ()
    values: bool = True
    eager: bool = False
    track: Track = iter
    config: str | PathLike[str] | None = None

    def open(self, path: str, stored: StoredModel, access: Access) -> tuple[Contents, Model]:
        """Open a stored model; return the contents, plus the notes of `access`, and the `Model`."""
        configure = self.configure
        with access.reading():
            contents = _open(path, stored, self.reader, self.values)
            contents = replace(contents, notes=[*contents.notes, *access.notes])
            if configure is not None:
                contents = configure(contents)
            model = discover(
                contents,
                patterns=self.patterns,
                include_shadows=self.include_shadows,
                values=self.values,
            )
            if self.eager and self.values:
                self.read(model)
        return contents, model

    def read(self, model: Model) -> None:
        """Read all arrays of a model's layers whose names match one of the globs `self.layers`."""
        layers = (*model.layers, *model.incomplete)
        model.read([layer for layer in layers if matches(layer.name, self.layers)], self.track)

    @cached_property
    def configure(self) -> Callable[[Contents], Contents] | None:
        """A function that adds the architecture in `config` to contents; None without `config`."""
        if self.config is None:
            return None
        from bnstat.discovery.configuration import find_misfit
        from bnstat.formats.keras.config import read_architecture

        path = fspath(self.config)
        layers = read_architecture(path)

        def configure(contents: Contents) -> Contents:
            if contents.configured is None:
                note = f"{path} is ignored: the model file contains its own architecture"
                return replace(contents, notes=[*contents.notes, note])
            configured = contents.configured(layers)
            if (reason := find_misfit(configured)) is not None:
                what = f"the architecture does not fit {contents.source.path}: {reason}"
                hint = "pass the architecture that these weights were saved from"
                raise BnstatError(path, what, hint)
            return replace(configured, configured=None)

        return configure


def load(
    path: str | PathLike[str] | object = ".",
    *,
    checkpoint: str | None = None,
    step: int | None = None,
    reader: Reader = "auto",
    patterns: Sequence[tuple[str, str]] = (),
    include_shadows: bool = False,
    layers: Sequence[str] = (),
    values: bool = True,
    eager: bool = False,
    track: Track = iter,
    max_download: int = MAX_DOWNLOAD,
    storage_options: Mapping[str, Any] | None = None,
    access: Access | None = None,
    config: str | PathLike[str] | None = None,
) -> Model:
    """Load the batch-norm layers of a model.

    Args:
        path: a SavedModel, a checkpoint's prefix or one of its files, a Keras file, a GraphDef,
            a file of another known format, or a folder of these; default `.`. It may be a URL:
            `s3://`, `gs://`, `az://`, `hf://`, `https://`. It may also be a model in memory: of
            Keras or tf-keras, any `tf.Module`, or a `tf.compat.v1.Session` with its graph.
        checkpoint: the name of one of the checkpoints or files in a folder; default: the newest.
        step: the training step of a checkpoint in a folder.
        reader: `native` uses bnstat's own reader, `tensorflow` uses TensorFlow's; `auto` uses
            TensorFlow's only for files that the native reader does not support.
        patterns: (role, regular expression) pairs of a user-defined naming scheme.
        include_shadows: also load the exponential-moving-average copies of layers.
        layers: load only layers whose name matches one of these globs, such as `block1/*`;
            default: all.
        values: pass False to read no arrays; data files of a checkpoint may then be missing.
        eager: read all arrays now. If a training job is overwriting the file, only this
            guarantees that all arrays come from one save.
        track: a function that wraps the iterable of layers while `eager` reads their arrays.
        max_download: the largest number of bytes to download, if the path is a URL.
        storage_options: options for fsspec's driver of the URL, such as an endpoint.
        access: an existing `Access` to remote files, in place of `max_download` and
            `storage_options`.
        config: a file with the model's architecture, for Keras weights that do not contain it:
            the JSON of `model.to_json()`, a `config.json`, a `.keras` or a full `.h5`. It
            provides the layers' names, roles, epsilon, momentum, axis and order. It is ignored
            if the file contains an architecture.

    Returns:
        The model. Unless `eager`, an array is read when it is first used.

    Raises:
        NotFoundError: the path does not exist or contains no model, or a glob matches no layer.
        UnknownFormatError: the file is not in a format that bnstat reads.
        DamagedError: the file is damaged.
        UnsupportedError: the file uses a feature that the reader does not support.
        ChangedError: the file was replaced while it was read.
        BnstatError: the architecture does not fit the weights, or an argument does not apply to a
            model in memory.
    """
    options = Options(reader, patterns, include_shadows, layers, values, eager, track, config)
    if not isinstance(path, (str, PathLike)):
        from bnstat.live import live_model

        live = live_model(path).model
        for_files = {
            "checkpoint": checkpoint is not None,
            "step": step is not None,
            "reader": reader != "auto",
            "patterns": bool(patterns),
            "include_shadows": include_shadows,
            "max_download": max_download != MAX_DOWNLOAD,
            "storage_options": storage_options is not None,
            "access": access is not None,
            "config": config is not None,
        }
        if given := ", ".join(name for name, is_given in for_files.items() if is_given):
            what = f"{given}: not available for a model in memory"
            raise BnstatError(live.source.path, what, "omit this")
        if eager and values:
            options.read(live)
        return narrow(live, layers)
    text = fspath(path)
    access = access or _access(text, storage_options, max_download)
    with access.reading():
        stored = locate(text, access).choose(redact(text), checkpoint, step)
        state = _state(stored)
        try:
            _, model = options.open(text, stored, access)
        except BnstatError as error:
            # A training job may have replaced the checkpoint, or a part of it, since then.
            access.forget()
            newest = locate(text, access).choose(redact(text), checkpoint, step)
            if _state(newest) == state and not isinstance(error, ChangedError):
                raise
            try:
                _, model = options.open(text, newest, access)
            except BnstatError:
                what = "changes faster than it can be read"
                raise ChangedError(redact(text), what, "try again") from error
    return narrow(model, layers)


def loaded(model: object) -> Model:
    """Return a model unchanged, or load any other object that `load` accepts."""
    return model if isinstance(model, Model) else load(model)


def _state(stored: StoredModel) -> tuple[object, ...]:
    """Return a stored model's name and file times, which change if a job replaces the model."""
    return stored.name, stored.modified, stored.times()


def _access(path: str, storage_options: Mapping[str, Any] | None, max_download: int) -> Access:
    """Return a new `Access`, with a note if `storage_options` are passed for a local path."""
    access = Access(storage_options, max_download)
    if storage_options and not is_url(path):
        access.notes.append("storage options apply only to URLs, and are ignored for a local path")
    return access


def load_all(
    path: str | PathLike[str] = ".",
    *,
    reader: Reader = "auto",
    patterns: Sequence[tuple[str, str]] = (),
    include_shadows: bool = False,
    layers: Sequence[str] = (),
    values: bool = True,
    last: int | None = None,
    max_download: int = MAX_DOWNLOAD,
    storage_options: Mapping[str, Any] | None = None,
    access: Access | None = None,
    config: str | PathLike[str] | None = None,
) -> Models:
    """Load every checkpoint, Keras file or SavedModel version at a path, oldest first.

    Args:
        path: as for `load`.
        reader: as for `load`.
        patterns: as for `load`.
        include_shadows: as for `load`.
        layers: as for `load`.
        values: as for `load`.
        last: load only this number of newest models.
        max_download: as for `load`, for all models together.
        storage_options: as for `load`.
        access: as for `load`.
        config: as for `load`; one architecture for all models.

    Returns:
        (name, model) pairs. If a model cannot be read, the pair is (name, error). Each model is
        loaded when the iteration reaches it.

    Raises:
        BnstatError: the path contains no model, or an argument is not valid.
    """
    text = fspath(path)
    access = access or _access(text, storage_options, max_download)
    with access.reading():
        models = locate(text, access).models
    models = models[-last:] if last else models
    options = Options(reader, patterns, include_shadows, layers, values, True, config=config)
    _ = options.configure  # Raise an error in `config` here, not once per model.
    return Models(text, models, options, access)


@dataclass(frozen=True)
class Models(Iterable[tuple[str, Model | BnstatError]]):
    """(name, model or error) pairs for the models at a path; `len` loads no model."""

    path: str
    stored: Sequence[StoredModel]
    options: Options
    access: Access

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def checkpoints(self) -> list[tuple[str, int | None]]:
        """(name, training step) of each model that has a name; None for an unknown step."""
        return [(stored.name, stored.step) for stored in self.stored if stored.name is not None]

    def __iter__(self) -> Iterator[tuple[str, Model | BnstatError]]:
        is_remote = is_url(self.path)
        models = ahead(self._load, self.stored) if is_remote else map(self._load, self.stored)
        for stored, model in zip(self.stored, models, strict=True):
            yield stored.name if stored.name is not None else redact(self.path), model

    def _load(self, stored: StoredModel) -> Model | BnstatError:
        try:
            _, model = self.options.open(self.path, stored, self.access)
            return narrow(model, self.options.layers)
        except BnstatError as error:
            return error


def open_contents(path: str, checkpoint: str | None = None, step: int | None = None) -> Contents:
    """Return the contents of a model without looking for batch norm; arguments as for `load`."""
    return _open(path, locate(path).choose(path, checkpoint, step), "auto", True)


def narrow(model: Model, globs: Sequence[str]) -> Model:
    """Return a copy of the model with only the layers whose name matches one of the globs.

    Without globs, or if the model has no batch-norm layers, return the model unchanged.
    """
    if not globs or not model.layers:
        return model
    for glob in globs:
        if not any(matches(layer.name, [glob]) for layer in model):
            hint = near_names(glob, model.keys())
            raise NotFoundError(model.source.path, f"no batch-norm layer matches {glob!r}", hint)
    return model.select([layer for layer in model if matches(layer.name, globs)])


def _open(path: str, stored: StoredModel, reader: Reader, values: bool) -> Contents:
    source = Source(redact(path), "", stored.name, stored.step)
    has_tensorflow = stored.is_tensorflow and not is_url(path)
    if reader == "tensorflow" and not has_tensorflow:
        reason = "TensorFlow's reader reads only local checkpoints and SavedModels"
        raise BnstatError(source.path, reason, "omit --reader")
    try:
        return stored.open(source, Reading(values, tensorflow=reader == "tensorflow"))
    except UnsupportedError as error:
        if reader != "auto" or not has_tensorflow:
            raise
        try:
            contents = stored.open(source, Reading(values, tensorflow=True))
        except BnstatError:
            raise error from None
        note = f"read with TensorFlow: {error.what}"
        return replace(contents, notes=[*contents.notes, note])
