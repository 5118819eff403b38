"""From roots to candidates: what may be a model, told by the names in the folders' listings.

Folders are listed once each, and no file is opened. Folders that links lead to are walked as well,
unless they lie where the walk comes anyway: so nothing is told twice, and no loop is endless.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Final, NamedTuple

from bnstat.errors import BnstatError
from bnstat.formats.detection import Format, series_of, step_of
from bnstat.formats.locate import Group, group_files, model_folder, newest_of_run
from bnstat.storage.files import Entry, Folder

_DEEPEST: Final = 100
_IGNORED: Final = (".git", ".hg", ".svn", "__pycache__", ".ipynb_checkpoints", "node_modules")
_VERSION: Final = re.compile(r"\d+")


class Candidate(NamedTuple):
    """What may be a model.

    Attributes:
        path: where it lies; other commands take it.
        file: the name of the file beside it whose content tells whether it is a model; empty
            where there is no doubt.
        signature: of the names, sizes and times of all its files; empty where these are unknown.
        folder: where it is far away, the URL of the folder that it is, or is in; else empty.
        files: then what was listed of its files, by their paths from there.
    """

    path: str
    file: str
    signature: str
    folder: str = ""
    files: tuple[Entry, ...] = ()


class Unreadable(NamedTuple):
    """A folder that could not be listed, or a root that is not there."""

    path: str
    error: BnstatError


Found = Candidate | Unreadable


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of the models below a root are wanted.

    Globs match the path below the root, or any name on it where they have no slash; `*` crosses
    slashes.

    Attributes:
        include: only what one of these globs matches; all where there are none.
        exclude: not what one of these matches; folders that it matches are not entered.
        newest: of the checkpoints of a training run, and of numbered versions, the newest alone.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    newest: bool = False

    def takes(self, inside: str) -> bool:
        """Whether the model is wanted whose path below the root is this."""
        return not self.include or any(_matches(inside, glob) for glob in self.include)

    def enters(self, inside: str) -> bool:
        """Whether a folder, or a model, is not left out."""
        return not any(_matches(inside, glob) for glob in self.exclude)


def _matches(inside: str, glob: str) -> bool:
    if "/" in glob:
        return fnmatchcase(inside, glob.rstrip("/"))
    return any(fnmatchcase(name, glob) for name in inside.split("/"))


class _Stop(NamedTuple):
    """A folder on the way.

    Attributes:
        folder: the folder.
        inside: its path below the root, with a slash at the end; empty for the root.
        real: where it is, as the system knows it.
        is_link: whether a link leads there.
    """

    folder: Folder
    inside: str
    real: str
    is_link: bool = False


def walk(roots: Sequence[Folder], choice: Choice) -> Iterator[Found]:
    """What is found below some folders, folder by folder, in the order of the names.

    A root that lies below another is not walked twice.
    """
    tops = [_real(root) for root in roots]
    walking = _Walk(choice, list(dict.fromkeys(tops)))
    for number, (root, top) in enumerate(zip(roots, tops, strict=True)):
        others = [other for other in walking.walked if other != top]
        if top not in tops[:number] and not any(_is_below(top, other) for other in others):
            yield from walking.below(_Stop(root, "", top))


@dataclass(slots=True)
class _Walk:
    """A walk below some roots.

    Attributes:
        choice: what is wanted.
        walked: the folders all below which the walk comes: the roots, and where links led.
        linked: where links led.
    """

    choice: Choice
    walked: list[str]
    linked: set[str] = field(default_factory=set)

    def below(self, root: _Stop) -> Iterator[Found]:
        waiting = [root]
        while waiting:
            stop = waiting.pop()
            if self._was_at(stop):
                continue
            try:
                found, below = self._at(stop)
            except BnstatError as error:
                yield Unreadable(stop.folder.path, error)
                continue
            yield from found
            waiting += reversed(list(self._entered(stop, below)))

    def _was_at(self, stop: _Stop) -> bool:
        """Whether the walk comes, or came, to the same folder by another way."""
        if not stop.is_link:
            return stop.real in self.linked
        if any(_is_below(stop.real, top) for top in self.walked):
            return True
        self.walked.append(stop.real)
        self.linked.add(stop.real)
        return False

    def _at(self, stop: _Stop) -> tuple[list[Candidate], list[Entry]]:
        """What is found in a folder, and the folders in it that are to be entered."""
        folder, inside = stop.folder, stop.inside
        if inside.count("/") >= _DEEPEST:
            raise BnstatError(folder.path, f"lies more than {_DEEPEST} folders deep")
        entries = folder.entries()
        below = [entry for entry in entries if entry.is_folder]
        if (format_ := model_folder(folder)) is None:
            return self._in_files(folder, inside, entries), self._of_versions(folder, below)
        found = [_whole(folder, entries, format_)] if self._wants(inside) else []
        return found, [entry for entry in below if not format_.has_inside(entry.name)]

    def _entered(self, stop: _Stop, below: Iterable[Entry]) -> Iterator[_Stop]:
        for entry in below:
            path = f"{stop.inside}{entry.name}"
            if entry.name in _IGNORED or not self.choice.enters(path):
                continue
            if (inner := stop.folder.folder(entry.name)) is not None:
                real = entry.link or os.path.join(stop.real, entry.name)
                yield _Stop(inner, f"{path}/", real, bool(entry.link))

    def _wants(self, inside: str) -> bool:
        return self.choice.takes(inside.rstrip("/")) and self.choice.enters(inside.rstrip("/"))

    def _in_files(self, folder: Folder, inside: str, entries: list[Entry]) -> list[Candidate]:
        together = group_files(entry for entry in entries if not entry.is_folder)
        if self.choice.newest:
            together = _newest(folder, together)
        start = "" if folder.path == "." else f"{folder.path.rstrip('/')}/"
        return [
            candidate(folder, start + group.name, group.file, group.members)
            for group in together
            if self._wants(inside + group.name)
        ]

    def _of_versions(self, folder: Folder, below: list[Entry]) -> list[Entry]:
        """The folders without the older ones of numbered models, where the newest is wanted."""
        if not self.choice.newest:
            return below
        versions = []
        for entry in below:
            inner = folder.folder(entry.name) if _VERSION.fullmatch(entry.name) else None
            if inner is not None and model_folder(inner) is not None:
                versions.append(entry)
        newest = max(versions, key=lambda entry: int(entry.name), default=None)
        return [entry for entry in below if entry is newest or entry not in versions]


def _whole(folder: Folder, entries: list[Entry], format_: Format) -> Candidate:
    """The model that a folder is, with all files in it that are a part of it."""
    parts = [entry for entry in entries if not entry.is_folder]
    waiting = [(folder, "", entry) for entry in entries if format_.has_inside(entry.name)]
    while waiting:
        above, inside, entry = waiting.pop()
        inner = above.folder(entry.name) if entry.is_folder and not entry.link else None
        if inner is None:
            continue
        inside = f"{inside}{entry.name}/"
        for part in inner.entries():
            if part.is_folder:
                waiting.append((inner, inside, part))
            else:
                parts.append(part._replace(name=inside + part.name))
    return candidate(folder, folder.path, "", parts)


def candidate(folder: Folder, path: str, file: str, parts: Sequence[Entry]) -> Candidate:
    """What may be a model, of these files that are in a folder and below it."""
    told = signature(parts) if parts and all(part.tag for part in parts) else ""
    if not folder.is_remote:
        return Candidate(path, file, told)
    return Candidate(path, file, told, folder.path, tuple(parts))


def _newest(folder: Folder, found: list[Group]) -> list[Group]:
    """Without the older of those that are a training run's, by its own list or by their steps."""
    run, newest = newest_of_run(folder)
    current = series_of(newest or "")
    last: dict[str, Group] = {}
    for group in found:
        series = series_of(group.name)
        if group.name in run and series in (None, current):
            # One of the run that the folder's own list is of.
            if group.name == newest:
                last[""] = group
            continue
        key = group.name if series is None else series
        before = last.get(key)
        if before is None or (step_of(before.name) or 0) <= (step_of(group.name) or 0):
            last[key] = group
    kept = {group.name for group in last.values()}
    return [group for group in found if group.name in kept]


def signature(parts: Iterable[Entry]) -> str:
    """A short text that changes when one of the files does."""
    told = "\0".join(f"{part.name}\0{part.size}\0{part.tag}" for part in parts)
    return blake2b(told.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _real(folder: Folder) -> str:
    return folder.path if folder.is_remote else os.path.realpath(folder.path)


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")
