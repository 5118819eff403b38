"""Where the files of a copy go, which outputs are refused, and what is copied."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, NotFoundError
from bnstat.formats.tensorflow.detection import state_text
from bnstat.mending.layout import Footprint, Layout, footprint, layout, layout_in_place
from bnstat.model import Source
from tests.builders.mended import new_values
from tests.mending.originals import DIGITS, assert_mended, contents

SHARD = "m.data-00000-of-00001"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A folder of a checkpoint `m`, a SavedModel `saved/1` and a file `w.h5`."""
    top = tmp_path / "run"
    for name in (SHARD, "m.index", "saved/1/saved_model.pb", "saved/1/variables/v", "w.h5", "s.h5"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    return top


def checkpoint_of(top: Path, within: bool = False) -> Footprint:
    return Footprint("checkpoint", str(top), "m", [SHARD, "m.index"], within)


def saved(top: Path, within: bool = False) -> Footprint:
    return Footprint("folder", str(top / "saved/1"), within=within)


def files(plan: Layout) -> dict[str, str]:
    return {os.path.basename(file): copy for file, copy in plan.files.items()}


class TestBeside:
    @pytest.mark.parametrize(
        ("output", "parent", "name"),
        [
            ("c", ".", "c"),
            ("./c", ".", "c"),
            ("out/c", "out", "c"),
            ("out/c.index", "out", "c"),
            ("out/c.meta", "out", "c"),
            ("out/c.data-00000-of-00007", "out", "c"),
            ("out", "out", "m"),
            ("out/", "out", "m"),
        ],
    )
    def test_a_checkpoint(
        self, top: Path, monkeypatch: pytest.MonkeyPatch, output: str, parent: str, name: str
    ) -> None:
        (top / "out").mkdir()
        monkeypatch.chdir(top)
        plan = layout(checkpoint_of(top), output)
        assert (plan.parent, plan.model) == (parent, name)
        assert plan.output == (name if parent == "." else f"{parent}/{name}")
        assert plan.names == [f"{name}.data-00000-of-00001", f"{name}.index"]
        assert files(plan) == dict(zip([SHARD, "m.index"], plan.names, strict=True))
        assert (plan.folders, plan.state, plan.replaces) == ({}, None, False)

    def test_a_file_and_its_shards(self, top: Path) -> None:
        original = Footprint("files", str(top), "w.h5", ["s.h5", "w.h5"])
        assert layout(original, str(top / "saved/c.h5")).names == ["s.h5", "c.h5"]
        with pytest.raises(BnstatError, match=r"s\.h5: exists already, and the copy needs a shard"):
            layout(original, str(top / "c.h5"))

    def test_outputs_that_exist(self, top: Path) -> None:
        (top / "c.index").touch()
        (top / "link.index").symlink_to(top / "nowhere")
        for name in ("c", "link"):
            with pytest.raises(BnstatError, match=rf"{name}\.index: exists already"):
                layout(checkpoint_of(top), str(top / name))
        for output in (top / "m", f"{top}/", top / "m.index"):
            with pytest.raises(BnstatError, match=rf"{SHARD}: is the model itself"):
                layout(checkpoint_of(top), str(output))
        with pytest.raises(NotFoundError, match=r"the folder .*none does not exist; make it first"):
            layout(checkpoint_of(top), str(top / "none/c"))
        with pytest.raises(BnstatError, match="output: is empty"):
            layout(checkpoint_of(top), "")


class TestInANewFolder:
    @pytest.mark.parametrize("end", ["", "/"])
    def test_of_a_folder(self, top: Path, end: str) -> None:
        plan = layout(saved(top), str(top / "c") + end)
        assert (plan.parent, plan.names, plan.model) == (str(top), ["c"], "c")
        assert files(plan) == {"saved_model.pb": "c/saved_model.pb", "v": "c/variables/v"}
        own = str(top / "saved/1")
        assert plan.folders == {"c": own, "c/variables": f"{own}/variables"}
        assert (plan.state, plan.replaces) == (None, False)

    def test_of_a_version_in_a_serving_folder(self, top: Path) -> None:
        plan = layout(saved(top, within=True), str(top / "c"))
        assert (plan.names, plan.model) == (["c"], "c")
        assert files(plan) == {"saved_model.pb": "c/1/saved_model.pb", "v": "c/1/variables/v"}
        own = str(top / "saved/1")
        assert list(plan.folders.items()) == [
            ("c", None), ("c/1", own), ("c/1/variables", f"{own}/variables"),
        ]  # fmt: skip

    def test_of_a_checkpoint_in_a_training_folder(self, top: Path) -> None:
        plan = layout(checkpoint_of(top, within=True), str(top.parent / "c"))
        assert (plan.names, plan.model, plan.folders) == (["c"], "c", {"c": None})
        assert files(plan) == {SHARD: f"c/{SHARD}", "m.index": "c/m.index"}
        assert plan.state == ("c/checkpoint", state_text("m"))

    def test_of_a_file_among_others(self, top: Path) -> None:
        original = Footprint("files", str(top), "w.h5", ["w.h5"], within=True)
        plan = layout(original, str(top.parent / "c"))
        assert (plan.parent, plan.model, plan.state) == (str(top.parent), "c", None)
        assert files(plan) == {"w.h5": "c/w.h5"}

    def test_an_empty_folder_may_exist(self, top: Path) -> None:
        (top / "c").mkdir()
        assert layout(saved(top), str(top / "c")).names == ["c"]
        (top / "c/x").touch()
        for name in ("c", "w.h5"):
            with pytest.raises(BnstatError, match="exists already"):
                layout(saved(top), str(top / name))

    def test_not_in_the_model_itself(self, top: Path) -> None:
        for output in ("saved/1/c", "saved/1/variables/c"):
            with pytest.raises(BnstatError, match="is inside the model"):
                layout(saved(top), str(top / output))
        with pytest.raises(BnstatError, match="is the model itself"):
            layout(saved(top), str(top / "saved/1"))
        # A folder whose name starts with the name of the model is not inside it.
        (top / "saved/11").mkdir()
        assert layout(saved(top), str(top / "saved/11/c")).model == "c"
        assert layout(saved(top), str(top / "saved/2")).model == "2"


class TestInPlace:
    def test_of_a_folder(self, top: Path) -> None:
        (top / "link").symlink_to(top / "saved/1")
        for folder in ("saved/1", "link"):
            plan = layout_in_place(Footprint("folder", str(top / folder)))
            assert (plan.parent, plan.names, plan.model) == (str(top / "saved"), ["1"], "1")
            assert files(plan) == {"saved_model.pb": "1/saved_model.pb", "v": "1/variables/v"}
            assert plan.replaces

    def test_of_files(self, top: Path) -> None:
        plan = layout_in_place(checkpoint_of(top))
        assert (plan.parent, plan.names, plan.model) == (str(top), [SHARD, "m.index"], "m")
        assert files(plan) == {SHARD: SHARD, "m.index": "m.index"}
        assert plan.replaces


def test_the_name_of_a_checkpoints_copy(checkpoint: Path, tmp_path: Path) -> None:
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


def test_a_refused_output_changes_nothing(saved_model: Path) -> None:
    values = new_values(bnstat.load(saved_model))
    for output, message in [
        (saved_model, "is the model itself; choose another name, or use --in-place"),
        (saved_model / "c", "is inside the model"),
        ("", "output: is empty"),
        (None, "either output or in_place"),
    ]:
        with pytest.raises(bnstat.BnstatError, match=message):
            bnstat.apply(saved_model, values, output)
    assert contents(saved_model) == contents(DIGITS)


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


def test_pipes_and_links_to_folders_are_not_copied(saved_model: Path, tmp_path: Path) -> None:
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
    assert not list(tmp_path.glob("c*"))


def test_formats_that_are_not_written(tmp_path: Path) -> None:
    roles = ("scale", "bias", "mean", "var")
    np.savez(tmp_path / "m.npz", **{f"bn/{role}": np.ones(3, np.float32) for role in roles})
    values = new_values(bnstat.load(tmp_path / "m.npz"))
    with pytest.raises(bnstat.UnsupportedError, match="bnstat does not write the format npz"):
        bnstat.apply(tmp_path / "m.npz", values, tmp_path / "c.npz")
    assert not (tmp_path / "c.npz").exists()


def test_remote_models_are_not_written() -> None:
    with pytest.raises(bnstat.UnsupportedError, match=r"is remote.*download it"):
        footprint(Source("s3://bucket/m", "tf2-checkpoint", "m"))
