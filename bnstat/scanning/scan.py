"""A scan: find the models below some roots, and yield a record of each model."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from bnstat import __version__
from bnstat.checks import RULES, Severity
from bnstat.checks.settings import Config, Settings, nearest, read, resolve
from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.formats.locate import kind_of, locate
from bnstat.loading import load, load_all
from bnstat.model import Model
from bnstat.scanning.engines import Batches, Engine
from bnstat.scanning.record import Record, State, of_error, of_model
from bnstat.scanning.walk import Candidate, Choice, Unreadable, digest, signature, walk
from bnstat.storage.access import MAX_DOWNLOAD, Access, is_url, redact, scheme_of
from bnstat.storage.files import Folder, Spot, ahead
from bnstat.storage.local import find

_REMOTE_BATCH: Final = 32  # the smallest batch of remote models, which threads read concurrently
_GC_THRESHOLD: Final = 100_000


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """Options for reading and checking models.

    Attributes:
        rules: the rules that the user selects, which take precedence over `config`.
        reading: arguments of `bnstat.load`, except `max_download` and `storage_options`.
        max_download: the number of bytes that may be downloaded per model.
        storage_options: options of fsspec's driver, which may contain secrets.
    """

    rules: Settings = field(default_factory=Settings)
    config: Config | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    max_download: int = MAX_DOWNLOAD
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        roots: Sequence[str],
        rules: Settings,
        config_file: str | None,
        isolated: bool,
        reading: Mapping[str, Any],
    ) -> ScanOptions:
        """Return the options for a scan of some roots, with the settings in `config_file`.

        Without `config_file`, bnstat reads the nearest settings file, upwards from the deepest
        folder that contains all roots. If `isolated` is True, bnstat does not search for a file.
        """
        resolve((), rules)
        if reading.get("storage_options") and roots and not any(map(is_url, roots)):
            what = "apply only to URLs, and no root is a URL"
            raise BnstatError("storage options", what, "omit them")
        config = None
        if config_file is not None:
            config = read(config_file)
        elif not isolated:
            config = nearest(os.path.commonpath([os.path.abspath(root) for root in roots]))
        local = dict(reading)
        remote = {k: local.pop(k) for k in ("max_download", "storage_options") if k in local}
        return cls(rules, config, local, **remote)

    def access(self) -> Access:
        return Access(self.storage_options, self.max_download)

    @property
    def fail_on(self) -> Severity | None:
        project = None if self.config is None else self.config.settings.fail_on
        return self.rules.fail_on or project


def scan(
    roots: Sequence[str],
    choice: Choice,
    options: ScanOptions,
    engine: Engine,
    state: State | None = None,
) -> Iterator[Record]:
    """Yield the records of all models below some roots, and add new records to the state.

    A root is the path or URL of a folder, a file or a checkpoint prefix. If a root does not
    exist, a `NotFoundError` is raised before the first record.
    """
    batches = Batches(engine, partial(examine_all, options))
    is_whole = choice == Choice()
    for item in _candidates(roots, choice, options, engine):
        if isinstance(item, Unreadable):
            is_whole = False
            yield of_error(item.path, item.error)
        elif state is not None and (records := state.records_of(item)) is not None:
            yield from records
        else:
            finished = batches.add(item, at_least=_REMOTE_BATCH if item.folder else 1)
            yield from _records(finished, state)
    yield from _records(batches.flush(), state)
    if state is not None and is_whole:
        state.forget_others(roots)


def _records(
    batches: Iterable[list[tuple[Candidate, list[Record] | None]]], state: State | None
) -> Iterator[Record]:
    reason = "the worker died while reading this model, and again when bnstat retried"
    for batch in batches:
        examined = []
        for candidate, records in batch:
            if records is None:
                records = [Record(redact(candidate.path), trouble="died", reason=reason)]
            examined.append((candidate, records))
        if state is not None:
            state.keep(examined)
        for _, records in examined:
            yield from records


@contextmanager
def open_state(path: str | None, options: ScanOptions) -> Iterator[State | None]:
    """Open the file with the records of earlier scans; yield None if `path` is None."""
    if path is None:
        yield None
        return
    architecture = ""
    if (config := options.reading.get("config")) is not None:
        from bnstat.formats.keras.config import read_architecture

        try:
            architecture = repr(read_architecture(config))
        except BnstatError as error:
            architecture = str(error)
    text = repr((__version__, [rule.code for rule in RULES], options, architecture))
    with closing(State(path, digest(text))) as state:
        yield state


def _candidates(
    roots: Sequence[str], choice: Choice, options: ScanOptions, engine: Engine
) -> Iterator[Candidate | Unreadable]:
    folders: list[Folder] = []
    models: list[Candidate | Unreadable] = []
    for root in roots:
        spot = find(root, options.access(), recursive=True)
        if spot.parent is None and spot.folder is not None and spot.folder.can_list:
            folders.append(spot.folder)
        else:
            models.append(_model(root, spot, options.access()))
        if scheme_of(root) == "memory" and not engine.in_process:
            raise BnstatError(root, "other processes cannot read it", "omit --jobs and --engine")
    yield from walk(folders, choice)
    yield from models


def _model(root: str, spot: Spot, access: Access) -> Candidate | Unreadable:
    """Return the candidate, or `Unreadable`, for a root that is a file or a checkpoint's prefix."""
    try:
        locate(root, access)
        listed = spot.parent.entries() if spot.parent is not None and spot.parent.can_list else []
        parts = [entry for entry in listed if entry.name.startswith(spot.name)]
    except NotFoundError:
        raise
    except BnstatError as error:
        return Unreadable(redact(root), error)
    return Candidate(root, "", signature(parts))


