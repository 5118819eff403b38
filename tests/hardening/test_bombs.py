"""Small files that would unpack to gigabytes."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
import zipfile
from copy import copy
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import bnstat
from bnstat.storage import archive
from bnstat.storage.local import LocalFile
from tests.fuzz import handmade
from tests.fuzz.handmade import zipped
from tests.hardening.support import Judge, lines_run

MOST = 64 << 20
"""Zeros to compress: anything refused at this size is refused at any size."""


def test_a_zip_bomb(tmp_path: Path, judged: Judge) -> None:
    for name in ("config.json", "model.weights.h5", "saved_model.pb", "metadata.json"):
        members = {"metadata.json": b"{}", "config.json": b"{}", name: bytes(MOST)}
        path = tmp_path / f"{name}.keras"
        path.write_bytes(zipped(list(members.items()), zipfile.ZIP_DEFLATED))
        assert path.stat().st_size < 100_000
        assert judged(path).startswith("error")


def test_a_zip_of_overlapping_members(tmp_path: Path, judged: Judge) -> None:
    """A thousand entries for the same compressed bytes."""
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as whole:
        whole.writestr("x.h5", bytes(MOST))
        for number in range(999):
            whole.filelist.append(copy(whole.filelist[0]))
            whole.filelist[-1].filename = f"{number}.h5"
    assert len(zipfile.ZipFile(path).infolist()) == 1000
    assert judged(path).startswith("error")


def test_an_archive_of_many_folders(tmp_path: Path) -> None:
    """The work grows with the folders, not with their square."""
    work = []
    for count in (100, 400):
        path = tmp_path / f"{count}.zip"
        path.write_bytes(zipped([(f"{number}/saved_model.pb", b"") for number in range(count)]))
        work.append(lines_run(lambda path=path: bnstat.load(path), archive))
    assert 0 < work[1] < 6 * work[0]


def _crowded_zip(path: Path, entries: int, comment: bytes = b"") -> Path:
    """Write a zip with one member that its directory lists many times."""
    with zipfile.ZipFile(path, "w") as whole:
        whole.writestr("config.json", b"{}")
        whole.filelist[0].comment = comment
        whole.filelist *= entries
    return path


@pytest.mark.parametrize("suffix", ["zip", "keras", "npz", "pt"])
def test_the_directory_is_limited_before_it_is_parsed(suffix: str, tmp_path: Path) -> None:
    path = _crowded_zip(tmp_path / f"m.{suffix}", 100_001)

    def load() -> None:
        with pytest.raises(bnstat.BnstatError, match="more than 100000 files"):
            bnstat.load(path)

    assert lines_run(load, zipfile) < 2000


def test_a_long_directory(tmp_path: Path) -> None:
    path = _crowded_zip(tmp_path / "m.zip", 1100, comment=bytes(64_000))
    with pytest.raises(bnstat.BnstatError, match="directory of more than 64 MB"):
        bnstat.load(path)


def test_an_archive_of_deep_folders(tmp_path: Path, judged: Judge) -> None:
    path = tmp_path / "m.zip"
    path.write_bytes(zipped([("/".join("a" * 30_000), b"")]))
    assert lines_run(lambda: bnstat.load(path), archive) < 1000
    assert judged(path) == "error: NotFoundError"


def _pax(records: list[tuple[str, str]]) -> bytes:
    """The records of a pax header."""
    encoded = b""
    for key, value in records:
        rest = f" {key}={value}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        encoded += str(length).encode() + rest
    return encoded


def _tar(*members: tuple[bytes, bytes]) -> bytes:
    """A tar of members of these types with these bytes."""
    image = b""
    for kind, content in members:
        info = tarfile.TarInfo("saved_model.pb")
        info.type, info.size = kind, len(content)
        image += info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)
    return image + bytes(1024)


MANY = 1_000_000
SPARSE = [("GNU.sparse.minor", "0"), ("GNU.sparse.name", "x"), ("GNU.sparse.realsize", "1")]
TARS: dict[str, list[tuple[bytes, bytes]]] = {
    "a long map of a sparse member in its header": [
        (b"x", _pax([("GNU.sparse.major", "0"), ("GNU.sparse.map", "0," * MANY + "0")])),
        (b"0", b""),
    ],
    "a long map of a sparse member in its bytes": [
        (b"x", _pax([("GNU.sparse.major", "1"), *SPARSE])),
        (b"0", b"%d\n" % MANY + b"0\n" * 2 * MANY),
    ],
    "a large header that would be copied for each member": [
        (b"g", _pax([(f"k{number}", "") for number in range(60_000)])),
        *[(b"x", _pax([("mtime", "0")])), (b"0", b"")] * 1000,
    ],
    "many records": [(b"x", _pax([("a", "")]) * 200_000), (b"0", b"")] * 20,
    "a long name": [(b"L", b"x" * 4 * MANY), (b"0", b"")],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TARS)
def test_a_tar_with_large_headers(kind: str, tmp_path: Path, judged: Judge) -> None:
    path = tmp_path / "m.tar"
    path.write_bytes(_tar(*TARS[kind]))
    assert judged(path).startswith("error")
    file = LocalFile(str(path))
    tracemalloc.start()
    try:
        lines = lines_run(lambda: archive.open_archive(file), archive)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lines < 20 * MANY
    assert peak < 8 << 20


@pytest.mark.parametrize("major", ["0", "1"])
def test_a_tar_of_a_sparse_terabyte(major: str, tmp_path: Path, judged: Judge) -> None:
    sizes = [(f"GNU.sparse.{name}", str(2**40)) for name in ("realsize", "size")]
    extents = ("GNU.sparse.map", f"0,{2**40}")
    header = _pax([("GNU.sparse.major", major), ("GNU.sparse.minor", "0"), *sizes, extents])
    path = tmp_path / "m.tar"
    path.write_bytes(_tar((b"x", header), (b"0", b"1\n0\n1\n".ljust(512, b"\0"))))
    assert judged(path).startswith("error")


def test_headers_of_tars_are_read(tmp_path: Path) -> None:
    """Long names, other letters, and sizes in extended headers."""
    path = tmp_path / "m.tar"
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        names = ["a/" * 90 + "x", *(["b\u00e4"] if form != tarfile.USTAR_FORMAT else [])]
        with tarfile.open(path, "w", format=form) as whole:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 3
                whole.addfile(info, io.BytesIO(b"123"))
        folder = archive.open_archive(LocalFile(str(path)))
        assert [folder.file(name).read() for name in names] == [b"123"] * len(names)
    path.write_bytes(_tar((b"x", _pax([("size", "5"), ("path", "c")])), (b"0", b"12345")))
    assert archive.open_archive(LocalFile(str(path))).file("c").read() == b"12345"


def _tar_header(name: str, size: bytes) -> bytes:
    """The header of a regular file whose size is written so."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("size", [-512, -1024, -1, 2**62, 2**63 - 1, 2**70])
