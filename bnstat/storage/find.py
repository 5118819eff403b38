"""What lies at a path or URL: a folder, or a name in a folder that may be a file's or not."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from bnstat.errors import BnstatError
from bnstat.storage.access import Access
from bnstat.storage.address import WEB, is_url, scheme_of
from bnstat.storage.files import Folder
from bnstat.storage.local import LocalFolder, kind_of


class Spot(NamedTuple):
    """Where a path leads.

    Attributes:
        parent: the folder that the name is in; None where there is none, or where the path is
            a folder's beyond doubt.
        name: the last part of the path; what files' names start with, if it is no file's.
        folder: the folder that the path is, or is if nothing of that name is in the parent.
    """

    parent: Folder | None
    name: str
    folder: Folder | None


def find(path: str, access: Access, whole: bool = False) -> Spot:
    """Where a path or URL leads.

    Args:
        path: the path or URL.
        access: how what is far away is reached.
        whole: ask a store for all that is below the folder, rather than folder by folder.

    Raises:
        BnstatError: it cannot be looked at, or is neither a file nor a folder.
    """
    if scheme_of(path) in ("file", "local"):
        path = path.partition("://")[2].removeprefix("localhost")
    if is_url(path):
        if scheme_of(path) in WEB:
            from bnstat.storage.remote.http import find_on_the_web

            return Spot(*find_on_the_web(path, access))
        from bnstat.storage.remote.find import find_in_store

        return Spot(*find_in_store(path, access, whole))
    return _on_disk(path)


def _on_disk(path: str) -> Spot:
    parent, name = os.path.split(path.rstrip("/") or path)
    kind = kind_of(path)
    if kind == stat.S_IFDIR:
        return Spot(None, name, LocalFolder(path))
    if kind not in (None, stat.S_IFREG):
        raise BnstatError(path, "is neither a file nor a folder")
    is_there = kind_of(parent or ".") == stat.S_IFDIR
    return Spot(LocalFolder(parent or ".") if is_there else None, name, None)
