"""A copy in progress: written to a temporary folder beside its destination.

The copy gets its final name when all files are on disk. If a step fails, no file remains.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from typing import Final

from bnstat.errors import BnstatError, ChangedError
from bnstat.mending.layout import Layout
from bnstat.signals import delaying_signals

_REPLACED: Final = "replaced"
_PIECE: Final = 1 << 26
_AT_CURRENT_FOLDER: Final = -100
_EXCHANGE: Final = 2


class Draft(contextlib.AbstractContextManager["Draft"]):
    """A copy of a model's files. Entering makes the copy; leaving removes an unfinished copy.

    Attributes:
        folder: the temporary folder; the paths in the layout are relative to it.
        model: the copied model, as a path for `load`.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._states = {path: _state(os.stat(path)) for path in layout.files}
        self.folder = os.path.join(layout.parent, f".bnstat-{os.urandom(8).hex()}")
        self.model = os.path.join(self.folder, layout.model)

    def __enter__(self) -> Draft:
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
        """Remove the temporary folder, and replace its path in error messages."""
        self._remove()
        if isinstance(error, OSError):
            raise self._refused(error) from error
        if isinstance(error, BnstatError) and self.folder in error.where:
            where = error.where.replace(self.folder, self._layout.parent)
            raise type(error)(where, error.what, error.hint) from error

    def finish(self) -> None:
        """Give the copy its final name, if the original did not change after it was opened."""
        try:
            for path, before in self._states.items():
                if _state(os.stat(path)) != before:
                    raise ChangedError(path, "changed while it was copied", "try again")
            self._sync_all()
            with delaying_signals():
                self._replace() if self._layout.replaces else self._appear()
                _sync(self._layout.parent)
        except OSError as error:
            raise self._refused(error) from error

    def _sync_all(self) -> None:
        files = [(copy, path) for path, copy in self._layout.files.items()]
        for copy, original in (*files, *self._layout.folders.items(), ("", None)):
            target = os.path.join(self.folder, copy)
            _sync(target)
            if original is not None:
                self._copy_permissions(original, target)

    def _copy_permissions(self, original: str, copy: str) -> None:
        """Copy the permissions and, if the copy replaces the original, the owner."""
        status = os.stat(original)
        if self._layout.replaces:
            with contextlib.suppress(OSError):
                os.chown(copy, status.st_uid, status.st_gid)
        mode = stat.S_IMODE(status.st_mode)
        # A folder that its owner may not write could not be moved.
        os.chmod(copy, mode | stat.S_IRWXU if stat.S_ISDIR(status.st_mode) else mode)

    def _appear(self) -> None:
        done: list[str] = []
        try:
            for name in self._layout.names:
                target = os.path.join(self._layout.parent, name)
                if os.path.lexists(target) and not os.path.isdir(target):
                    raise BnstatError(target, "exists already", "choose another name")
                os.rename(os.path.join(self.folder, name), target)
                done.append(target)
        except BaseException:
            for target in done:
                shutil.rmtree(target) if os.path.isdir(target) else os.unlink(target)
            raise

    def _replace(self) -> None:
        """Replace the original files. If a file cannot be replaced, restore all of them."""
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
        with delaying_signals():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _refused(self, error: OSError) -> BnstatError:
        where = self._layout.output
        path = error.filename
        if isinstance(path, str) and not path.startswith(self.folder):
            where = path
        return BnstatError(where, f"cannot be written: {error.strerror or error}")


def copy_file(source: str, target: str) -> None:
    """Copy the bytes of a regular file; `Draft.finish` checks that it did not change meanwhile."""
    if not os.path.isfile(source):
        raise BnstatError(source, "is not a regular file")
    with open(source, "rb") as reading, open(target, "xb") as writing:
        with contextlib.suppress(AttributeError, OSError):
            _copy_in_kernel(reading.fileno(), writing.fileno())
        # Copies what the system did not copy, which is usually nothing.
        shutil.copyfileobj(reading, writing)


def _copy_in_kernel(source: int, target: int) -> None:
    offset = 0
    while size := os.copy_file_range(source, target, _PIECE):
        # The system starts to write these bytes to disk while the next ones are copied.
        os.posix_fadvise(target, offset, size, os.POSIX_FADV_DONTNEED)
        offset += size


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Return device, inode, size and time; one of them changes if a file is written or replaced."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def exchange(path: str, other: str) -> bool:
    """Swap the names of two paths atomically with renameat2(2); return False if impossible."""
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    paths = os.fsencode(path), os.fsencode(other)
    here = _AT_CURRENT_FOLDER
    return bool(rename(here, paths[0], here, paths[1], _EXCHANGE) == 0)


def _keep(path: str, second: str) -> None:
    """Give a file a second name, or copy it if the file system has no hard links."""
    try:
        os.link(path, second, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, second, follow_symlinks=False)


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
