"""Where a URL leads in a store that can be listed."""

from __future__ import annotations

from bnstat.storage.access import Access
from bnstat.storage.remote.drivers import connect
from bnstat.storage.remote.files import RemoteFolder, Warehouse


def find_in_store(url: str, access: Access) -> tuple[RemoteFolder | None, str, RemoteFolder | None]:
    """The parent, the name and the folder of a `Spot`.

    Raises:
        BnstatError: there is no driver, or the store cannot be listed.
    """
    transport, path = connect(url, access)
    path = transport.canonical(path.rstrip("/"))
    transport.forget(path)
    depot = Warehouse(transport, access)
    above, _, name = path.rpartition("/")
    for known in (path, above):
        depot.recall(known)
    if depot.listing(path) is not None:
        return None, name, RemoteFolder(depot, path)
    return (
        (RemoteFolder(depot, above) if above.strip("/") or path.startswith("/") else None),
        name,
        None,
    )
