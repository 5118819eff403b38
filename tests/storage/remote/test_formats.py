"""Archives and real model files, from a web server as from disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import bnstat
from bnstat.model import ROLES
from tests.builders.server import Server, serving
from tests.storage.remote.conftest import DATA
from tests.storage.remote.test_http import same

LARGEST = 60_000_000


@pytest.mark.parametrize("form", ["zip", "tar", "gztar"])
def test_an_archive(server: Server, form: str) -> None:
    archive = shutil.make_archive(str(server.folder / "m"), form, DATA / "saved_model")
    far = bnstat.load(f"{server.url}/{Path(archive).name}", eager=True)
    same(far, bnstat.load(archive))
    assert len(server.asked) <= 12


def outcome(path: str | Path) -> object:
    """The arrays of a model's layers, or the kind of the error."""
    try:
        model = bnstat.load(path, eager=True)
    except bnstat.BnstatError as error:
        return type(error)
    return {
        (layer.name, role): None if (array := layer.array(role)) is None else array.tobytes()
        for layer in model
        for role in ROLES
    }


def test_files_from_the_wild(real: Path) -> None:
    pytest.importorskip("aiohttp", reason="the driver for https:// is not installed")
    compared = 0
    with serving(real) as server:
        for path in sorted(real.rglob("*")):
            if path.is_file() and path.stat().st_size < LARGEST:
                name = path.relative_to(real).as_posix()
                assert outcome(f"{server.url}/{name}") == outcome(path), name
                compared += 1
    assert compared > 20