def test_a_tar_with_impossible_sizes(size: int, tmp_path: Path, judged: Judge) -> None:
    """A negative size has sent Python's tarfile in circles (CVE-2025-8194)."""
    sign = b"\xff" if size < 0 else b"\x80"
    number = sign + (size % (1 << 88)).to_bytes(11, "big")
    first = _tar_header("a", b"%011o\0" % 512) + bytes(512)
    path = tmp_path / "m.tar"
    path.write_bytes(first + _tar_header("b", number) + bytes(1024))
    assert judged(path).startswith("error")


GZIP: dict[str, Any] = {"compression": "gzip", "compression_opts": 9}
DATASETS: dict[str, tuple[int, dict[str, Any]]] = {
    "unwritten": (1, {"shape": (2**28,), "dtype": "f4"}),
    "compressed": (1, {"shape": (2**28,), "dtype": "f4", "chunks": (2**16,), **GZIP}),
    "a petabyte": (1, {"shape": (2**50,), "dtype": "f4", "chunks": (2**16,)}),
    "never written chunks": (1, {"shape": (2**27,), "dtype": "f8", "chunks": (2**10,)}),
    # A thousand times 10 MB: each alone would be read.
    "many unwritten": (250, {"shape": (2_500_000,), "dtype": "f4"}),
}
ZEROS = pytest.param(
    1, {"data": np.zeros(2**25, "f4"), "chunks": (2**17,), **GZIP}, marks=pytest.mark.slow
)


@pytest.mark.parametrize(
    ("layers", "dataset"), [*DATASETS.values(), ZEROS], ids=[*DATASETS, "written zeros"]
)
def test_datasets_that_claim_more_than_the_file_has(layers, dataset, tmp_path, judged) -> None:
    def fill(file: h5py.File) -> None:
        for number in range(layers):
            for index in range(4):
                path = f"layers/batch_normalization_{number}/vars/{index}"
                file.create_dataset(path, **dataset)

    path = tmp_path / "m.weights.h5"
    path.write_bytes(handmade.hdf5(fill))
    assert path.stat().st_size < 2 << 20
    assert judged(path) == "error: DamagedError"
