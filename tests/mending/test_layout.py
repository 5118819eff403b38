"""Where a copy's files go, for each kind of model; nothing is written yet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bnstat.errors import BnstatError, NotFoundError
from bnstat.formats.tensorflow.detection import state_text
from bnstat.mending.layout import Footprint, Layout, layout, layout_in_place

SHARD = "m.data-00000-of-00001"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A folder of a checkpoint `m`, a SavedModel `saved/1` and a file `w.h5`."""
    top = tmp_path / "run"
    for name in (SHARD, "m.index", "saved/1/saved_model.pb", "saved/1/variables/v", "w.h5", "s.h5"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    return top


def checkpoint(top: Path, within: bool = False) -> Footprint:
    return Footprint("checkpoint", str(top), "m", [SHARD, "m.index"], within)


def saved(top: Path, within: bool = False) -> Footprint:
    return Footprint("folder", str(top / "saved/1"), within=within)


def files(found: Layout) -> dict[str, str]:
    return {os.path.basename(file): copy for file, copy in found.files.items()}


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
        found = layout(checkpoint(top), output)
        assert (found.parent, found.model) == (parent, name)
        assert found.output == (name if parent == "." else f"{parent}/{name}")
        assert found.names == [f"{name}.data-00000-of-00001", f"{name}.index"]
        assert files(found) == dict(zip([SHARD, "m.index"], found.names, strict=True))
        assert (found.folders, found.state, found.replaces) == ({}, None, False)

    def test_a_file_and_those_that_it_names(self, top: Path) -> None:
        of = Footprint("files", str(top), "w.h5", ["s.h5", "w.h5"])
        assert layout(of, str(top / "saved/c.h5")).names == ["s.h5", "c.h5"]
        with pytest.raises(BnstatError, match=r"s\.h5: exists already, and the copy needs a shard"):
            layout(of, str(top / "c.h5"))

    def test_what_is_there(self, top: Path) -> None:
        (top / "c.index").touch()
        (top / "link.index").symlink_to(top / "nowhere")
        for name in ("c", "link"):
            with pytest.raises(BnstatError, match=rf"{name}\.index: exists already"):
                layout(checkpoint(top), str(top / name))
        for output in (top / "m", f"{top}/", top / "m.index"):
            with pytest.raises(BnstatError, match=rf"{SHARD}: is the model itself"):
                layout(checkpoint(top), str(output))
        with pytest.raises(NotFoundError, match=r"the folder .*none does not exist; make it first"):
            layout(checkpoint(top), str(top / "none/c"))
        with pytest.raises(BnstatError, match="output: is empty"):
            layout(checkpoint(top), "")


class TestInAFolder:
    @pytest.mark.parametrize("end", ["", "/"])
    def test_of_a_folder(self, top: Path, end: str) -> None:
        found = layout(saved(top), str(top / "c") + end)
        assert (found.parent, found.names, found.model) == (str(top), ["c"], "c")
        assert files(found) == {"saved_model.pb": "c/saved_model.pb", "v": "c/variables/v"}
        own = str(top / "saved/1")
        assert found.folders == {"c": own, "c/variables": f"{own}/variables"}
        assert (found.state, found.replaces) == (None, False)

    def test_of_one_version_of_several(self, top: Path) -> None:
        found = layout(saved(top, within=True), str(top / "c"))
        assert (found.names, found.model) == (["c"], "c")
        assert files(found) == {"saved_model.pb": "c/1/saved_model.pb", "v": "c/1/variables/v"}
        own = str(top / "saved/1")
        assert list(found.folders.items()) == [
            ("c", None), ("c/1", own), ("c/1/variables", f"{own}/variables"),
        ]  # fmt: skip

    def test_of_one_checkpoint_of_several(self, top: Path) -> None:
        found = layout(checkpoint(top, within=True), str(top.parent / "c"))
        assert (found.names, found.model, found.folders) == (["c"], "c", {"c": None})
        assert files(found) == {SHARD: f"c/{SHARD}", "m.index": "c/m.index"}
        assert found.state == ("c/checkpoint", state_text("m"))

    def test_of_a_file_among_others(self, top: Path) -> None:
        of = Footprint("files", str(top), "w.h5", ["w.h5"], within=True)
        found = layout(of, str(top.parent / "c"))
        assert (found.parent, found.model, found.state) == (str(top.parent), "c", None)
        assert files(found) == {"w.h5": "c/w.h5"}

    def test_an_empty_folder_may_be_there(self, top: Path) -> None:
        (top / "c").mkdir()
        assert layout(saved(top), str(top / "c")).names == ["c"]
        (top / "c/x").touch()
        for name in ("c", "w.h5"):
            with pytest.raises(BnstatError, match="exists already"):
                layout(saved(top), str(top / name))

    def test_not_in_the_model_nor_in_its_place(self, top: Path) -> None:
        for place in ("saved/1/c", "saved/1/variables/c"):
            with pytest.raises(BnstatError, match="is inside the model"):
                layout(saved(top), str(top / place))
        with pytest.raises(BnstatError, match="is the model itself"):
            layout(saved(top), str(top / "saved/1"))
        # What only begins with the model's name is not in it.
        (top / "saved/11").mkdir()
        assert layout(saved(top), str(top / "saved/11/c")).model == "c"
        assert layout(saved(top), str(top / "saved/2")).model == "2"


class TestInPlace:
    def test_of_a_folder(self, top: Path) -> None:
        (top / "link").symlink_to(top / "saved/1")
        for folder in ("saved/1", "link"):
            found = layout_in_place(Footprint("folder", str(top / folder)))
            assert (found.parent, found.names, found.model) == (str(top / "saved"), ["1"], "1")
            assert files(found) == {"saved_model.pb": "1/saved_model.pb", "v": "1/variables/v"}
            assert found.replaces

    def test_of_files(self, top: Path) -> None:
        found = layout_in_place(checkpoint(top))
        assert (found.parent, found.names, found.model) == (str(top), [SHARD, "m.index"], "m")
        assert files(found) == {SHARD: SHARD, "m.index": "m.index"}
        assert found.replaces
