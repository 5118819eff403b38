"""Find candidates for models below some folders, by the names in folder listings.

Each folder is listed once, and no file is opened. A link to a folder is ignored if the walk reaches
the target by another path. Therefore no model is reported twice, and cycles end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Final, NamedTuple

from bnstat.errors import BnstatError
from bnstat.formats.detection import Finder, series_of, step_of
from bnstat.formats.locate import Group, group_files, model_folder, models_within
from bnstat.storage.files import Entry, Folder
from bnstat.text import natural_key

_MAX_DEPTH: Final = 100
_IGNORED: Final = (".git", ".hg", ".svn", "__pycache__", ".ipynb_checkpoints", "node_modules")
_VERSION: Final = re.compile(r"\d+")


class Candidate(NamedTuple):
    """A file, a group of files or a folder that may be a model."""

    path: str
    file: str  # the name of the file whose content decides if this is a model; empty if names do
    signature: str  # a hash of the names, sizes and times of its files; empty if unknown
    folder: str = ""  # the URL of its folder; empty if local
    files: tuple[Entry, ...] = ()  # if remote, the listing of its files, with paths below `folder`


class Unreadable(NamedTuple):
    """A folder that could not be listed, or a root that could not be read."""

    path: str
    error: BnstatError


@dataclass(frozen=True, slots=True)
class Choice:
    """The selection of models below a root, by globs; `newest` leaves out older checkpoints.

    A glob with a slash matches the path below the root; a glob without a slash matches any
    component of this path. `*` matches slashes too.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    newest: bool = False

    def has_model(self, path: str) -> bool:
        """Return True if the model with this path below the root is scanned."""
        is_included = not self.include or any(_matches(path, glob) for glob in self.include)
        return is_included and self.has_folder(path)

    def has_folder(self, path: str) -> bool:
        """Return True if the walk enters the folder with this path below the root."""
        return not any(_matches(path, glob) for glob in self.exclude)


def _matches(path: str, glob: str) -> bool:
    if "/" in glob:
        return fnmatchcase(path, glob.rstrip("/"))
    return any(fnmatchcase(name, glob) for name in path.split("/"))


class _Stop(NamedTuple):
    """A folder to walk; `is_link` is True if the walk reached the folder by a link."""

    folder: Folder
    inside: str  # the path below the root, with a slash at the end; empty for the root
    real: str  # the path with all links resolved
    is_link: bool = False


def walk(roots: Sequence[Folder], choice: Choice) -> Iterator[Candidate | Unreadable]:
    """Yield candidates and unreadable folders below some roots, sorted by name in each folder."""
    tops = [root.path if root.is_remote else os.path.realpath(root.path) for root in roots]
    walk = _Walk(choice, list(dict.fromkeys(tops)))
    for number, (root, top) in enumerate(zip(roots, tops, strict=True)):
        others = [other for other in walk.walked if other != top]
        if top not in tops[:number] and not any(_is_below(top, other) for other in others):
            yield from walk.below(_Stop(root, "", top))


