"""Models inside zip and tar archives, read where they are."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, DamagedError, NotFoundError
from tests.builders import named
from tests.builders.oracle import assert_layers

# Handles on archives live as long as the model and go with it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

KINDS = ["zip", "stored.zip", "tar", "tar.gz", "tgz"]


def pack(source: Path, target: Path, inside: str = "", folders: bool = True) -> Path:
    """Everything in a folder, packed into an archive below the folder `inside`."""
    files = sorted(path for path in source.rglob("*") if folders or path.is_file())
    if target.suffix == ".zip":
        kind = zipfile.ZIP_STORED if "stored" in target.name else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(target, "w", kind) as archive:
            for path in files:
                archive.write(path, f"{inside}{path.relative_to(source)}")
    else:
        mode: Any = "w" if target.suffix == ".tar" else "w:gz"
        with tarfile.open(target, mode) as archive:
            for path in files:
                archive.add(path, f"{inside}{path.relative_to(source)}", recursive=False)
    return target


@pytest.fixture(scope="module")
def digits() -> Path:
    return Path(__file__).parents[1] / "data" / "digits"


@pytest.mark.parametrize("inside", ["", "model/", "./", "a/b/c/"])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_models(tmp_path: Path, digits: Path, kind: str, inside: str) -> None:
    archive = pack(digits / "saved_model", tmp_path / f"m.{kind}", inside)
    plain, packed = bnstat.load(digits / "saved_model"), bnstat.load(archive)
    expected = {layer.name: {r: layer.array(r) for r in layer.variables} for layer in plain}
    assert_layers(packed, expected)
    assert [layer.epsilon for layer in packed] == [layer.epsilon for layer in plain]
    assert packed.source.format == "saved-model"
    assert os.listdir(tmp_path) == [archive.name]


@pytest.mark.parametrize("kind", KINDS)
def test_runs_of_checkpoints(tmp_path: Path, digits: Path, kind: str) -> None:
    archive = pack(digits / "run", tmp_path / f"m.{kind}", "run/", folders=False)
    for options in ({}, {"checkpoint": "model-100"}, {"step": 0}):
        plain = bnstat.load(digits / "run", **options)
        packed = bnstat.load(archive, **options)
        assert packed.source.checkpoint == plain.source.checkpoint
        expected = {layer.name: {r: layer.array(r) for r in layer.variables} for layer in plain}
        assert_layers(packed, expected)


def test_whatever_its_name(tmp_path: Path, digits: Path) -> None:
    archive = pack(digits / "saved_model", tmp_path / "m.tar.gz").rename(tmp_path / "m.h5")
    assert len(bnstat.load(archive)) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_and_damaged(tmp_path: Path, digits: Path, kind: str) -> None:
    archive = pack(digits / "saved_model", tmp_path / f"m.{kind}")
    whole = archive.read_bytes()
    for cut in (600, len(whole) // 2, len(whole) * 3 // 4):
        archive.write_bytes(whole[:cut])
        with pytest.raises(BnstatError):
            bnstat.load(archive, eager=True)
    generator = np.random.default_rng(1)
    for position in generator.integers(len(whole), size=40):
        changed = bytearray(whole)
        changed[position] ^= 0x55
        archive.write_bytes(changed)
        try:
            bnstat.load(archive, eager=True)
        except BnstatError:
            continue


@pytest.mark.slow
def test_a_zip_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m.index", bytes(300 << 20))
    with pytest.raises(BnstatError, match="grows more than"):
        bnstat.load(tmp_path / "m.zip")


@pytest.mark.slow
def test_a_tar_bomb(tmp_path: Path) -> None:
    import gzip

    with gzip.open(tmp_path / "m.tar.gz", "wb") as stream:
        for _ in range(300):
            stream.write(bytes(1 << 20))
    with pytest.raises(BnstatError, match="grows more than"):
        bnstat.load(tmp_path / "m.tar.gz")


def test_members_that_point_out_of_the_archive(tmp_path: Path) -> None:
    prefix = named.save(tmp_path / "m", {"x": np.ones(2)})
    index = Path(f"{prefix}.index")
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for name in ("../out.index", "a/../../other.index"):
            archive.write(index, name)
    with pytest.raises(NotFoundError):
        bnstat.load(tmp_path / "m.zip")
    with tarfile.open(tmp_path / "m.tar", "w") as archive_:
        link = tarfile.TarInfo("link.index")
        link.type, link.linkname = tarfile.SYMTYPE, str(index)
        archive_.addfile(link)
        hard = tarfile.TarInfo("hard.index")
        hard.type, hard.linkname = tarfile.LNKTYPE, str(index)
        archive_.addfile(hard)
    with pytest.raises(NotFoundError):
        bnstat.load(tmp_path / "m.tar")


def test_empty_archives(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz"):
        pass
    with zipfile.ZipFile(tmp_path / "m.zip", "w"):
        pass
    for name in ("m.tar.gz", "m.zip"):
        with pytest.raises(BnstatError):
            bnstat.load(tmp_path / name)


def test_an_encrypted_member(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m.index", b"x" * 100)
    data = bytearray(buffer.getvalue())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "m.zip").write_bytes(data)
    with pytest.raises(DamagedError):
        bnstat.load(tmp_path / "m.zip")


def test_names_of_thousands_of_digits(tmp_path: Path) -> None:
    for name in (f"m-{'9' * 6000}.index", f"{'9' * 6000}/saved_model.pb"):
        with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
            archive.writestr(name, b"x")
        with pytest.raises(BnstatError):
            bnstat.load(tmp_path / "m.zip")


def test_tensorflows_reader_cannot(tmp_path: Path, digits: Path) -> None:
    archive = pack(digits / "saved_model", tmp_path / "m.zip")
    with pytest.raises(BnstatError, match="unpack it"):
        bnstat.load(archive, reader="tensorflow")
