"""Where a copy may go, what it is called there, and what is not copied."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import bnstat
from bnstat.mending.layout import footprint
from bnstat.model import Source
from tests.builders.mended import new_values
from tests.mending.originals import DIGITS, assert_mended, contents


def test_places_that_a_copy_cannot_have(saved_model: Path, tmp_path: Path) -> None:
    values = new_values(bnstat.load(saved_model))
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("x")
    for output, message in [
        (saved_model, "is the model itself; choose another name, or use --in-place"),
        (saved_model / "variables/c", "is inside the model"),
        (saved_model / "c", "is inside the model"),
        (tmp_path / "file", "exists already"),
        (tmp_path / "full", "exists already"),
        (tmp_path, "exists already"),
        (tmp_path / "none/c", "does not exist"),
        (tmp_path / "file/c", "does not exist"),
        ("", "output: is empty"),
    ]:
        with pytest.raises(bnstat.BnstatError, match=message):
            bnstat.apply(saved_model, values, output)
    with pytest.raises(bnstat.BnstatError, match="either output or in_place"):
        bnstat.apply(saved_model, values)
    assert contents(saved_model) == contents(DIGITS)


def test_names_of_a_checkpoint_s_copy(checkpoint: Path, tmp_path: Path) -> None:
    values = new_values(bnstat.load(checkpoint))
    (tmp_path / "out").mkdir()
    for original, output, expected in [
        (checkpoint, tmp_path / "out", "out/m"),
        (f"{checkpoint}.index", tmp_path / "out/a.index", "out/a"),
        (f"{checkpoint}.data-00001-of-00002", tmp_path / "b", "b"),
    ]:
        applied = bnstat.apply(original, values, output)
        assert applied.output == str(tmp_path / expected)
        assert applied.values is None
        assert_mended(tmp_path / expected, checkpoint)
    with pytest.raises(bnstat.BnstatError, match="is the model itself"):
        bnstat.apply(checkpoint, values, checkpoint)


def test_permissions_are_those_of_the_original(checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.parent.iterdir():
        path.chmod(0o440)
    bnstat.apply(checkpoint, new_values(bnstat.load(checkpoint)), tmp_path / "c")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("c.*")} == {0o440}


def test_permissions_of_folders(saved_model: Path, tmp_path: Path) -> None:
    (saved_model / "variables").chmod(0o700)
    bnstat.apply(saved_model, new_values(bnstat.load(saved_model)), tmp_path / "c")
    assert (tmp_path / "c/variables").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(0o500)
    with pytest.raises(bnstat.BnstatError, match="cannot be written: Permission denied"):
        bnstat.apply(checkpoint, new_values(bnstat.load(checkpoint)), tmp_path / "out/c")


def test_what_is_not_copied(saved_model: Path, tmp_path: Path) -> None:
    values = new_values(bnstat.load(saved_model))
    os.mkfifo(saved_model / "pipe")
    with pytest.raises(bnstat.BnstatError, match="not a file or a folder"):
        bnstat.apply(saved_model, values, tmp_path / "c")
    (saved_model / "pipe").unlink()
    (saved_model / "assets").symlink_to("/")
    with pytest.raises(bnstat.BnstatError, match="a link to a folder"):
        bnstat.apply(saved_model, values, tmp_path / "c")
    (saved_model / "assets").unlink()
    (saved_model / "words").symlink_to(saved_model / "saved_model.pb")
    bnstat.apply(saved_model, values, tmp_path / "c")
    assert not (tmp_path / "c/words").is_symlink()


def test_models_in_archives_are_not_written(saved_model: Path, tmp_path: Path) -> None:
    values = new_values(bnstat.load(saved_model))
    archive = shutil.make_archive(str(tmp_path / "m"), "zip", saved_model)
    with pytest.raises(bnstat.UnsupportedError, match=r"is an archive.*unpack it"):
        bnstat.apply(archive, values, tmp_path / "c")
    assert not np.any([path.name.startswith("c") for path in tmp_path.iterdir()])


def test_formats_of_ports_are_not_written(tmp_path: Path) -> None:
    roles = ("scale", "bias", "mean", "var")
    np.savez(tmp_path / "m.npz", **{f"bn/{role}": np.ones(3, np.float32) for role in roles})
    values = new_values(bnstat.load(tmp_path / "m.npz"))
    with pytest.raises(bnstat.UnsupportedError, match="bnstat does not write the format npz"):
        bnstat.apply(tmp_path / "m.npz", values, tmp_path / "c.npz")
    assert not (tmp_path / "c.npz").exists()


def test_far_away_nothing_is_written() -> None:
    with pytest.raises(bnstat.UnsupportedError, match=r"is remote.*download it"):
        footprint(Source("s3://bucket/m", "tf2-checkpoint", "m"))
