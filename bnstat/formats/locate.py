"""From the path that a user types to the models that lie there.

A path may be a model file, one of a checkpoint's files, a checkpoint's prefix, a SavedModel, or
a folder that holds checkpoints, Keras files or numbered SavedModels. What a file is, is told by
its content; names only tie a model's files together. Which files are whose, each format knows.
"""

from __future__ import annotations

import re

from bnstat.errors import NotFoundError, UnknownFormatError
from bnstat.formats.detection import (
    ModelSet,
    StoredModel,
    listed,
    models_in_files,
    single,
    sorted_by_age,
    step_of,
    with_steps,
)
from bnstat.formats.registry import formats, known_formats
from bnstat.storage.access import Access
from bnstat.storage.address import shown
from bnstat.storage.files import File, Folder
from bnstat.storage.find import Spot, find

__all__ = ["ModelSet", "StoredModel", "locate", "step_of"]

_NUMBER = re.compile(r"^\d{1,18}$")
_MOST_BELOW = 200
_LONGEST = 80
"""Characters of a name, out of a file, that is said not to be there."""


def locate(path: str, access: Access | None = None) -> ModelSet:
    """The models at a path or URL.

    Args:
        path: the path.
        access: how files that are far away are reached.

    Raises:
        NotFoundError: there is no such path, or nothing to read there.
        UnknownFormatError: the file is in no format that bnstat reads.
        DamagedError: it is a git-lfs pointer or a damaged archive.
        BnstatError: it cannot be reached.
    """
    spot = find(path, access or Access())
    if spot.parent is not None and (place := under_name(spot.parent, spot.name)) is not None:
        return place
    if spot.folder is not None:
        return in_folder(spot.folder)
    raise _nothing_at(shown(path), spot)


def under_name(folder: Folder, name: str) -> ModelSet | None:
    """The models that a name in a folder stands for: a file's, or what models' files start with.

    Raises:
        NotFoundError, UnknownFormatError, DamagedError: as `locate`.
    """
    if (file := folder.file(name)) is not None:
        return _of_file(folder, file)
    for format_ in formats():
        if (found := format_.model_at_prefix(folder, name)) is not None:
            return single(found)
    return None


def in_folder(folder: Folder) -> ModelSet:
    """The models in a folder, or the one that it is.

    Raises:
        NotFoundError, DamagedError: as `locate`.
    """
    if (model := _of_folder(folder)) is not None:
        return single(model)
    for format_ in formats():
        if (place := format_.models_within(folder)) is not None:
            return place
    if models := _model_files(folder):
        return sorted_by_age(with_steps(models, [model.name or "" for model in models]))
    if models := _numbered(folder):
        return sorted_by_age(models)
    if (refused := _pointers(folder)) is not None:
        refused.refuse_lfs_pointer()
    raise NotFoundError(folder.path, "holds no model", _hint_below(folder))


def _of_file(folder: Folder, file: File) -> ModelSet:
    for format_ in formats():
        owner = format_.owner(folder, file)
        if owner is not None:
            return in_folder(owner) if isinstance(owner, Folder) else owner
    file.refuse_lfs_pointer()
    for format_ in formats():
        if (found := format_.model_in_file(folder, file)) is not None:
            return single(found if format_.named else _unnamed(folder, found))
    from bnstat.formats.foreign import refuse_foreign
    from bnstat.storage.archive import open_archive

    refuse_foreign(file)
    if (archive := open_archive(file)) is not None:
        return _in_archive(archive)
    raise UnknownFormatError(file.path, "is not in a format that bnstat knows", known_formats())


def _unnamed(folder: Folder, found: StoredModel) -> StoredModel:
    """Return a model in a single file, with a step where files beside it show that it has one."""
    if found.step is not None:
        # Listing a folder of a server costs a request, and the step is only shown.
        names = [] if folder.is_remote or not folder.can_list else folder.names()
        (found,) = with_steps([found], names)
    return found._replace(name=None)


def _in_archive(folder: Folder) -> ModelSet:
    """The models in an archive; folders with nothing beside them are walked through."""
    while _of_folder(folder) is None:
        names = folder.names()
        below = folder.folder(names[0]) if len(names) == 1 else None
        if below is None:
            break
        folder = below
    return in_folder(folder)


def _of_folder(folder: Folder) -> StoredModel | None:
    """The model that a folder is."""
    found = (format_.model_of_folder(folder) for format_ in formats())
    return next((model for model in found if model is not None), None)


def _model_files(folder: Folder) -> list[StoredModel]:
    """The models that are a file, or a few files, each."""
    beside = tuple(start for format_ in formats() for start in format_.beside)
    names = [name for name in folder.names() if not name.startswith(beside)]

    def found(are_data: bool) -> list[StoredModel]:
        def model_in_file(folder: Folder, file: File) -> StoredModel | None:
            asked = (one for one in formats() if one.is_data_beside_models == are_data)
            models = (format_.model_in_file(folder, file) for format_ in asked)
            return next((model for model in models if model is not None), None)

        return models_in_files(folder, names, model_in_file)

    return found(are_data=False) or found(are_data=True)


def _numbered(folder: Folder) -> list[StoredModel]:
    """The models in folders whose names are numbers, as TensorFlow Serving keeps them."""
    found = []
    for name in folder.names():
        below = folder.folder(name) if _NUMBER.match(name) else None
        if below is not None and (model := _of_folder(below)) is not None:
            modified = folder.modified(name)
            found.append(model._replace(name=name, step=int(name), modified=modified))
    return found


def _pointers(folder: Folder) -> File | None:
    """A git-lfs pointer among the folder's files, if there is one."""
    for name in folder.names():
        file = folder.file(name)
        if file is not None and file.is_lfs_pointer():
            return file
    return None


def _hint_below(folder: Folder) -> str:
    below = []
    for name in folder.names()[:_MOST_BELOW]:
        inner = folder.folder(name)
        if inner is not None and any(format_.is_present_in(inner) for format_ in formats()):
            below.append(f"{folder.path}/{name}")
    if below:
        return f"there are models in {listed(below)}"
    missing = [name[:_LONGEST] for format_ in formats() for name in format_.missing_from(folder)]
    if missing:
        return f"its list of checkpoints names {listed(missing)}: their files are not here"
    return "a SavedModel, a checkpoint, a .keras or an .h5 file is looked for"


def _nothing_at(path: str, spot: Spot) -> NotFoundError:
    above = path.rstrip("/").rpartition("/")[0]
    if spot.parent is None:
        return NotFoundError(path, "no such path", f"{above or '.'} does not exist")
    names = set(spot.parent.names())
    for format_ in formats():
        names = {format_.display_name(near) for near in names}
    import difflib

    near = [
        f"{above}/{name}" if above else name
        for name in difflib.get_close_matches(spot.name, names, n=3)
    ]
    hint = f"did you mean {listed(near)}?" if near else ""
    return NotFoundError(path, "no such file, folder or checkpoint", hint)
