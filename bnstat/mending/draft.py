"""A copy that is being made: in a temporary folder beside the place that it is for.

It gets its name when all of it is on the disk, or it goes and leaves nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from typing import Final

from bnstat.errors import BnstatError, ChangedError
from bnstat.mending.copying import copy_file, exchange, held_back, state
from bnstat.mending.layout import Layout

_REPLACED: Final = "replaced"


class Draft(contextlib.AbstractContextManager["Draft"]):
    """A copy of a model's files; entering makes it, leaving removes what has no name by then.

    Args:
        layout: what goes where.

    Attributes:
        folder: the temporary folder; the layout's paths hold in it.
        model: the model in it, as `load` takes it.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._states = {path: state(os.stat(path)) for path in layout.files}
        self.folder = os.path.join(layout.parent, f".bnstat-{os.urandom(8).hex()}")
        self.model = os.path.join(self.folder, layout.model)

    def __enter__(self) -> Draft:
        """Copy all files.

        Raises:
            ChangedError: one of them changes meanwhile.
            BnstatError: one cannot be read, or the copy not written.
        """
        try:
            os.mkdir(self.folder, 0o700)
            for path in self._layout.folders:
                os.mkdir(os.path.join(self.folder, path))
            for path, copy in self._layout.files.items():
                copy_file(path, os.path.join(self.folder, copy))
            if self._layout.state is not None:
                path, text = self._layout.state
                with open(os.path.join(self.folder, path), "x", encoding="utf-8") as file:
                    file.write(text)
        except BaseException as error:
            self._remove()
            if isinstance(error, OSError):
                raise self._refused(error) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        """Leave nothing but the finished copy; errors speak of it by its own name.

        Raises:
            BnstatError: in place of an error that speaks of the temporary folder.
        """
        self._remove()
        if isinstance(error, OSError):
            raise self._refused(error) from error
        if isinstance(error, BnstatError) and self.folder in error.where:
            inside = error.where.replace(self.folder, self._layout.parent)
            raise type(error)(inside, error.what, error.hint) from error

    def finish(self) -> None:
        """Give the copy its name.

        Raises:
            ChangedError: the original changed since it was opened.
            BnstatError: it cannot be written.
        """
        try:
            for path, before in self._states.items():
                if state(os.stat(path)) != before:
                    raise ChangedError(path, "changed while it was copied", "try again")
            self._settle()
            with held_back():
                self._replace() if self._layout.replaces else self._appear()
                _sync(self._layout.parent)
        except OSError as error:
            raise self._refused(error) from error

    def _settle(self) -> None:
        """Bring all files to the disk, with the permissions of the originals."""
        for path, copy in self._layout.files.items():
            copied = os.path.join(self.folder, copy)
            _sync(copied)
            self._let_be_as(path, copied)
        for copy, folder in (*self._layout.folders.items(), ("", None)):
            _sync(os.path.join(self.folder, copy))
            if folder is not None:
                self._let_be_as(folder, os.path.join(self.folder, copy))

    def _let_be_as(self, original: str, copy: str) -> None:
        """Give a copy the original's permissions and, in its place, its owner."""
        found = os.stat(original)
        if self._layout.replaces:
            with contextlib.suppress(OSError):
                os.chown(copy, found.st_uid, found.st_gid)
        mode = stat.S_IMODE(found.st_mode)
        # A folder that its owner may not write could not be moved.
        os.chmod(copy, mode | stat.S_IRWXU if stat.S_ISDIR(found.st_mode) else mode)

    def _appear(self) -> None:
        done: list[str] = []
        try:
            for name in self._layout.names:
                target = os.path.join(self._layout.parent, name)
                if os.path.lexists(target) and not os.path.isdir(target):
                    raise BnstatError(target, "is there already", "choose another name")
                os.rename(os.path.join(self.folder, name), target)
                done.append(target)
        except BaseException:
            for target in done:
                shutil.rmtree(target) if os.path.isdir(target) else os.unlink(target)
            raise

    def _replace(self) -> None:
        """Take the originals' names; should that fail on the way, give them back."""
        aside = os.path.join(self.folder, _REPLACED)
        os.mkdir(aside)
        kept = []
        try:
            for name in self._layout.names:
                target = os.path.join(self._layout.parent, name)
                new, old = os.path.join(self.folder, name), os.path.join(aside, name)
                if os.path.isdir(target):
                    if exchange(new, target):
                        continue
                    os.rename(target, old)
                else:
                    _keep(target, old)
                kept.append((old, target))
                os.replace(new, target)
        except BaseException:
            for old, target in kept:
                if not os.path.isdir(target):
                    os.replace(old, target)
            raise

    def _remove(self) -> None:
        with held_back():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _refused(self, error: OSError) -> BnstatError:
        where = self._layout.output
        named = error.filename
        if isinstance(named, str) and not named.startswith(self.folder):
            where = named
        return BnstatError(where, f"cannot be written: {error.strerror or error}")


def _keep(target: str, old: str) -> None:
    """A second name for a file, or a copy where the file system knows no such thing."""
    try:
        os.link(target, old, follow_symlinks=False)
    except OSError:
        shutil.copy2(target, old, follow_symlinks=False)


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
