"""A relay in front of a server on this machine, which counts what goes through."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

_REQUEST = re.compile(rb"(?:^|\n)[A-Z]+ \S+ HTTP/1\.1\r\n")
_PIECE = 1 << 16


class Relay:
    """Counts what clients ask of a server, and what it sends them.

    Attributes:
        url: its address.
        requests: how many there were.
        sent: how many bytes came back, headers and all.
        delay: seconds that each request waits before it is passed on.
    """

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        self.delay = 0.0
        self._lock = threading.Lock()
        self.reset()
        threading.Thread(target=self._serve, daemon=True).start()

    def reset(self) -> None:
        """Count from nothing."""
        self.requests, self.sent = 0, 0

    def close(self) -> None:
        """Let nobody in any more."""
        self._door.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._door.accept()
                server = socket.create_connection(self._to)
                for one in (client, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for way in (self._ask, self._answer):
                    threading.Thread(target=way, args=(client, server), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with _ended(client, server):
            while piece := client.recv(_PIECE):
                asked = len(_REQUEST.findall(piece))
                with self._lock:
                    self.requests += asked
                time.sleep(self.delay if asked else 0)
                server.sendall(piece)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        with _ended(client, server):
            while piece := server.recv(_PIECE):
                with self._lock:
                    self.sent += len(piece)
                client.sendall(piece)


@contextmanager
def _ended(*sockets: socket.socket) -> Iterator[None]:
    """Ensure that both ends finally see the end of the stream."""
    try:
        with suppress(OSError):
            yield
    finally:
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextmanager
def relayed(url: str) -> Iterator[Relay]:
    """A relay in front of the server of a URL."""
    host, _, port = url.removeprefix("http://").partition(":")
    with closing(Relay(host, int(port))) as relay:
        yield relay
