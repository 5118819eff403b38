"""Find the models at a path, and group the files of a folder into models.

The content of a file decides its format; file names only decide which files belong together. Each
format defines its own file names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from bnstat.errors import NotFoundError, UnknownFormatError
from bnstat.formats.detection import (
    Finder,
    ModelSet,
    StoredModel,
    finders,
    first_of,
    listed,
    models_in_files,
    refuse_foreign,
    sorted_by_age,
    with_steps,
)
from bnstat.formats.registry import known_formats
from bnstat.storage.access import Access, redact
from bnstat.storage.files import Entry, File, Folder, Spot
from bnstat.storage.local import find

_NUMBER = re.compile(r"^\d{1,18}$")
_MOST_SUBFOLDERS = 200
_LONGEST_NAME = 80


def locate(path: str, access: Access | None = None) -> ModelSet:
    """Return the models at a path or URL; `access` reads remote files."""
    spot = find(path, access or Access())
    if spot.parent is not None:
        if (file := spot.parent.file(spot.name)) is not None:
            return _of_file(spot.parent, file)
        for finder in finders():
            if (model := finder.model_at_prefix(spot.parent, spot.name)) is not None:
                return sorted_by_age([model])
    if spot.folder is not None:
        return _in_folder(spot.folder)
    raise _nothing_at(redact(path), spot)


def _in_folder(folder: Folder) -> ModelSet:
    if (model := _of_folder(folder)) is not None:
        return sorted_by_age([model])
    if (models := models_within(folder)) is not None:
        return models
    if files := _model_files(folder):
        return sorted_by_age(with_steps(files, [model.name or "" for model in files]))
    if versions := _numbered(folder):
        return sorted_by_age(versions)
    for name in folder.names():
        if (file := folder.file(name)) is not None:
            file.refuse_lfs_pointer()
    raise NotFoundError(folder.path, "contains no model", _hint_below(folder))


def _of_file(folder: Folder, file: File) -> ModelSet:
    for finder in finders():
        if (owner := finder.owner(folder, file)) is not None:
            return _in_folder(owner) if isinstance(owner, Folder) else owner
    file.refuse_lfs_pointer()
    for finder in finders():
        if (model := finder.model_in_file(folder, file)) is not None:
            return sorted_by_age([model if finder.named else _unnamed(folder, model)])
    from bnstat.storage.archive import open_archive

    if (archive := open_archive(file)) is not None:
        # Skip outer folders that contain only a single folder.
        while _of_folder(archive) is None and len(names := archive.names()) == 1:
            if (below := archive.folder(names[0])) is None:
                break
            archive = below
        return _in_folder(archive)
    refuse_foreign(file)
    raise UnknownFormatError(file.path, "is not in a format that bnstat knows", known_formats())


def _unnamed(folder: Folder, model: StoredModel) -> StoredModel:
    """Return the model without its name; clear the step if no files of other steps exist."""
    if model.step is not None:
        # Listing a folder of a server costs a request, and the step is only shown.
        names = [] if folder.is_remote or not folder.can_list else folder.names()
        (model,) = with_steps([model], names)
    return model._replace(name=None)


def _of_folder(folder: Folder) -> StoredModel | None:
    return first_of(finder.model_of_folder(folder) for finder in finders())


def _model_files(folder: Folder) -> list[StoredModel]:
    names = [name for name in folder.names() if not name.startswith(_beside())]
    data = [finder for finder in finders() if finder.is_data_beside_models]
    others = [finder for finder in finders() if not finder.is_data_beside_models]
    return models_in_files(folder, names, others) or models_in_files(folder, names, data)


def _numbered(folder: Folder) -> list[StoredModel]:
    """Return the models in subfolders whose names are numbers, as in TensorFlow Serving."""
    models = []
    for name in folder.names():
        below = folder.folder(name) if _NUMBER.match(name) else None
        if below is not None and (model := _of_folder(below)) is not None:
            modified = folder.modified(name)
            models.append(model._replace(name=name, step=int(name), modified=modified))
    return models


def _hint_below(folder: Folder) -> str:
    below = []
    for name in folder.names()[:_MOST_SUBFOLDERS]:
        inner = folder.folder(name)
        if inner is not None and any(finder.is_present_in(inner) for finder in finders()):
            below.append(f"{folder.path}/{name}")
    if below:
        return f"there are models in {listed(below)}"
    missing = [name[:_LONGEST_NAME] for finder in finders() for name in finder.missing_from(folder)]
    if missing:
        return f"its list of checkpoints names {listed(missing)}: their files are not here"
    return known_formats()


def _nothing_at(path: str, spot: Spot) -> NotFoundError:
    above = path.rstrip("/").rpartition("/")[0]
    if spot.parent is None:
        return NotFoundError(path, "no such path", f"{above or '.'} does not exist")
    import difflib

    names = {_display_name(name) for name in spot.parent.names()}
    start = f"{above}/" if above else ""
    near = [start + name for name in difflib.get_close_matches(spot.name, names, n=3)]
    hint = f"did you mean {listed(near)}?" if near else ""
    return NotFoundError(path, "no such file, folder or checkpoint", hint)


_NOT_MODELS: Final = (
    *(".meta", ".txt", ".md", ".rst", ".log", ".csv", ".tsv", ".parquet", ".sql", ".sqlite"),
    *(".py", ".pyc", ".pyi", ".ipynb", ".sh", ".c", ".cc", ".cpp", ".h", ".hpp", ".cu", ".java"),
    *(".js", ".ts", ".css", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg"),
    *(".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".tif", ".tiff", ".pdf"),
    *(".mp3", ".mp4", ".wav", ".ogg", ".flac", ".webm", ".tfrecord", ".tfrecords", ".lock"),
)
"""Endings of files that are not opened in a tree of folders; a `.meta` contains no weights."""
_METADATA: Final = ("checkpoint", "keras_metadata.pb", "fingerprint.pb")
"""Files that lie beside weights but contain no weights."""


class Group(NamedTuple):
    """Files of a folder that, by their names, belong to one model, or to no model.

    Attributes:
        name: the name of the model in its folder; `load` accepts it as the last part of a path.
        file: the file to read first; empty if the group is data files without their index.
    """

    name: str
    file: str
    members: list[Entry]


def model_folder(folder: Folder) -> Finder | None:
    """Return the finder that recognises a folder as a model, or None."""
    return next((finder for finder in finders() if finder.model_of_folder(folder)), None)


def group_files(files: Iterable[Entry]) -> list[Group]:
    """Group the sorted files of a folder by name, without files that are certainly not models."""
    by_first: dict[str, list[Entry]] = {}
    for file in files:
        by_first.setdefault(_first(file.name), []).append(file)
    return [group for first, members in by_first.items() for group in _groups(first, members)]


def _groups(first: str, members: list[Entry]) -> Iterable[Group]:
    if any(member.name == first for member in members):
        if not _is_not_a_model(first):
            yield Group(_display_name(first), first, members)
        return
    alone = [member for member in members if not _is_not_a_model(member.name)]
    prefixes = {_display_name(member.name) for member in alone} - {m.name for m in alone}
    if prefixes:
        # Data files without their index. The error appears when the prefix is opened.
        yield Group(min(prefixes), "", members)
        return
    for member in alone:
        yield Group(member.name, member.name, [member])


def kind_of(folder: Folder, file: File) -> Literal["model", "data", "archive"] | None:
    """Return a file's kind: "data" for arrays that may not be a model, None for unknown formats."""
    file.refuse_lfs_pointer()
    for finder in finders():
        if finder.model_in_file(folder, file) is not None:
            return "data" if finder.is_data_beside_models else "model"
    from bnstat.storage.archive import open_archive

    return "archive" if open_archive(file) is not None else None


def models_within(folder: Folder) -> ModelSet | None:
    """Return the models of a folder that form a series, such as a run's checkpoints, or None."""
    return first_of(finder.models_within(folder) for finder in finders())


def _beside() -> tuple[str, ...]:
    return tuple(start for finder in finders() for start in finder.beside)


def _first(name: str) -> str:
    return first_of(finder.first(name) for finder in finders()) or name


def _display_name(name: str) -> str:
    for finder in finders():
        name = finder.display_name(name)
    return name


def _is_not_a_model(name: str) -> bool:
    return name in _METADATA or name.lower().endswith(_NOT_MODELS) or name.startswith(_beside())
