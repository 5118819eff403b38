from __future__ import annotations

import os
from pathlib import Path

import pytest

from bnstat.scanning.walk import Choice, walk
from bnstat.storage.local import LocalFolder
from tests.scanning.stores import RUN, SAVED, copied, paths_of

PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
DATA = ("m-1.data-00000-of-00002", "m-1.data-00001-of-00002", "m-1.meta")
MODELS = [
    ("m-1", "m-1.index", DATA),
    ("ckpt-00000-of-00002", "ckpt-00000-of-00002", ("ckpt-00001-of-00002",)),
    ("w.weights.json", "w.weights.json", ("w_00000.weights.h5", "w_00001.weights.h5")),
    ("model.safetensors.index.json", "model.safetensors.index.json", PARTS),
    ("model.json", "model.json", ("group1-shard1of2.bin", "group1-shard2of2.bin")),
]
"""The path of a model of several files, the file that decides, and the others."""


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"?")
    return folder


@pytest.mark.parametrize(("path", "file", "others"), MODELS)
def test_files_of_a_model_make_one_candidate(path, file, others, tmp_path) -> None:
    assert paths_of(write(tmp_path, file, *others)) == {path: file}


def test_all_kinds_in_a_folder(tmp_path: Path) -> None:
    write(tmp_path, *(name for _, file, others in MODELS for name in (file, *others)))
    write(tmp_path, "a.h5", "b.keras", "c")
    assert len(paths_of(tmp_path)) == len(MODELS) + 3


def test_numbers_in_names_are_in_natural_order(tmp_path: Path) -> None:
    write(tmp_path, "m-20.index", "m-100.index", "m-3.index", "m-10.h5")
    assert list(paths_of(tmp_path)) == ["m-3", "m-10.h5", "m-20", "m-100"]


def test_incomplete_groups(tmp_path: Path) -> None:
    write(tmp_path, *DATA, *PARTS)
    assert paths_of(tmp_path) == {"m-1": "", **dict(zip(PARTS, PARTS, strict=True))}


def test_files_without_weights_are_left_out(tmp_path: Path) -> None:
    names = ("checkpoint", "notes.txt", "events.out.tfevents.1", "graph.pbtxt", "x.meta", "X.PNG")
    write(tmp_path, *names, ".git/objects/aa/bb", "__pycache__/x")
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "nowhere.h5").symlink_to("nothing")
    assert paths_of(tmp_path) == {}


def test_a_saved_model_is_one_candidate(tmp_path: Path) -> None:
    copied(SAVED, tmp_path / "saved")
    write(tmp_path, "saved/assets/vocabulary", "saved/keras_metadata.pb")
    assert paths_of(tmp_path) == {"saved": ""}
    assert paths_of(tmp_path / "saved") == {".": ""}


def test_other_folders_in_a_saved_model_are_walked(tmp_path: Path) -> None:
    copied(SAVED, tmp_path)
    write(tmp_path, "checkpoints/m-1.index", "checkpoints/m-1.data-00000-of-00001")
    assert paths_of(tmp_path) == {".": "", "checkpoints/m-1": "m-1.index"}


def test_the_newest_of_a_training_run(tmp_path: Path) -> None:
    copied(RUN, tmp_path / "run")
    assert set(paths_of(tmp_path)) == {f"run/model-{step}" for step in range(0, 500, 100)}
    assert set(paths_of(tmp_path, newest=True)) == {"run/model-400"}
    # The list of the run decides.
    (tmp_path / "run/checkpoint").write_text('model_checkpoint_path: "model-200"\n')
    assert set(paths_of(tmp_path, newest=True)) == {"run/model-200"}


