"""Which file or folder a path or URL leads to."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from bnstat.errors import BnstatError
from bnstat.storage.access import WEB, Access, is_url, scheme_of
from bnstat.storage.files import Folder
from bnstat.storage.local import LocalFolder, kind_of


class Spot(NamedTuple):
    """Where a path leads.

    Attributes:
        parent: the folder that contains the name; None if it does not exist, or if the path is
            certainly a folder's.
        name: the last part of the path: the name of a file, or the prefix of names.
        folder: the folder at the path; on a web server, a folder if `parent` has no such file.
    """

    parent: Folder | None
    name: str
    folder: Folder | None


def find(path: str, access: Access, recursive: bool = False) -> Spot:
    """Return where a path or URL leads.

    If `recursive` is true, everything below a remote folder is listed at once.

    Raises:
        BnstatError: it is neither a file nor a folder, or cannot be reached.
    """
    scheme = scheme_of(path)
    if scheme in ("file", "local"):
        path = path.partition("://")[2].removeprefix("localhost")
    if not is_url(path):
        return _on_disk(path)
    if scheme in WEB:
        try:
            from bnstat.storage.remote.http import find_on_web
        except ImportError as error:
            from bnstat.storage.remote.transport import missing_driver

            raise missing_driver(path, "aiohttp") from error
        return Spot(*find_on_web(path, access))
    return _in_store(path, access, recursive)


def _on_disk(path: str) -> Spot:
    parent, name = os.path.split(path.rstrip("/") or path)
    kind = kind_of(path)
    if kind == stat.S_IFDIR:
        return Spot(None, name, LocalFolder(path))
    if kind not in (None, stat.S_IFREG):
        raise BnstatError(path, "is neither a file nor a folder")
    has_parent = kind_of(parent or ".") == stat.S_IFDIR
    return Spot(LocalFolder(parent or ".") if has_parent else None, name, None)


def _in_store(url: str, access: Access, recursive: bool) -> Spot:
    from bnstat.storage.remote.store import RemoteFolder, RemoteStore
    from bnstat.storage.remote.transport import connect

    transport, path = connect(url, access)
    path = transport.canonical(path.rstrip("/"))
    if not access.listed:
        transport.forget(path)
    store: RemoteStore = access.stores.setdefault(transport, RemoteStore(transport, access))
    above, _, name = path.rpartition("/")
    store.reuse_listing(path)
    store.reuse_listing(above)
    if recursive:
        store.list_tree(path)
    if store.listing(path) is not None:
        return Spot(None, name, RemoteFolder(store, path))
    has_parent = above.strip("/") or path.startswith("/")
    return Spot(RemoteFolder(store, above) if has_parent else None, name, None)
