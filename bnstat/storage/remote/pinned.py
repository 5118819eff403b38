"""Stores that can be asked for bytes on condition that the object is what the listing told of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Final

from bnstat.errors import BnstatError, ChangedError
from bnstat.storage.address import shown
from bnstat.storage.remote.faults import is_broken_off
from bnstat.storage.remote.transport import Piece, Transport

_PARALLEL: Final = 64

_WAITS: Final = (0.2, 0.8)
"""How many seconds to wait before what broke off is asked for again."""


class Pinned(Transport):
    """A store in which an object that was replaced is an error, not other bytes."""

    def _all(self, path: str) -> Iterable[dict[str, Any]]:
        found = super()._all(path)
        # The driver would keep it all, for as long as the process lives.
        self._fs.invalidate_cache()
        return found

    def _cat(self, pieces: Sequence[Piece]) -> list[Any]:
        from fsspec.asyn import sync

        result: list[Any] = sync(self._fs.loop, self._gather, pieces)
        return result

    async def _gather(self, pieces: Sequence[Piece]) -> list[Any]:
        import asyncio

        gate = asyncio.Semaphore(_PARALLEL)

        async def one(piece: Piece) -> bytes:
            async with gate:
                for wait in _WAITS:
                    try:
                        return await self._get(piece)
                    except Exception as error:
                        if not is_broken_off(error):
                            raise
                    await asyncio.sleep(wait)
                return await self._get(piece)

        return await asyncio.gather(*(one(piece) for piece in pieces), return_exceptions=True)

    @abstractmethod
    async def _get(self, piece: Piece) -> bytes:
        """The bytes, of the object that the listing told of."""


class S3(Pinned):
    """S3, where objects have ETags."""

    def __init__(self, fs: Any, scheme: str, url: str = "") -> None:
        super().__init__(fs, scheme, url)
        # The client tries again by itself; tries of tries take long to end.
        fs.retries = 1

    def _all(self, path: str) -> Iterable[dict[str, Any]]:
        from fsspec.asyn import sync

        # Its `find` compares all folders with each other.
        found: list[dict[str, Any]] = sync(self._fs.loop, self._fs._lsdir, path, delimiter="")
        return found

    async def _get(self, piece: Piece) -> bytes:
        bucket, key, version = self._fs.split_path(piece.stat.path)
        answer = await self._fs._call_s3(
            "get_object",
            Bucket=bucket,
            Key=key,
            Range=f"bytes={piece.start}-{piece.end - 1}",
            **({"IfMatch": piece.stat.tag} if piece.stat.tag else {}),
            **({"VersionId": version} if version else {}),
        )
        async with answer["Body"] as body:
            data: bytes = await body.read()
            return data


class Gcs(Pinned):
    """Google Cloud Storage, where objects have generations."""

    async def _get(self, piece: Piece) -> bytes:
        tag, url = piece.stat.tag, self._fs.url(piece.stat.path)
        head = {"Range": f"bytes={piece.start}-{piece.end - 1}"}
        data: bytes
        try:
            _, data = await self._fs._call(
                "GET", f"{url}&generation={tag}" if tag else url, headers=head
            )
        except FileNotFoundError as error:
            where = self.url(piece.stat.path)
            raise ChangedError(where, "changed while it was read", "try again later") from error
        return data


class Azure(Pinned):
    """Azure's blobs, which have ETags.

    A URL may name the account: `abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH`.
    """

    def __init__(self, fs: Any, scheme: str, url: str = "") -> None:
        super().__init__(fs, scheme, url)
        self._host = _host_of(url)
        account = self.named(url).get("account_name")
        # The driver prefers a connection string, be it of the environment, to an account.
        has_string = account is not None and fs.connection_string is not None
        actual = fs.service_client.account_name if has_string else account
        if account != actual:
            raise BnstatError(
                shown(url),
                f"names the account {account!r}, and the connection string is for {actual!r}",
                "leave it out of the storage options, and unset AZURE_STORAGE_CONNECTION_STRING",
            )

    @staticmethod
    def named(url: str) -> dict[str, str]:
        account, _, domain = _host_of(url).partition(".")
        named = {"account_name": account} if account else {}
        if domain not in ("", _DFS, _BLOB):
            named["account_host"] = f"{account}.{domain.replace('dfs.', 'blob.', 1)}"
        return named

    def url(self, path: str) -> str:
        container, slash, blob = path.removeprefix("/").partition("/")
        host = f"@{self._host}" if self._host else ""
        return shown(f"{self._scheme}://{container}{host}{slash}{blob}")

    async def _get(self, piece: Piece) -> bytes:
        from azure.core import MatchConditions

        container, blob, version = self._fs.split_path(piece.stat.path)
        tag = piece.stat.tag
        condition = {"etag": tag, "match_condition": MatchConditions.IfNotModified} if tag else {}
        async with self._fs.service_client.get_blob_client(container, blob) as client:
            stream = await client.download_blob(
                offset=piece.start,
                length=piece.end - piece.start,
                version_id=version,
                **condition,
            )
            data: bytes = await stream.readall()
            return data


_BLOB: Final = "blob.core.windows.net"
_DFS: Final = "dfs.core.windows.net"


def _host_of(url: str) -> str:
    """Return the host of an account that a URL names; empty where it names a container alone."""
    _, at, host = url.partition("://")[2].partition("/")[0].rpartition("@")
    return host if at or host.endswith((f".{_DFS}", f".{_BLOB}")) else ""
