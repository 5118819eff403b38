"""Loading models: where they lie, what they hold, which of it is batch norm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike, fspath
from typing import Any, Literal

from bnstat.discovery import discover
from bnstat.errors import BnstatError, ChangedError, NotFoundError, UnsupportedError
from bnstat.formats.contents import Contents, Reading
from bnstat.formats.detection import StoredModel
from bnstat.formats.locate import locate
from bnstat.model import BatchNorm, Model, Source
from bnstat.model.models import matches, near_names
from bnstat.storage.access import MAX_DOWNLOAD, Access
from bnstat.storage.address import is_url, shown
from bnstat.storage.files import ahead

Reader = Literal["auto", "native", "tensorflow"]
Track = Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]]
"""Passes the layers on, such as to show progress."""


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
            or a folder of such; `.` if left out. It may be a URL: `s3://`, `gs://`, `az://`,
            `hf://`, `https://`. Or a model in memory: of Keras, of tf-keras, any `tf.Module`, or
            a `tf.compat.v1.Session` with its graph.
        checkpoint: the name of one of a folder's checkpoints or files; the newest if left out.
        step: the step of one of a folder's checkpoints.
        reader: `native` reads with bnstat's own reader, `tensorflow` with TensorFlow's, `auto`
            with the native one and, for what that does not know, with TensorFlow's.
        patterns: (role, regular expression) pairs of a naming scheme of your own.
        include_shadows: also the exponential-moving-average copies of layers.
        layers: only those whose name matches one of these globs, such as `block1/*`; all if
            left out.
        values: whether arrays will be asked for; without, a checkpoint's index is enough.
        eager: read all arrays now. Where a training job is saving over the file, only this
            makes sure that they belong to one save.
        track: passes on the layers that are being read, where `eager`.
        max_download: how many bytes may be downloaded, where the path is a URL.
        storage_options: what fsspec's driver for the URL is given, such as an endpoint.
        access: how files that are far away are reached, in place of these two.
        config: a file with the model's architecture, for Keras weights that do not tell it: the
            JSON of `model.to_json()`, a `config.json`, a `.keras` or a full `.h5`. It gives the
            layers' names, roles, epsilon, momentum, axis and order. A file that tells its own
            is read by that.

    Returns:
        The model. Its arrays are read when they are first asked for.

    Raises:
        NotFoundError: there is nothing of that name, or a glob matches no layer.
        UnknownFormatError: the file is in no format that bnstat reads.
        DamagedError: the file is damaged.
        UnsupportedError: the file needs what the reader does not know.
        ChangedError: the file was replaced while it was read.
        BnstatError: the architecture does not fit the weights, or an argument applies to files
            only and the model is in memory.
    """
    if not isinstance(path, (str, PathLike)):
        from bnstat.live import live_model

        live = live_model(path).model
        _refuse(
            live.source.path,
            checkpoint=checkpoint is not None,
            step=step is not None,
            reader=reader != "auto",
            patterns=bool(patterns),
            include_shadows=include_shadows,
            max_download=max_download != MAX_DOWNLOAD,
            storage_options=storage_options is not None,
            access=access is not None,
            config=config is not None,
        )
        if eager and values:
            _read(live, layers, track)
        return narrow(live, layers)
    text = fspath(path)
    access = access or _access(text, storage_options, max_download)
    found = locate(text, access).choose(shown(text), checkpoint, step)
    times = found.times()
    read = partial(_read, globs=layers, track=track) if eager and values else None
    attempt = _loader(text, access, reader, patterns, include_shadows, values, read, config)
    try:
        model = attempt(found)
    except BnstatError as error:
        # A training job may have replaced the checkpoint, or a part of it, since then.
        access.forget()
        newest = locate(text, access).choose(shown(text), checkpoint, step)
        unchanged = (found.name, found.modified, times)
        is_same = (newest.name, newest.modified, newest.times()) == unchanged
        if is_same and not isinstance(error, ChangedError):
            raise
        try:
            model = attempt(newest)
        except BnstatError:
            raise ChangedError(
                shown(text), "changes faster than it can be read", "try again"
            ) from error
    return narrow(model, layers)


