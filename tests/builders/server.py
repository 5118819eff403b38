"""A local web server that records its requests, and fails as a test specifies."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Asked:
    """A request: the path, the range as the client wrote it, and the number of bytes sent."""

    path: str
    range: str
    sent: int = 0


Fault = Callable[["Handler"], bool]
"""Answers a request and returns True, or returns False for the usual answer."""


class Server(ThreadingHTTPServer):
    """Serves a folder.

    Attributes:
        faults: name of a file -> the fault of its answers.
        other: the fault of all other files.
        ranges: False to ignore the header `Range`.
        delay: the seconds before each answer.
        most_at_once: the largest number of requests that waited at one time.
    """

    daemon_threads = True
    request_queue_size = 512  # A client that finds the queue full waits for seconds.

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.asked: list[Asked] = []
        self.faults: dict[str, Fault] = {}
        self.other: Fault | None = None
        self.ranges = True
        self.delay = 0.0
        self.most_at_once = 0
        self._waiting = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def sent(self) -> int:
        return sum(asked.sent for asked in self.asked)

    def wait(self) -> None:
        with self._lock:
            self._waiting += 1
            self.most_at_once = max(self.most_at_once, self._waiting)
        time.sleep(self.delay)
        with self._lock:
            self._waiting -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a traceback, unless the client went away."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.wait()
        self.name = unquote(urlsplit(self.path).path).lstrip("/")
        self.sent = 0
        fault = self.server.faults.get(self.name, self.server.other)
        # A test may empty the list as soon as it has the answer, so the record is not looked up.
        asked = Asked(self.path, self.headers.get("Range", ""))
        self.server.asked.append(asked)
        if fault is None or not fault(self):
            self.answer()
        asked.sent = self.sent

    do_POST = do_GET  # noqa: N815

    def status(self, code: int, **headers: str) -> bool:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def answer(self, tag: str | None = None, most: int | None = None) -> bool:
        """Send a file or a part of it, with another tag, or cut off after `most` bytes."""
        path = self.server.folder / self.name
        if not path.is_file():
            return self.status(404)
        info = path.stat()
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = 0, info.st_size
        if match and self.server.ranges:
            start, end = int(match[1]), min(int(match[2]) + 1, info.st_size)
            if start >= info.st_size:
                return self.status(416, Content_Range=f"bytes */{info.st_size}")
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{info.st_size}")
        else:
            self.send_response(200)
        self.send_header("ETag", tag or f'"{info.st_mtime_ns}-{info.st_size}"')
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        with path.open("rb") as file:
            file.seek(start)
            left = end - start if most is None else min(most, end - start)
            while left and (data := file.read(min(left, 1 << 20))):
                self.wfile.write(data)
                self.sent += len(data)
                left -= len(data)
        if most is not None:
            self.close_connection = True
        return True


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    threading.Thread(target=lambda: server.serve_forever(0.05), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
