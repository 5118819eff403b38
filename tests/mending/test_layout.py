"""Where the files of a copy go, which outputs are refused, and what is copied."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError
from bnstat.formats.tensorflow.detection import state_text
from bnstat.mending.layout import Footprint, footprint, layout
from bnstat.model import Source
from tests.builders.mended import new_values
from tests.mending.originals import DIGITS, contents, mended

SHARD = "m.data-00000-of-00001"


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a checkpoint `m`, a SavedModel `saved/1` and a file `w.h5`."""
    top = tmp_path / "run"
    for name in (SHARD, "m.index", "saved/1/saved_model.pb", "saved/1/variables/v", "w.h5", "s.h5"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    for name in ("out", "saved/11"):
        (top / name).mkdir()
    (top / "old.index").touch()
    (top / "link.index").symlink_to(top / "nowhere")
    monkeypatch.chdir(top)
    return top


CHECKPOINT = Footprint("checkpoint", ".", "m", [SHARD, "m.index"])
SAVED = Footprint("folder", "saved/1")
FILE = Footprint("files", ".", "w.h5", ["w.h5"])
WITH_SHARD = Footprint("files", ".", "w.h5", ["s.h5", "w.h5"])


def within(original: Footprint) -> Footprint:
    return replace(original, within=True)


def prefixed(copy: str) -> dict[str, str]:
    return {SHARD: f"{copy}.data-00000-of-00001", "m.index": f"{copy}.index"}


def in_folder(copy: str) -> dict[str, str]:
    return {"saved_model.pb": f"{copy}/saved_model.pb", "v": f"{copy}/variables/v"}


@pytest.mark.parametrize(
    ("original", "output", "copy", "files"),
    [
        # beside other files
        (CHECKPOINT, "c", "c", prefixed("c")),
        (CHECKPOINT, "./c", "c", prefixed("c")),
        (CHECKPOINT, "out/c", "out/c", prefixed("out/c")),
        (CHECKPOINT, "out/c.index", "out/c", prefixed("out/c")),
        (CHECKPOINT, "out/c.meta", "out/c", prefixed("out/c")),
        (CHECKPOINT, "out/c.data-00000-of-00007", "out/c", prefixed("out/c")),
        (CHECKPOINT, "out", "out/m", prefixed("out/m")),
        (CHECKPOINT, "out/", "out/m", prefixed("out/m")),
        (WITH_SHARD, "out/c.h5", "out/c.h5", {"s.h5": "out/s.h5", "w.h5": "out/c.h5"}),
        # in a new folder, or an empty one
        (SAVED, "c", "c", in_folder("c")),
        (SAVED, "c/", "c", in_folder("c")),
        (SAVED, "out", "out", in_folder("out")),
        (within(SAVED), "c", "c", in_folder("c/1")),
        (within(CHECKPOINT), "../c", "../c", prefixed("../c/m")),
        (within(FILE), "../c", "../c", {"w.h5": "../c/w.h5"}),
        # A folder whose name starts with the name of the model is not inside it.
        (SAVED, "saved/11/c", "saved/11/c", in_folder("saved/11/c")),
        (SAVED, "saved/2", "saved/2", in_folder("saved/2")),
    ],
)
def test_the_files_of_a_copy(
    top: Path, original: Footprint, output: str, copy: str, files: dict[str, str]
) -> None:
    plan = layout(original, output)
    assert plan.output == copy
    copies = {os.path.basename(f): os.path.join(plan.parent, c) for f, c in plan.files.items()}
    assert {file: os.path.normpath(path) for file, path in copies.items()} == files
    tops = {path.split("/")[0] for path in plan.files.values()}
    assert set(plan.names) == tops
    assert not plan.replaces


def test_the_folders_of_a_copy(top: Path) -> None:
    assert layout(CHECKPOINT, "c").folders == layout(CHECKPOINT, "out").folders == {}
    own = {"c": "saved/1", "c/variables": "saved/1/variables"}
    assert layout(SAVED, "c").folders == own
    assert list(layout(within(SAVED), "c").folders.items()) == [
        ("c", None), ("c/1", "saved/1"), ("c/1/variables", "saved/1/variables"),
    ]  # fmt: skip
    plan = layout(within(CHECKPOINT), "../c")
    assert (plan.folders, plan.state) == ({"c": None}, ("c/checkpoint", state_text("m")))
    assert layout(within(FILE), "../c").state is layout(CHECKPOINT, "c").state is None


@pytest.mark.parametrize(
    ("original", "output", "message"),
    [
        (WITH_SHARD, "c.h5", r"s\.h5: exists already, but the copy needs this name"),
        (CHECKPOINT, "old", r"old\.index: exists already"),
        (CHECKPOINT, "link", r"link\.index: exists already"),
        (CHECKPOINT, "m", f"{SHARD}: is the model itself"),
        (CHECKPOINT, "./", f"{SHARD}: is the model itself"),
        (CHECKPOINT, "m.index", f"{SHARD}: is the model itself"),
        (CHECKPOINT, "none/c", "the folder none does not exist; create it first"),
        (CHECKPOINT, "", "output: is empty"),
        (SAVED, "saved", "exists already"),
        (SAVED, "w.h5", "exists already"),
        (SAVED, "saved/1/c", "is inside the model"),
        (SAVED, "saved/1/variables/c", "is inside the model"),
        (SAVED, "saved/1", "is the model itself"),
    ],
)
def test_outputs_that_are_refused(
    top: Path, original: Footprint, output: str, message: str
) -> None:
    with pytest.raises(BnstatError, match=message):
        layout(original, output)


def test_in_place(top: Path) -> None:
    (top / "folder-link").symlink_to(top / "saved/1")
    for folder in ("saved/1", "folder-link"):
        plan = layout(Footprint("folder", folder), None)
        assert (plan.parent, plan.names, plan.model) == (str(top / "saved"), ["1"], "1")
        assert sorted(plan.files.values()) == ["1/saved_model.pb", "1/variables/v"]
        assert plan.replaces
    plan = layout(CHECKPOINT, None)
    assert (plan.parent, plan.names, plan.model) == (".", [SHARD, "m.index"], "m")
    assert [*plan.files.values()] == [SHARD, "m.index"]
    assert plan.replaces


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("sm", "is the model itself; choose another name, or use --in-place"),
        ("sm/c", "is inside the model"),
        (None, "either output or in_place"),
    ],
)
def test_a_refused_output_changes_nothing(
    output: str | None, message: str, saved_model: Path
) -> None:
    with pytest.raises(bnstat.BnstatError, match=message):
        mended(saved_model, output and saved_model.parent / output)
    assert contents(saved_model) == contents(DIGITS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(0o500)
    with pytest.raises(bnstat.BnstatError, match="cannot be written: Permission denied"):
        mended(checkpoint, tmp_path / "out/c")


def test_permissions_are_those_of_the_original(
    checkpoint: Path, saved_model: Path, tmp_path: Path
) -> None:
    for path in checkpoint.parent.iterdir():
        path.chmod(0o440)
    mended(checkpoint, tmp_path / "c")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("c.*")} == {0o440}
    (saved_model / "variables").chmod(0o700)
    mended(saved_model, tmp_path / "d")
    assert (tmp_path / "d/variables").stat().st_mode & 0o777 == 0o700