def _access(path: str, options: Mapping[str, Any] | None, max_download: int) -> Access:
    """Return how files are reached, with a note if that does not apply to the path."""
    access = Access(options, max_download)
    if options and not is_url(path):
        access.notes.append("storage options apply to URLs, and are not used for a local path")
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
        last: only so many of them, the newest.
        max_download: as for `load`, of all of them together.
        storage_options: as for `load`.
        access: as for `load`.
        config: as for `load`; one architecture for all of them.

    Returns:
        The name and the model of each, or the error that kept it from being read. Each is
        loaded when the iteration comes to it.

    Raises:
        As `load`, for the path as a whole.
    """
    text = fspath(path)
    access = access or _access(text, storage_options, max_download)
    models = locate(text, access).models
    found = models[-last:] if last else models

    read = partial(_read, globs=layers) if values else None
    attempt = _loader(text, access, reader, patterns, include_shadows, values, read, config)
    return Models(text, found, lambda one: narrow(attempt(one), layers))


class Models(Iterable[tuple[str, Model | BnstatError]]):
    """The models at a path; how many there are is known before any is loaded."""

    def __init__(
        self, path: str, found: Sequence[StoredModel], attempt: Callable[[StoredModel], Model]
    ) -> None:
        self._path = shown(path)
        self._found = found
        self._attempt = attempt
        self._is_far = is_url(path)

    def __len__(self) -> int:
        return len(self._found)

    @property
    def checkpoints(self) -> list[tuple[str, int | None]]:
        """The name of each that has one, and its training step where the name tells it."""
        return [(found.name, found.step) for found in self._found if found.name is not None]

    def __iter__(self) -> Iterator[tuple[str, Model | BnstatError]]:
        tried = ahead(self._try, self._found) if self._is_far else map(self._try, self._found)
        for found, result in zip(self._found, tried, strict=True):
            yield found.name if found.name is not None else self._path, result

    def _try(self, found: StoredModel) -> Model | BnstatError:
        try:
            return self._attempt(found)
        except BnstatError as error:
            return error


def _loader(
    path: str,
    access: Access,
    reader: Reader,
    patterns: Sequence[tuple[str, str]],
    include_shadows: bool,
    values: bool,
    read: Callable[[Model], None] | None,
    config: str | PathLike[str] | None,
) -> Callable[[StoredModel], Model]:
    """What loads a model that lies at the path, and lets `read` read its arrays."""
    configure = configurer(config) if config is not None else None

    def attempt(found: StoredModel) -> Model:
        contents = _open(path, found, reader, values)
        if access.notes:
            contents = replace(contents, notes=[*contents.notes, *access.notes])
        if configure is not None:
            contents = configure(contents)
        model = discover(
            contents, patterns=patterns, include_shadows=include_shadows, values=values
        )
        if read is not None:
            read(model)
        return model

    return attempt


def configurer(config: str | PathLike[str]) -> Callable[[Contents], Contents]:
    """Return a function that gives contents the architecture that a file specifies.

    Raises:
        BnstatError: the file tells none.
    """
    from bnstat.discovery.configuration import misfit
    from bnstat.formats.keras.config import read_architecture

    path, layers = read_architecture(fspath(config))

    def configure(contents: Contents) -> Contents:
        if contents.configured is None:
            note = f"{path} is not used: the file tells its own layers"
            return replace(contents, notes=[*contents.notes, note])
        told = contents.configured(layers)
        if (reason := misfit(told)) is not None:
            raise BnstatError(
                path,
                f"does not fit {contents.source.path}: {reason}",
                "give the architecture that these weights were saved from",
            )
        return replace(told, configured=None)

    return configure


def open_contents(
    path: str, checkpoint: str | None = None, step: int | None = None, reader: Reader = "auto"
) -> Contents:
    """What the model at a path holds, before anything in it is taken for batch norm.

    Args:
        path: as for `load`.
        checkpoint: as for `load`.
        step: as for `load`.
        reader: as for `load`.

    Raises:
        As `load`.
    """
    return _open(path, locate(path).choose(path, checkpoint, step), reader, True)


def _refuse(where: str, **given: bool) -> None:
    """Raise a BnstatError if an argument is given that applies to files only."""
    names = [name for name, is_given in given.items() if is_given]
    if names:
        raise BnstatError(where, f"{', '.join(names)}: not for a model in memory", "leave this out")


def _read(model: Model, globs: Sequence[str], track: Track = iter) -> None:
    """Read all arrays of the layers whose name matches."""
    layers = (*model.layers, *model.incomplete)
    model.read([layer for layer in layers if matches(layer.name, globs)], track)


def narrow(model: Model, globs: Sequence[str]) -> Model:
    """The model with those layers alone whose name matches.

    Raises:
        NotFoundError: a glob matches no layer, though there are some.
    """
    if not globs or not model.layers:
        return model
    for glob in globs:
        if not any(matches(layer.name, [glob]) for layer in model):
            raise NotFoundError(
                model.source.path,
                f"no batch-norm layer matches {glob!r}",
                near_names(glob, model.keys()),
            )
    return model.select([layer for layer in model if matches(layer.name, globs)])


def _open(path: str, found: StoredModel, reader: Reader, values: bool) -> Contents:
    source = Source(shown(path), "", found.name, found.step)
    if is_url(path):
        if reader == "tensorflow":
            raise BnstatError(
                source.path, "TensorFlow's reader reads files on disk", "leave --reader out"
            )
        return found.open(source, Reading(values))
    try:
        return found.open(source, Reading(values, tensorflow=reader == "tensorflow"))
    except UnsupportedError as error:
        if reader != "auto":
            raise
        try:
            contents = found.open(source, Reading(values, tensorflow=True))
        except BnstatError:
            raise error from None
        note = f"read with TensorFlow: {error.what}"
        return replace(contents, notes=[*contents.notes, note])
