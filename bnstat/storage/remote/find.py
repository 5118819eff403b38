"""Where a URL leads in a store that can be listed."""

from __future__ import annotations

from bnstat.storage.access import Access
from bnstat.storage.remote.drivers import connect
from bnstat.storage.remote.files import RemoteFolder, Warehouse


def find_in_store(
    url: str, access: Access, whole: bool = False
) -> tuple[RemoteFolder | None, str, RemoteFolder | None]:
    """The parent, the name and the folder of a `Spot`.

    Args:
        url: the URL.
        access: how the store is reached.
        whole: learn of all that is below the folder, in as few requests as the store can.

    Raises:
        BnstatError: there is no driver, or the store cannot be listed.
    """
    transport, path = connect(url, access)
    path = transport.canonical(path.rstrip("/"))
    if not access.listed:
        transport.forget(path)
    depot: Warehouse = access.depots.setdefault(transport, Warehouse(transport, access))
    above, _, name = path.rpartition("/")
    for known in (path, above):
        depot.recall(known)
    if whole:
        depot.survey(path)
    if depot.listing(path) is not None:
        return None, name, RemoteFolder(depot, path)
    return (
        (RemoteFolder(depot, above) if above.strip("/") or path.startswith("/") else None),
        name,
        None,
    )