@dataclass(slots=True)
class _Walk:
    """A walk; `walked` are the folders that it covers: the roots, and the targets of links."""

    choice: Choice
    walked: list[str]
    linked: set[str] = field(default_factory=set)

    def below(self, root: _Stop) -> Iterator[Candidate | Unreadable]:
        waiting = [root]
        while waiting:
            stop = waiting.pop()
            if stop.is_link:
                if any(_is_below(stop.real, top) for top in self.walked):
                    continue
                self.walked.append(stop.real)
                self.linked.add(stop.real)
            elif stop.real in self.linked:
                continue
            try:
                candidates, folders = self._at(stop)
            except BnstatError as error:
                yield Unreadable(stop.folder.path, error)
                continue
            yield from candidates
            for entry in reversed(folders):
                path = f"{stop.inside}{entry.name}"
                if entry.name in _IGNORED or not self.choice.has_folder(path):
                    continue
                if (folder := stop.folder.folder(entry.name)) is not None:
                    real = entry.link or os.path.join(stop.real, entry.name)
                    waiting.append(_Stop(folder, f"{path}/", real, bool(entry.link)))

    def _at(self, stop: _Stop) -> tuple[list[Candidate], list[Entry]]:
        """Return the candidates in a folder, and the entries of the subfolders to walk next."""
        folder = stop.folder
        if stop.inside.count("/") >= _MAX_DEPTH:
            raise BnstatError(folder.path, f"is nested too deeply (limit: {_MAX_DEPTH} folders)")
        entries = folder.entries()
        below = [entry for entry in entries if entry.is_folder]
        finder = model_folder(folder)
        if finder is None:
            return self._files(stop, entries), self._newest_versions(folder, below)
        candidates = []
        if self.choice.has_model(stop.inside.rstrip("/")):
            candidates.append(_folder_candidate(folder, entries, finder))
        return candidates, [entry for entry in below if not finder.has_inside(entry.name)]

    def _files(self, stop: _Stop, entries: list[Entry]) -> list[Candidate]:
        folder = stop.folder
        together = group_files(entry for entry in entries if not entry.is_folder)
        if self.choice.newest:
            together = _newest(folder, together)
        start = "" if folder.path == "." else f"{folder.path.rstrip('/')}/"
        return [
            candidate(folder, start + group.name, group.file, group.members)
            for group in sorted(together, key=lambda group: natural_key(group.name))
            if self.choice.has_model(stop.inside + group.name)
        ]

    def _newest_versions(self, folder: Folder, below: list[Entry]) -> list[Entry]:
        """Return the subfolders to walk; `choice.newest` leaves out older numbered versions."""
        if not self.choice.newest:
            return below
        versions = []
        for entry in below:
            inner = folder.folder(entry.name) if _VERSION.fullmatch(entry.name) else None
            if inner is not None and model_folder(inner) is not None:
                versions.append(entry)
        newest = max(versions, key=lambda entry: int(entry.name), default=None)
        return [entry for entry in below if entry is newest or entry not in versions]


def _folder_candidate(folder: Folder, entries: list[Entry], finder: Finder) -> Candidate:
    """Return the candidate for a folder that is a model, with the entries of the model's files."""
    parts = [entry for entry in entries if not entry.is_folder]
    waiting = [(folder, "", entry) for entry in entries if finder.has_inside(entry.name)]
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
    """Return a candidate; `parts` are the candidate's files, with names relative to `folder`."""
    if not folder.is_remote:
        return Candidate(path, file, signature(parts))
    return Candidate(path, file, signature(parts), folder.path, tuple(parts))


def _newest(folder: Folder, together: list[Group]) -> list[Group]:
    """Return groups without older checkpoints, by the run's list or, if not listed, by step."""
    run = models_within(folder)
    checkpoints = {model.name for model in run.models} if run is not None else set()
    newest = run.default.name if run is not None else None
    current = series_of(newest or "")
    last: dict[str, Group] = {}
    for group in together:
        series = series_of(group.name)
        if group.name in checkpoints and series in (None, current):
            # The run's list covers this checkpoint.
            if group.name == newest:
                last[""] = group
            continue
        key = group.name if series is None else series
        before = last.get(key)
        if before is None or (step_of(before.name) or 0) <= (step_of(group.name) or 0):
            last[key] = group
    kept = {group.name for group in last.values()}
    return [group for group in together if group.name in kept]


def signature(parts: Sequence[Entry]) -> str:
    """Return a hash that changes if a file changes; empty if a file has no known tag or time."""
    if not parts or not all(part.version for part in parts):
        return ""
    return digest("\0".join(f"{part.name}\0{part.size}\0{part.version}" for part in parts))


def digest(text: str) -> str:
    """Return a hash of a string, as 32 hexadecimal digits."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")
