"""A copy in progress: written to a temporary folder beside its destination.

The copy gets its final name when all files are on disk. If a step fails, no file remains.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from typing import Final

from bnstat.errors import BnstatError, ChangedError, UnsupportedError
from bnstat.mending.layout import Layout
from bnstat.signals import delaying_signals

_PIECE: Final = 1 << 26


@contextlib.contextmanager
def drafted(layout: Layout) -> Iterator[str]:
    """Copy a model's files, yield the path of the copied model, and give the copy its final name.

    The caller writes new values in the `with` block. Raise a `ChangedError` if the original changed
    in the meantime. If anything fails, no file of the copy remains.
    """
    states = {path: _state(path) for path in layout.files}
    folder = os.path.join(layout.parent, f".bnstat-{os.urandom(8).hex()}")
    try:
        os.mkdir(folder, 0o700)
        for path in layout.folders:
            os.mkdir(os.path.join(folder, path))
        for path, copy in layout.files.items():
            copy_file(path, os.path.join(folder, copy))
        if layout.state is not None:
            path, text = layout.state
            with open(os.path.join(folder, path), "x", encoding="utf-8") as file:
                file.write(text)
        yield os.path.join(folder, layout.model)
        for path, state in states.items():
            if _state(path) != state:
                raise ChangedError(path, "changed while it was copied", "try again")
        _sync_all(layout, folder)
        with delaying_signals():
            (_replace if layout.replaces else _appear)(layout, folder)
            _sync(layout.parent)
    except OSError as error:
        is_original = isinstance(error.filename, str) and not error.filename.startswith(folder)
        where = error.filename if is_original else layout.output
        raise BnstatError(where, f"cannot be written: {error.strerror or error}") from error
    except BnstatError as error:
        if folder not in error.where:
            raise
        where = error.where
        if isinstance(error, UnsupportedError):
            for path, copy in layout.files.items():
                where = where.replace(os.path.join(folder, copy), path)
        where = where.replace(folder, layout.parent)
        raise type(error)(where, error.what, error.hint) from error
    finally:
        with delaying_signals():
            shutil.rmtree(folder, ignore_errors=True)


def _sync_all(layout: Layout, folder: str) -> None:
    """Flush the copy to disk. Copy the permissions and, for a replaced original, the owner."""
    copies = [(copy, path) for path, copy in layout.files.items()]
    for copy, original in (*copies, *layout.folders.items(), ("", None)):
        target = os.path.join(folder, copy)
        _sync(target)
        if original is None:
            continue
        status = os.stat(original)
        if layout.replaces:
            with contextlib.suppress(OSError):
                os.chown(target, status.st_uid, status.st_gid)
        mode = stat.S_IMODE(status.st_mode)
        # A folder that its owner may not write could not be moved.
        os.chmod(target, mode | stat.S_IRWXU if stat.S_ISDIR(status.st_mode) else mode)


def _appear(layout: Layout, folder: str) -> None:
    with contextlib.ExitStack() as undo:
        for name in layout.names:
            target = os.path.join(layout.parent, name)
            if os.path.lexists(target) and not os.path.isdir(target):
                raise BnstatError(target, "exists already", "choose another name")
            os.rename(os.path.join(folder, name), target)
            undo.callback(shutil.rmtree if os.path.isdir(target) else os.unlink, target)
        undo.pop_all()


def _replace(layout: Layout, folder: str) -> None:
    """Replace the original files. If a file cannot be replaced, restore all of them."""
    aside = os.path.join(folder, "replaced")
    os.mkdir(aside)
    with contextlib.ExitStack() as undo:
        for name in layout.names:
            target = os.path.join(layout.parent, name)
            new, old = os.path.join(folder, name), os.path.join(aside, name)
            if os.path.isdir(target):
                if exchange(new, target):
                    continue
                os.rename(target, old)
            else:
                try:
                    os.link(target, old, follow_symlinks=False)
                except OSError:  # The file system has no hard links.
                    shutil.copy2(target, old, follow_symlinks=False)
            undo.callback(os.replace, old, target)
            os.replace(new, target)
        undo.pop_all()


def copy_file(source: str, target: str) -> None:
    """Copy the bytes of a regular file; `drafted` checks that the file did not change."""
    if not os.path.isfile(source):
        raise BnstatError(source, "is not a regular file")
    with open(source, "rb") as reading, open(target, "xb") as writing:
        with contextlib.suppress(AttributeError, OSError):
            offset, to = 0, writing.fileno()
            while size := os.copy_file_range(reading.fileno(), to, _PIECE):
                # The system starts to write these bytes to disk while the next ones are copied.
                os.posix_fadvise(to, offset, size, os.POSIX_FADV_DONTNEED)
                offset += size
        # Copies what the system did not copy, which is usually nothing.
        shutil.copyfileobj(reading, writing)


def _state(path: str) -> tuple[int, ...]:
    """Return device, inode, size and time, to notice that a file was written or replaced."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def exchange(path: str, other: str) -> bool:
    """Swap the names of two paths atomically with renameat2(2); return False if impossible."""
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    here, swap = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(path), here, os.fsencode(other), swap) == 0)


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
