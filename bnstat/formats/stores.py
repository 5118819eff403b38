"""Models in a whole tree of folders: what names tell, before a file is opened.

A walk asks which files belong together and which folders are models; what a file is, its content
tells when its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Final, Literal, NamedTuple

from bnstat.formats.detection import Format
from bnstat.formats.registry import formats
from bnstat.storage.files import Entry, File, Folder

Kind = Literal["model", "data", "archive"]

_NEVER: Final = (
    *(".meta", ".txt", ".md", ".rst", ".log", ".csv", ".tsv", ".parquet", ".sql", ".sqlite"),
    *(".py", ".pyc", ".pyi", ".ipynb", ".sh", ".c", ".cc", ".cpp", ".h", ".hpp", ".cu", ".java"),
    *(".js", ".ts", ".css", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg"),
    *(".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".tif", ".tiff", ".pdf"),
    *(".mp3", ".mp4", ".wav", ".ogg", ".flac", ".webm", ".tfrecord", ".tfrecords", ".lock"),
)
"""What the names of files end in that hold no weights, whatever is in them.

A `.meta` is a part of the checkpoint beside it, and holds no weights of its own.
"""

_LISTS: Final = ("checkpoint", "keras_metadata.pb", "fingerprint.pb")
"""Files that lie beside weights and hold none."""


class Group(NamedTuple):
    """Files of a folder that are one model, if they are one.

    Attributes:
        name: what the model is called in its folder: a path to it ends so.
        file: the file whose content tells whether they are; empty where the names leave no doubt.
        members: all of the files.
    """

    name: str
    file: str
    members: list[Entry]


def model_folder(folder: Folder) -> Format | None:
    """The format of the model that a folder is; None where it is none."""
    return next((one for one in _sites() if one.model_of_folder(folder) is not None), None)


def groups(files: Iterable[Entry]) -> list[Group]:
    """The files of a folder, put together by their names; without those that are no models.

    Args:
        files: all files of the folder, in the order of their names.
    """
    gathered: dict[str, list[Entry]] = {}
    for file in files:
        gathered.setdefault(_first(file.name), []).append(file)
    return [group for first, members in gathered.items() for group in _grouped(first, members)]


def _grouped(first: str, members: list[Entry]) -> Iterable[Group]:
    if any(member.name == first for member in members):
        if not _is_no_model(first):
            yield Group(_called(first), first, members)
        return
    alone = [member for member in members if not _is_no_model(member.name)]
    named = {_called(member.name) for member in alone} - {member.name for member in alone}
    if named:
        # Data without their index: whoever opens them by their common name is told so.
        yield Group(min(named), "", members)
        return
    for member in alone:
        yield Group(member.name, member.name, [member])


def kind_of(folder: Folder, file: File) -> Kind | None:
    """What a file is by its content; None where it is nothing that may hold a model.

    `data` may be a model, or arrays of whatever kind.

    Raises:
        BnstatError: it is a model, yet damaged, or it cannot be read.
    """
    file.refuse_lfs_pointer()
    found = next((one for one in formats() if one.model_in_file(folder, file) is not None), None)
    if found is not None:
        return "data" if found.is_data_beside_models else "model"
    from bnstat.storage.archive import open_archive

    return "archive" if open_archive(file) is not None else None


def newest_of_run(folder: Folder) -> tuple[set[str], str | None]:
    """The names of the checkpoints in a training folder, and that of the newest."""
    for format_ in _sites():
        if (place := format_.models_within(folder)) is not None:
            return {model.name for model in place.models if model.name}, place.default.name
    return set(), None


@cache
def _sites() -> list[Format]:
    """The formats that know of folders, or of several files."""
    return [
        one
        for one in formats()
        if type(one).model_of_folder is not Format.model_of_folder or _joins(one)
    ]


def _joins(format_: Format) -> bool:
    return type(format_).first is not Format.first


@cache
def _beside() -> tuple[str, ...]:
    return tuple(start for format_ in formats() for start in format_.beside)


def _first(name: str) -> str:
    firsts = (one.first(name) for one in _sites() if _joins(one))
    return next((first for first in firsts if first is not None), name)


def _called(name: str) -> str:
    for format_ in _sites():
        name = format_.display_name(name)
    return name


def _is_no_model(name: str) -> bool:
    return name in _LISTS or name.lower().endswith(_NEVER) or name.startswith(_beside())
