"""Every kind of damage is reported, or does not change the output."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import bnstat
from tests.fuzz import handmade
from tests.hardening.support import (
    assert_one_error,
    command,
    exported,
    exported_or_none,
    layers,
    refused,
    write,
)
from tests.terminal import ROOT

DIGITS = ROOT / "tests" / "data" / "digits" / "run"
FLIPS = (0x01, 0x80, 0xFF)
CHECKPOINTS = {
    "version 1": {"m": handmade.v1()},
    "by name": handmade.bundle(layers(count=2)),
    "in two shards": handmade.bundle(layers(count=2), shards=2, per_block=2),
    "by object": handmade.object_bundle(*handmade.bn_graph()),
}


@pytest.mark.slow
@pytest.mark.parametrize("files", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_every_flipped_byte_of_a_checkpoint_is_caught(files, tmp_path) -> None:
    folder = write(tmp_path, files)
    sound = exported(folder / "m")
    unseen = 0
    for name, content in files.items():
        for at in range(len(content)):
            for flip in FLIPS:
                changed = bytearray(content)
                changed[at] ^= flip
                (folder / name).write_bytes(changed)
                result = exported_or_none(folder / "m")
                assert result in (None, sound), f"byte {at} of {name} with {flip:#x}"
                unseen += result is not None
        (folder / name).write_bytes(content)
    # Only the metaindex block and its handle are never read: 13 bytes and a few of the footer.
    assert unseen <= len(FLIPS) * 60


KERAS = ("legacy.h5", "legacy-latest.h5", "weights.weights.h5", "m.keras")
KERAS_FILES = {**handmade.hdf5_files(), "m.keras": handmade.keras_archive()}
TRUNCATED = {**CHECKPOINTS, **{name: {name: KERAS_FILES[name]} for name in KERAS}}


@pytest.mark.parametrize("kind", TRUNCATED)
def test_truncated_files(kind: str, tmp_path: Path) -> None:
    folder = write(tmp_path, TRUNCATED[kind])
    model, step = (folder / kind, 13) if kind in KERAS else (folder / "m", 1)
    for name, content in TRUNCATED[kind].items():
        for length in range(0, len(content), step):
            (folder / name).write_bytes(content[:length])
            assert refused(model), f"{name} of {length} bytes"
        (folder / name).write_bytes(content)


TWO_SHARDS = CHECKPOINTS["in two shards"]
FIRST, SECOND = "m.data-00000-of-00002", "m.data-00001-of-00002"
OTHER_SAVE = handmade.bundle({key: array + 1 for key, array in layers(count=2).items()}, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {FIRST: None},
        {SECOND: None},
        {SECOND: b""},
        {SECOND: OTHER_SAVE[SECOND]},
        {SECOND: TWO_SHARDS[FIRST]},
        {FIRST: TWO_SHARDS[SECOND], SECOND: TWO_SHARDS[FIRST]},
    ],
    ids=["first missing", "second missing", "empty", "another save's", "the same twice", "swapped"],
)
def test_wrong_shards(wrong: dict[str, bytes | None], tmp_path: Path) -> None:
    files = {**TWO_SHARDS, **wrong}
    folder = write(tmp_path, {name: data for name, data in files.items() if data is not None})
    with pytest.raises(bnstat.BnstatError, match=r"m\.data-0000[01]-of-00002"):
        exported(folder / "m")


@pytest.mark.parametrize("name", sorted(TWO_SHARDS))
def test_a_pipe_instead_of_a_file_does_not_block(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, TWO_SHARDS)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    for target in (folder, folder / "m", folder / name):
        assert_one_error(command("inspect", target))


@pytest.mark.parametrize("name", [*sorted(TWO_SHARDS), "checkpoint"])
def test_a_folder_or_a_link_to_itself_instead_of_a_file(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, TWO_SHARDS)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(name)
    assert refused(folder / name)
    assert refused(folder) is (name != "checkpoint")
    (folder / name).unlink()
    (folder / name).mkdir()
    assert refused(folder / "m") is refused(folder) is (name != "checkpoint")


def test_folders_linked_in_a_circle(tmp_path: Path) -> None:
    inner = tmp_path / "a"
    inner.mkdir()
    (inner / "up").symlink_to(tmp_path, target_is_directory=True)
    assert refused(tmp_path)
    write(inner, TWO_SHARDS)
    assert exported(inner / "up" / "a" / "up" / "a" / "m").startswith("{")


@pytest.mark.parametrize("is_model", [False, True])
@pytest.mark.parametrize("form", ["--json", "--csv", "--npz"])
def test_a_device_without_positions(form: str, is_model: bool, tmp_path: Path) -> None:
    tensors = {"weights": np.ones(3), **(layers() if is_model else {})}
    folder = write(tmp_path, handmade.bundle(tensors))
    result = command("export", folder, form, "-q", "-o", "/dev/null")
    assert (result.returncode, result.stderr) == (0 if is_model else 1, b"")
