"""Small files that would unpack to gigabytes."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.fuzz import handmade
from tests.fuzz.handmade import zipped
from tests.hardening.support import Judge

MOST = 64 << 20
"""Zeros to compress: what is refused at this size is refused at any."""


def test_a_zip_bomb(tmp_path: Path, judged: Judge) -> None:
    zeros = bytes(MOST)
    for name in ("config.json", "model.weights.h5", "saved_model.pb", "metadata.json"):
        members = {"metadata.json": b"{}", "config.json": b"{}", name: zeros}
        path = tmp_path / f"{name}.keras"
        path.write_bytes(zipped(list(members.items()), zipfile.ZIP_DEFLATED))
        assert path.stat().st_size < 100_000
        assert judged(path).startswith("error")


def test_a_zip_whose_members_all_lie_over_one_another(tmp_path: Path, judged: Judge) -> None:
    """One compressed megabyte that a thousand entries name: each is all there is to see."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = packed.compress(bytes(MOST)) + packed.flush()
    name = b"x.h5"
    local = b"PK\3\4" + bytes(22) + len(name).to_bytes(2, "little") + bytes(2) + name
    local = local[:8] + b"\x08\0" + local[10:]
    central = b""
    for number in range(1000):
        each = b"%d.h5" % number
        entry = bytearray(b"PK\1\2" + bytes(42))
        entry[10:12] = b"\x08\0"
        entry[20:24] = len(raw).to_bytes(4, "little")
        entry[24:28] = MOST.to_bytes(4, "little")
        entry[28:30] = len(each).to_bytes(2, "little")
        central += bytes(entry) + each
    start = len(local) + len(raw)
    end = b"PK\5\6" + bytes(4) + (1000).to_bytes(2, "little") * 2
    end += len(central).to_bytes(4, "little") + start.to_bytes(4, "little") + bytes(2)
    path = tmp_path / "m.zip"
    path.write_bytes(local + raw + central + end)
    assert len(zipfile.ZipFile(path).infolist()) == 1000
    assert judged(path).startswith("error")


def test_a_gzip_bomb(tmp_path: Path, judged: Judge) -> None:
    path = tmp_path / "m.tar.gz"
    with gzip.open(path, "wb") as stream:
        for _ in range(16):
            stream.write(bytes(MOST))
    assert judged(path) == "error: BnstatError"


def test_a_tar_of_a_sparse_terabyte(tmp_path: Path, judged: Judge) -> None:
    image = io.BytesIO()
    with tarfile.open(fileobj=image, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for major in ("0", "1"):
            info = tarfile.TarInfo("saved_model.pb")
            info.pax_headers = {
                "GNU.sparse.major": major,
                "GNU.sparse.minor": "0",
                "GNU.sparse.realsize": str(2**40),
                "GNU.sparse.size": str(2**40),
                "GNU.sparse.map": f"0,{2**40}",
            }
            info.size = 512
            archive.addfile(info, io.BytesIO(b"1\n0\n1\n".ljust(512, b"\0")))
    path = tmp_path / "m.tar"
    path.write_bytes(image.getvalue())
    assert judged(path).startswith("error")


def _tar_header(name: str, size: bytes) -> bytes:
    """The header of a regular file whose size is written so."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("size", [-512, -1024, -1, 2**62, 2**63 - 1, 2**70])
def test_a_tar_whose_sizes_lead_anywhere(size: int, tmp_path: Path, judged: Judge) -> None:
    """A negative size has sent Python's tarfile in circles (CVE-2025-8194)."""
    sign = b"\xff" if size < 0 else b"\x80"
    number = sign + (size % (1 << 88)).to_bytes(11, "big")
    first = _tar_header("a", b"%011o\0" % 512) + bytes(512)
    path = tmp_path / "m.tar"
    path.write_bytes(first + _tar_header("b", number) + bytes(1024))
    assert judged(path).startswith("error")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_ways_of_compressing_that_take_memory_at_will(
    method: int, tmp_path: Path, judged: Judge
) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes(zipped([("config.json", b"{}"), ("model.weights.h5", b"x" * 99)], method))
    assert judged(path) == "error: UnsupportedError"


@pytest.mark.parametrize(
    "dataset",
    [
        {"shape": (2**28,), "dtype": "f4"},
        {"shape": (2**28,), "dtype": "f4", "chunks": (2**16,), "compression": "gzip"},
        {"shape": (2**50,), "dtype": "f4", "chunks": (2**16,)},
        {"shape": (2**27,), "dtype": "f8", "chunks": (2**10,)},
    ],
    ids=["unwritten", "compressed", "a petabyte", "never written chunks"],
)
def test_a_dataset_that_claims_more_than_the_file_has(
    dataset: dict[str, Any], tmp_path: Path, judged: Judge
) -> None:
    def fill(file: h5py.File) -> None:
        for index in range(4):
            file.create_dataset(f"layers/batch_normalization/vars/{index}", **dataset)

    path = tmp_path / "m.weights.h5"
    path.write_bytes(handmade.hdf5(fill))
    assert judged(path) == "error: DamagedError"


def test_many_datasets_that_claim_a_little_too_much_each(tmp_path: Path, judged: Judge) -> None:
    """A thousand times 10 MB that were never written: each alone would do."""

    def fill(file: h5py.File) -> None:
        for number in range(250):
            for index in range(4):
                path = f"layers/batch_normalization_{number}/vars/{index}"
                file.create_dataset(path, shape=(2_500_000,), dtype="f4")

    path = tmp_path / "m.weights.h5"
    path.write_bytes(handmade.hdf5(fill))
    assert judged(path) == "error: DamagedError"


def test_written_gigabytes_of_compressed_zeros(tmp_path: Path, judged: Judge) -> None:
    def fill(file: h5py.File) -> None:
        for index in range(4):
            file.create_dataset(
                f"layers/batch_normalization/vars/{index}",
                data=np.zeros(2**25, "f4"),
                chunks=(2**17,),
                compression="gzip",
                compression_opts=9,
            )

    path = tmp_path / "m.weights.h5"
    path.write_bytes(handmade.hdf5(fill))
    assert path.stat().st_size < 2 << 20
    assert judged(path) == "error: DamagedError"
