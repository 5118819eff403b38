"""What lies on a web server, which lists nothing: files are asked for by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

from bnstat.errors import BnstatError, NotFoundError
from bnstat.storage.access import Access
from bnstat.storage.address import shown
from bnstat.storage.files import File, Folder
from bnstat.storage.remote.drivers import missing
from bnstat.storage.remote.faults import fault
from bnstat.storage.remote.files import RemoteFile, Warehouse


def find_on_the_web(url: str, access: Access) -> tuple[WebFolder | None, str, WebFolder]:
    """The parent, the name and the folder of a `Spot`.

    Raises:
        BnstatError: the driver is missing.
    """
    folder = WebFolder(_warehouse(url, access), access, url)
    above = folder.parent()
    return (None if folder.is_plain else above), folder.name, folder


def _warehouse(url: str, access: Access) -> Warehouse:
    try:
        import fsspec
        from aiohttp import ClientTimeout

        from bnstat.storage.remote.http import Http
    except ImportError as error:
        raise missing(url, "aiohttp") from error
    patience = ClientTimeout(total=None, sock_connect=10, sock_read=30)
    options = dict(access.options)
    options["client_kwargs"] = {
        "timeout": patience,
        "trust_env": True,
        **options.get("client_kwargs", {}),
    }
    try:
        fs = fsspec.filesystem("https", **options)
    except Exception as error:
        raise fault(error, shown(url)) from error
    return Warehouse(Http(fs, "https"), access)


class WebFolder(Folder):
    """A folder on a web server.

    Args:
        depot: the server.
        access: what may be taken from it.
        url: where it is; a query goes along with every file that is asked for.

    Attributes:
        is_plain: whether the URL ends with a slash, as those of folders do.
    """

    tells_names = False

    def __init__(self, depot: Warehouse, access: Access, url: str) -> None:
        match = re.fullmatch(r"(\w+://[^/?#]+)([^?#]*)(\?[^#]*)?(#.*)?", url, re.DOTALL)
        if match is None:
            raise BnstatError(shown(url), "is no valid URL")
        self._host, path, self._query = match[1], match[2], match[3] or ""
        self._inside = path.strip("/")
        self.is_plain = path.endswith("/") or not self._inside
        self.path = shown(self._host + path).rstrip("/")
        self.name = self._inside.rpartition("/")[2]
        self._depot = depot
        self._access = access
        self._known: dict[str, RemoteFile | None] = {}

    def names(self) -> list[str]:
        raise NotFoundError(
            self.path,
            "no such model, and a web server does not list what else there is",
            "give a file's URL: that of a checkpoint's .index, or its prefix",
        )

    def matching(self, prefix: str, suffix: str = "") -> list[str]:
        """Of the files that were asked for by name, those that are there."""
        return sorted(
            name
            for name, file in self._known.items()
            if file is not None and name.startswith(prefix) and name.endswith(suffix)
        )

    def file(self, name: str) -> File | None:
        self.expect([name])
        return self._known.get(name)

    def expect(self, names: Iterable[str]) -> None:
        fresh = [name for name in names if name not in self._known and _leads_down(name)]
        if fresh:
            self._known |= self._ask(fresh)

    def folder(self, name: str) -> Folder | None:
        return self._at(f"{self._inside}/{name}" if self._inside else name)

    def parent(self) -> WebFolder | None:
        return self._at(self._inside.rpartition("/")[0]) if self._inside else None

    def modified(self, name: str) -> float:
        file = self._known.get(name)
        return 0.0 if file is None else file.stat.modified

    def _at(self, inside: str) -> WebFolder:
        return WebFolder(self._depot, self._access, f"{self._host}/{inside}{self._query}")

    def _ask(self, names: Sequence[str]) -> Mapping[str, RemoteFile | None]:
        """The files of these names."""
        from bnstat.storage.remote.http import Http

        transport = self._depot.transport
        assert isinstance(transport, Http)
        base = f"{self._host}/{self._inside}".rstrip("/")
        urls = [f"{base}/{quote(name, safe='/%:@!$&()*+,;=~-._')}{self._query}" for name in names]
        found: dict[str, RemoteFile | None] = {}
        for name, url, head in zip(
            names, urls, transport.heads(urls, self._access.left), strict=True
        ):
            if isinstance(head, BaseException):
                raise fault(head, shown(url)) from head
            if head is None:
                found[name] = None
                continue
            file = found[name] = RemoteFile(self._depot, self, head.stat)
            file.name = name.rpartition("/")[2]
            self._access.take(file.path, len(head.data))
            file.pieces.add(0, head.data)
            if head.is_all and len(head.data) > 4096:
                self._access.notes.append(f"{file.path}: the server sends whole files only")
        return found


def _leads_down(name: str) -> bool:
    """Whether a name stays in its folder."""
    return all(part not in ("", ".", "..") for part in re.split(r"[/\\]", name))
