"""Copies of public models and of files of many versions of TensorFlow and Keras."""

from __future__ import annotations

from pathlib import Path

import pytest

import bnstat
from bnstat.formats.tensorflow.bundle import INDEX
from tests.builders.mended import new_values
from tests.builders.oracle import same_bits
from tests.conftest import SHARED

NOT_MODELS = (".meta", ".json", ".md", ".data-", ".part", "fingerprint.pb", "keras_metadata.pb")


def models(folder: str) -> list[str]:
    """Return paths that may be models; a prefix for each bundle."""
    root = SHARED / folder
    files = (path for path in root.rglob("*") if path.is_file())
    names = {path.relative_to(root).as_posix().removesuffix(INDEX) for path in files}
    return sorted(name for name in names if not any(part in name for part in NOT_MODELS))


def assert_mended(path: Path, copy: Path) -> None:
    try:
        model = bnstat.load(path, reader="native")
        values = new_values(model)
    except bnstat.BnstatError as error:
        pytest.skip(f"cannot be read: {error.what}")
    if not model.layers:
        pytest.skip("has no batch norm")
    applied = bnstat.apply(path, values, copy)
    written = bnstat.load(applied.output)
    for layer in written:
        for role, array in values[layer.name].items():
            assert same_bits(layer.array(role), array)
    back = bnstat.apply(applied.output, model, copy.with_name(f"back-{copy.name}"))
    assert bnstat.diff(model, bnstat.load(back.output)).equal


@pytest.mark.parametrize("name", models("real"))
def test_public_models(real: Path, tmp_path: Path, name: str) -> None:
    assert_mended(real / name, tmp_path / f"c{Path(name).suffix}")


@pytest.mark.parametrize("name", models("written"))
def test_files_of_many_versions(written: Path, tmp_path: Path, name: str) -> None:
    path = written / name
    if ".weights" in name and path.suffix == ".h5" and "_0000" in name:
        pytest.skip("is a shard")
    ending = "".join(path.suffixes[-2:]) if name.endswith((".h5", ".json")) else path.suffix
    assert_mended(path, tmp_path / f"c{ending}")
