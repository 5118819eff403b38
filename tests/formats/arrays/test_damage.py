"""Files of arrays that are cut short, or in which bytes were changed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, UnknownFormatError
from tests.fuzz import handmade, ports

DATA = Path(__file__).parents[2] / "data" / "jax"
SAMPLES = {
    "hdf5": handmade.hdf5(handmade.arrays),
    "msgpack": (DATA / "linen.msgpack").read_bytes(),
    "pickle": (DATA / "haiku.pkl").read_bytes(),
    **{name: file for files in ports.array_files().values() for name, file in files.items()},
}


def read_all(path: Path) -> None:
    for variable in bnstat.load(path).stored.values():
        variable.read()


@pytest.mark.parametrize("name", SAMPLES)
def test_cut_short(tmp_path: Path, name: str) -> None:
    content, path = SAMPLES[name], tmp_path / "m"
    path.write_bytes(content)
    read_all(path)
    # The first third is enough to recognise any of the formats.
    for length in range(len(content) // 3, len(content) - 1, len(content) // 60):
        path.write_bytes(content[:length])
        try:
            read_all(path)
        except UnknownFormatError:
            pytest.fail(f"the first {length} bytes are not recognised")
        except BnstatError:
            continue
        pytest.fail(
            f"{length} of {len(content)} bytes are read without an error; if the format allows "
            "this, let the sample end in one large array"
        )


@pytest.mark.parametrize("name", SAMPLES)
def test_changed_bytes(tmp_path: Path, name: str) -> None:
    content, path = SAMPLES[name], tmp_path / "m"
    random = np.random.default_rng(3)
    for at in random.integers(0, len(content), 100).tolist():
        data = bytearray(content)
        data[at] = int(random.choice([0x00, 0x52, 0x93, 0xC9, 0xDF, 0xFF]))
        path.write_bytes(data)
        with contextlib.suppress(BnstatError):
            read_all(path)
