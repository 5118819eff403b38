"""Opening candidates: each becomes the records of the models that it holds. Runs anywhere."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bnstat.checks import Severity
from bnstat.checks.settings import Config, Settings, nearest, read, resolve
from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.formats.locate import kind_of
from bnstat.loading import load, load_all
from bnstat.model import Model
from bnstat.scanning.record import Record, of_error, of_model
from bnstat.scanning.walk import Candidate
from bnstat.storage.access import MAX_DOWNLOAD, Access, is_url, redact
from bnstat.storage.files import Folder, ahead
from bnstat.storage.find import find
from bnstat.storage.local import LocalFolder

_RARELY: Final = 100_000
"""Objects between two collections of garbage."""


@dataclass(frozen=True, slots=True)
class How:
    """How models are read and checked.

    Attributes:
        given: the rules that the user asks for; they win.
        config: the project's.
        reading: what `bnstat.load` is given, but for how files that are far away are reached.
        max_download: how many bytes of each model may be downloaded.
        storage_options: what drivers are given; it may hold secrets.
    """

    given: Settings = field(default_factory=Settings)
    config: Config | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    max_download: int = MAX_DOWNLOAD
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        roots: Sequence[str],
        given: Settings,
        config_file: str | None,
        isolated: bool,
        reading: Mapping[str, Any],
    ) -> How:
        """How the models below some roots are read and checked.

        Args:
            roots: the roots; the project's file is looked for from the folder that has them all.
            given: the rules that the user asks for.
            config_file: the project's file; the nearest, if None.
            isolated: take no file.
            reading: what `bnstat.load` is given.

        Raises:
            BnstatError: there is no such rule or threshold, the file cannot mean what it says, or
                there are storage options and no root is a URL.
        """
        resolve((), given)
        if reading.get("storage_options") and roots and not any(map(is_url, roots)):
            what = "apply to URLs, and nothing that is scanned is one"
            raise BnstatError("storage options", what, "leave them out")
        config = None
        if config_file is not None:
            config = read(config_file)
        elif not isolated:
            config = nearest(os.path.commonpath([os.path.abspath(root) for root in roots]))
        reached = ("max_download", "storage_options")
        return cls(
            given,
            config,
            {name: value for name, value in reading.items() if name not in reached},
            **{name: reading[name] for name in reached if name in reading},
        )

    def access(self) -> Access:
        """How files that are far away are reached."""
        return Access(self.storage_options, self.max_download)

    @property
    def fail_on(self) -> Severity | None:
        """From which severity on a model fails; None where it is not said."""
        project = None if self.config is None else self.config.settings.fail_on
        return self.given.fail_on or project

    def settings_for(self, path: str) -> Settings:
        """The rules for the model at `path`."""
        return (
            self.given if self.config is None else self.given.over(self.config.settings_for(path))
        )


def examine_all(candidates: Sequence[Candidate], how: How) -> list[list[Record]]:
    """The records of each candidate; none for what is no model."""
    with _rare_collections():
        return _examined(candidates, how)


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Models leave hardly any garbage; in a worker of Dask each search for it goes through Dask."""
    before = gc.get_threshold()
    gc.set_threshold(before[0] and max(before[0], _RARELY), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _examined(candidates: Sequence[Candidate], how: How) -> list[list[Record]]:
    access = how.access()
    if not any(candidate.folder for candidate in candidates):
        return [examine(candidate, how, access) for candidate in candidates]
    from bnstat.storage.remote.transport import connect

    for candidate in candidates:
        # fsspec keeps a driver for the thread that asked for it: this one lasts.
        if candidate.folder:
            connect(candidate.folder, access)
    return list(ahead(lambda candidate: examine(candidate, how, access), candidates))


def examine(candidate: Candidate, how: How, access: Access) -> list[Record]:
    """The records of the models at a candidate; why it could not be read is a record as well."""
    path = redact(candidate.path)
    try:
        return list(_records(candidate, how, access.knowing(candidate.folder, candidate.files)))
    except BnstatError as error:
        return [of_error(path, error)]
    except MemoryError:
        return [Record(path, trouble="memory", reason="there is not enough memory for it")]
    except Exception as error:
        return [Record(path, trouble="bug", reason=f"this is a bug of bnstat's: {error!r}")]


def _records(candidate: Candidate, how: How, access: Access) -> Iterator[Record]:
    path = redact(candidate.path)
    kind = "model"
    if candidate.file:
        folder = _folder_of(candidate, access)
        # As long as it is held here, what was fetched of it is not fetched again.
        file = folder.file(candidate.file)
        if file is None:
            raise BnstatError(path, "is gone, or cannot be opened")
        found = kind_of(folder, file)
        if found is None:
            return
        kind = found
    if kind == "archive":
        yield from _archived(candidate, how, access)
        return
    try:
        model = load(candidate.path, eager=True, access=access, **how.reading)
    except BnstatError as error:
        if kind == "model" or isinstance(error, DamagedError):
            yield of_error(path, error)
        return
    if kind == "model" or model.layers or model.undecided:
        yield _checked(path, model, how)


def _folder_of(candidate: Candidate, access: Access) -> Folder:
    if not candidate.folder:
        return LocalFolder(os.path.dirname(candidate.path) or ".")
    folder = find(candidate.folder, access).folder
    if folder is None:
        raise NotFoundError(candidate.folder, "is gone")
    return folder


def _archived(candidate: Candidate, how: How, access: Access) -> Iterator[Record]:
    """The records of the models in an archive, of which there can be several, or none."""
    path = redact(candidate.path)
    try:
        models = load_all(candidate.path, access=access, **how.reading)
    except NotFoundError:
        return
    for name, model in models:
        checkpoint = name if name != path else None
        if isinstance(model, Model):
            yield _checked(path, model, how)
        else:
            yield of_error(path, model, checkpoint=checkpoint)


def _checked(path: str, model: Model, how: How) -> Record:
    return of_model(path, model, how.settings_for(path).check(model))
