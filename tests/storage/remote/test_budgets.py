"""Bytes downloaded and requests made, counted by the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

import bnstat
from bnstat.storage.stores import RemoteFile, RemoteStore, Span
from tests.builders import tables
from tests.builders.bundles import save_norm
from tests.builders.server import Server
from tests.cli.files import write_h5
from tests.output.models import layer
from tests.storage.remote.test_http import same

ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
LAYERS, CHANNELS = 53, 64
MARGIN = 64 << 10


@pytest.fixture
def huge(server: Server) -> Server:
    """A sparse file of a checkpoint of 20 GB with 53 layers."""
    rng = np.random.default_rng(0)
    start = 10_000_000_000
    entries = {"kernel": tables.entry(shape=(start // 4,), size=start)}
    data = b""
    for number in range(LAYERS):
        for role in ROLES:
            raw = rng.random(CHANNELS, np.float32).tobytes()
            place = {"offset": start + len(data), "size": len(raw)}
            entries[f"bn_{number}/{role}"] = tables.entry(raw, shape=(CHANNELS,), **place)
            # The gaps are small, like the biases of a network.
            data += raw + bytes(100)
    tables.bundle(server.folder, entries, b"")
    with (server.folder / "m.data-00000-of-00001").open("wb") as file:
        file.seek(start)
        file.write(data)
        file.truncate(2 * start)
    return server


@pytest.mark.parametrize("place", ["m", "m.index", "m.data-00000-of-00001"])
def test_a_checkpoint_of_20_gigabytes(huge: Server, place: str) -> None:
    model = bnstat.load(f"{huge.url}/{place}", eager=True)
    assert len(model) == LAYERS
    index = (huge.folder / "m.index").stat().st_size
    assert huge.sent <= index + LAYERS * 4 * CHANNELS * 4 + MARGIN
    assert len(huge.asked) <= 8
    same(model, bnstat.load(huge.folder / "m"))


def test_an_index_of_100000_variables_is_downloaded_once(server: Server) -> None:
    entries = {f"v{number:06d}": tables.entry(bytes(4), shape=(1,)) for number in range(100_000)}
    tables.bundle(server.folder, entries, bytes(4))
    bnstat.load(f"{server.url}/m.index", values=False)
    size = (server.folder / "m.index").stat().st_size
    assert size > 2_000_000
    assert sum(asked.sent for asked in server.asked if "index" in asked.path) <= size + 4096
    assert len(server.asked) <= 6


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record for each fetch whether anything was missing."""
    found: list[bool] = []
    plain = RemoteStore.fetch

    def counted(store: RemoteStore, wanted: Mapping[RemoteFile, Sequence[Span]]) -> None:
        found.append(any(wanted.values()))
        plain(store, wanted)

    monkeypatch.setattr(RemoteStore, "fetch", counted)
    return found


def test_hdf5_is_fetched_level_by_level(server: Server, trips: list[bool]) -> None:
    layers = []
    for number in range(96):
        layers.append(layer(f"conv_{number}", {"kernel": np.zeros(200_000, np.float32)}))
        norm = {role: np.full(CHANNELS, number, np.float32) for role in ROLES}
        layers.append(layer(f"bn_{number}", norm))
    write_h5(server.folder / "m.h5", *layers)
    size = (server.folder / "m.h5").stat().st_size
    model = bnstat.load(f"{server.url}/m.h5", eager=True)
    same(model, bnstat.load(server.folder / "m.h5"))
    assert len(model) == 96
    assert server.sent <= 0.05 * size
    assert trips.count(True) <= 12


@pytest.fixture(scope="module")
def efficient_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNetB4 in all of Keras's files: 475 layers, 96 of them batch norm, 80 MB."""
    import keras

    folder = tmp_path_factory.mktemp("efficient_net")
    net = keras.applications.EfficientNetB4(weights=None)
    net.save(folder / "m.h5")
    net.save(folder / "m.keras")
    net.save_weights(folder / "m.weights.h5")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "most", "share"),
    [("m.h5", 230, 0.055), ("m.keras", 235, 0.06), ("m.weights.h5", 245, 0.053)],
)
def test_of_a_large_network_little_is_fetched(
    server: Server, trips: list[bool], efficient_net: Path, name: str, most: int, share: float
) -> None:
    server.folder = efficient_net
    model = bnstat.load(f"{server.url}/{name}", eager=True)
    same(model, bnstat.load(efficient_net / name))
    assert len(model) == 96
    assert len(server.asked) <= most
    assert server.sent <= share * (efficient_net / name).stat().st_size
    assert trips.count(True) <= 12


def write_pytorch(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    torch = pytest.importorskip("torch", reason="torch writes the state dict")
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("m.npz", lambda path, arrays: np.savez(path, **arrays)),
        ("packed.npz", lambda path, arrays: np.savez_compressed(path, **arrays)),
        ("m.pth", write_pytorch),
    ],
)
def test_the_members_of_a_zip_are_fetched_together(name, write, server, trips) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for number in range(LAYERS):
        arrays[f"conv{number}.weight"] = rng.random(50_000, np.float32)
        for role in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"bn{number}.{role}"] = rng.random(CHANNELS, np.float32)
    write(server.folder / name, arrays)
    model = bnstat.load(f"{server.url}/{name}", eager=True)
    same(model, bnstat.load(server.folder / name))
    assert len(model) == LAYERS
    assert trips.count(True) <= 6
    assert server.sent <= 0.1 * (server.folder / name).stat().st_size


def test_a_run_costs_two_requests_a_checkpoint(s3_requests, tmp_path) -> None:
    import s3fs

    save_norm(tmp_path, "m", 1.0)
    fs = s3fs.S3FileSystem()
    for step in range(40):
        for ending in ("index", "data-00000-of-00001"):
            fs.pipe_file(f"models/long/m-{step}.{ending}", (tmp_path / f"m.{ending}").read_bytes())
    s3_requests.clear()
    models = list(bnstat.load_all("s3://models/long"))
    assert [name for name, _ in models] == [f"m-{step}" for step in range(40)]
    assert all(isinstance(model, bnstat.Model) and len(model) == 1 for _, model in models)
    assert 0 < len(s3_requests) <= 2 * 40 + 4