def test_pipes_and_links_to_folders_are_not_copied(saved_model: Path, tmp_path: Path) -> None:
    special = saved_model / "assets"
    for make, message in (
        (lambda: os.mkfifo(special), "not a file or a folder"),
        (lambda: special.symlink_to("/"), "a link to a folder"),
    ):
        make()
        with pytest.raises(bnstat.BnstatError, match=message):
            mended(saved_model, tmp_path / "c")
        special.unlink()
    (saved_model / "words").symlink_to(saved_model / "saved_model.pb")
    mended(saved_model, tmp_path / "c")
    assert not (tmp_path / "c/words").is_symlink()


def test_models_that_are_not_written(saved_model: Path, tmp_path: Path) -> None:
    values = new_values(bnstat.load(saved_model))
    archive = shutil.make_archive(str(tmp_path / "m"), "zip", saved_model)
    with pytest.raises(bnstat.UnsupportedError, match=r"is an archive.*unpack it"):
        bnstat.apply(archive, values, tmp_path / "c")
    roles = ("scale", "bias", "mean", "var")
    np.savez(tmp_path / "m.npz", **{f"bn/{role}": np.ones(3, np.float32) for role in roles})
    values = new_values(bnstat.load(tmp_path / "m.npz"))
    with pytest.raises(bnstat.UnsupportedError, match="bnstat does not write the format npz"):
        bnstat.apply(tmp_path / "m.npz", values, tmp_path / "c.npz")
    with pytest.raises(bnstat.UnsupportedError, match=r"is remote.*download it"):
        footprint(Source("s3://bucket/m", "tf2-checkpoint", "m"))
    assert not list(tmp_path.glob("c*"))
