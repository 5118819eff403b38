"""Loading models: where they lie, what they hold, which of it is batch norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike, fspath
from typing import Literal

from bnstat.discovery import discover
from bnstat.errors import BnstatError, ChangedError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.formats.locate import Found, locate
from bnstat.formats.tensors import Reading
from bnstat.model import Model, Source

Reader = Literal["auto", "native", "tensorflow"]


def load(
    path: str | PathLike[str] = ".",
    *,
    checkpoint: str | None = None,
    step: int | None = None,
    reader: Reader = "auto",
    patterns: Sequence[tuple[str, str]] = (),
    include_shadows: bool = False,
    values: bool = True,
    eager: bool = False,
) -> Model:
    """Load the batch-norm layers of a model.

    Args:
        path: a SavedModel, a checkpoint's prefix or one of its files, a Keras file, a GraphDef,
            or a folder of such; `.` if left out.
        checkpoint: the name of one of a folder's checkpoints or files; the newest if left out.
        step: the step of one of a folder's checkpoints.
        reader: `native` reads with bnstat's own reader, `tensorflow` with TensorFlow's, `auto`
            with the native one and, for what that does not know, with TensorFlow's.
        patterns: (role, regular expression) pairs of a naming scheme of your own.
        include_shadows: also the exponential-moving-average copies of layers.
        values: whether arrays will be asked for; without, a checkpoint's index is enough.
        eager: read all arrays now. Where a training job is saving over the file, only this
            makes sure that they belong to one save.

    Returns:
        The model. Its arrays are read when they are first asked for.

    Raises:
        NotFoundError: there is nothing of that name.
        UnknownFormatError: the file is in no format that bnstat reads.
        DamagedError: the file is damaged.
        UnsupportedError: the file needs what the reader does not know.
        ChangedError: the file was replaced while it was read.
    """
    text = fspath(path)
    place = locate(text)
    found = place.choose(text, checkpoint, step)

    def attempt(found: Found) -> Model:
        contents = _open(text, found, reader, values)
        model = discover(contents, patterns=patterns, include_shadows=include_shadows)
        if eager and values:
            _read(model)
        return model

    try:
        return attempt(found)
    except BnstatError as error:
        # A training job may have replaced the checkpoint since the folder was listed.
        again = locate(text)
        newest = again.choose(text, checkpoint, step)
        if (newest.name, newest.modified) == (found.name, found.modified):
            raise
        try:
            return attempt(newest)
        except BnstatError:
            raise ChangedError(text, "changes faster than it can be read", "try again") from error


def load_all(
    path: str | PathLike[str] = ".",
    *,
    reader: Reader = "auto",
    patterns: Sequence[tuple[str, str]] = (),
    include_shadows: bool = False,
    values: bool = True,
    last: int | None = None,
) -> Iterator[tuple[str, Model | BnstatError]]:
    """Load every checkpoint, Keras file or SavedModel version at a path, oldest first.

    Args:
        path: as for `load`.
        reader: as for `load`.
        patterns: as for `load`.
        include_shadows: as for `load`.
        values: as for `load`.
        last: only so many of them, the newest.

    Yields:
        The name and the model, or the error that kept it from being read.

    Raises:
        As `load`, for the path as a whole.
    """
    text = fspath(path)
    place = locate(text)
    for found in place.models[-last:] if last else place.models:
        name = found.name if found.name is not None else text
        try:
            contents = _open(text, found, reader, values)
            model = discover(contents, patterns=patterns, include_shadows=include_shadows)
            if values:
                _read(model)
        except BnstatError as error:
            yield name, error
        else:
            yield name, model


def count_all(path: str | PathLike[str]) -> int:
    """The number of models that `load_all` yields."""
    return len(locate(fspath(path)).models)


def _read(model: Model) -> None:
    """Read all arrays of the model now."""
    for layer in (*model.layers, *model.incomplete):
        layer.read()


def _open(path: str, found: Found, reader: Reader, values: bool) -> Contents:
    source = Source(path, "", found.name, found.step)
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