def examine_all(options: ScanOptions, candidates: Sequence[Candidate]) -> list[list[Record]]:
    """Return a list of records for each candidate; workers call this function."""
    access = options.access()
    with _rare_collections():
        if not any(candidate.folder for candidate in candidates):
            return [examine(candidate, options, access) for candidate in candidates]
        from bnstat.storage.stores import connect

        for candidate in candidates:
            # fsspec keeps a driver for the thread that asked for it, and this thread lasts.
            if candidate.folder:
                connect(candidate.folder, access)
        return list(ahead(lambda candidate: examine(candidate, options, access), candidates))


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Collect garbage rarely: models leave little garbage, and Dask slows down each collection."""
    before = gc.get_threshold()
    gc.set_threshold(before[0] and max(before[0], _GC_THRESHOLD), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def examine(candidate: Candidate, options: ScanOptions, access: Access) -> list[Record]:
    """Return the records of the models in a candidate; if reading fails, a record of the error."""
    path = redact(candidate.path)
    try:
        access = access.knowing(candidate.folder, candidate.files)
        with access.reading():
            return list(_examined(path, candidate, options, access))
    except BnstatError as error:
        return [of_error(path, error)]
    except MemoryError:
        reason = "there is not enough memory to read this model"
        return [Record(path, trouble="memory", reason=reason)]
    except Exception as error:
        return [Record(path, trouble="bug", reason=f"this is a bug of bnstat: {error!r}")]


def _examined(
    path: str, candidate: Candidate, options: ScanOptions, access: Access
) -> Iterator[Record]:
    kind: str | None = "model"
    if candidate.file:
        folder = find(candidate.folder or os.path.dirname(candidate.path) or ".", access).folder
        # As long as this file is referenced, the bytes that were fetched are not fetched again.
        file = None if folder is None else folder.file(candidate.file)
        if folder is None or file is None:
            raise BnstatError(path, "no longer exists, or cannot be opened")
        kind = kind_of(folder, file)
    if kind == "archive":
        try:
            models = load_all(candidate.path, access=access, **options.reading)
        except NotFoundError:
            return
        for name, loaded in models:
            if isinstance(loaded, Model):
                yield _checked(path, loaded, options)
            else:
                yield of_error(path, loaded, checkpoint=name if name != path else None)
    elif kind is not None:
        try:
            model = load(candidate.path, eager=True, access=access, **options.reading)
        except BnstatError as error:
            if kind == "model" or isinstance(error, DamagedError):
                yield of_error(path, error)
            return
        if kind == "model" or model.layers or model.undecided:
            yield _checked(path, model, options)


def _checked(path: str, model: Model, options: ScanOptions) -> Record:
    rules, config = options.rules, options.config
    if config is not None:
        rules = rules.over(config.settings_for(path))
    return of_model(path, model, rules.check(model))