@pytest.mark.parametrize(
    ("names", "older"),
    [
        ("a-9.keras a-10.keras a-8.keras b-1.keras c.keras", {"a-8.keras", "a-9.keras"}),
        ("resnet-50-60.h5 resnet-50-5.h5 resnet-7-7.h5 vgg-16.h5", {"resnet-50-5.h5"}),
        ("net-50-60.index net-50-5.index net-60-60.index vgg-16.index", {"net-50-5"}),
    ],
)
def test_the_newest_file_by_the_last_number(names: str, older: set[str], tmp_path: Path) -> None:
    write(tmp_path, *names.split())
    assert paths_of(tmp_path).keys() - paths_of(tmp_path, newest=True).keys() == older


def test_the_newest_of_numbered_versions(tmp_path: Path) -> None:
    for version in ("1", "9", "10"):
        copied(SAVED, tmp_path / "served" / version)
    write(tmp_path, "served/11/readme.h5")
    assert set(paths_of(tmp_path, newest=True)) == {"served/10", "served/11/readme.h5"}


def test_globs(tmp_path: Path) -> None:
    write(tmp_path, "a/x.h5", "a/y.keras", "b/x.h5", "b/old/x.h5")
    copied(SAVED, tmp_path / "b/saved")
    assert set(paths_of(tmp_path, include=["*.h5"])) == {"a/x.h5", "b/x.h5", "b/old/x.h5"}
    assert set(paths_of(tmp_path, include=["a/*"])) == {"a/x.h5", "a/y.keras"}
    assert set(paths_of(tmp_path, include=["saved"])) == {"b/saved"}
    assert set(paths_of(tmp_path, exclude=["old", "saved"])) == {"a/x.h5", "a/y.keras", "b/x.h5"}
    assert set(paths_of(tmp_path, include=["b/*"], exclude=["x.h5"])) == {"b/saved"}


def test_links_to_walked_folders_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path, "root/a/x.h5", "outside/y.h5", "outside/below/z.h5")
    (tmp_path / "root/a/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/b").symlink_to("a")
    (tmp_path / "root/self").symlink_to("self")
    (tmp_path / "root/out").symlink_to(tmp_path / "outside")
    (tmp_path / "root/out2").symlink_to(tmp_path / "outside/below")
    (tmp_path / "outside/back").symlink_to(tmp_path / "root")
    assert set(paths_of(tmp_path / "root")) == {"a/x.h5", "out/y.h5", "out/below/z.h5"}


def test_a_root_below_another_is_walked_once(tmp_path: Path) -> None:
    write(tmp_path, "a/x.h5", "a/b/y.h5", "ab/z.h5")
    roots = [LocalFolder(str(tmp_path / name)) for name in ("a/b", "a", "ab", "a")]
    paths = [os.path.relpath(item.path, tmp_path) for item in walk(roots, Choice())]
    assert paths == ["a/x.h5", "a/b/y.h5", "ab/z.h5"]


def test_a_folder_that_vanishes(tmp_path: Path) -> None:
    write(tmp_path, "a/x.h5", "b/y.h5")
    items = walk([LocalFolder(str(tmp_path))], Choice())
    assert next(items).path.endswith("a/x.h5")
    (tmp_path / "b/y.h5").unlink()
    (tmp_path / "b").rmdir()
    (unreadable,) = items
    assert "no such file or folder" in str(unreadable)


def test_folders_that_are_nested_too_deeply(tmp_path: Path) -> None:
    deep = tmp_path / "/".join("d" * 120)
    write(deep, "x.h5")
    assert list(paths_of(tmp_path).values()) == ["! is nested too deeply (limit: 100 folders)"]


def test_a_change_of_any_file_changes_the_signature(tmp_path: Path) -> None:
    copied(SAVED, tmp_path)
    signatures = set()
    for change in ("saved_model.pb", "saved_model.pb", "variables/variables.index"):
        (candidate,) = walk([LocalFolder(str(tmp_path))], Choice())
        signatures.add(candidate.signature)  # type: ignore[union-attr]
        with (tmp_path / change).open("ab") as file:
            file.write(b"?")
    assert len(signatures) == 3
    again, once_more = (list(walk([LocalFolder(str(tmp_path))], Choice())) for _ in range(2))
    assert again == once_more
