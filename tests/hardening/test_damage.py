"""Every kind of damage is reported, or does not change the output."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bnstat
from tests.fuzz import handmade
from tests.hardening.support import (
    ROOT,
    command,
    exported,
    exported_or_none,
    layers,
    refused,
    write,
)

DIGITS = ROOT / "tests" / "data" / "digits" / "run"
FLIPS = (0x01, 0x80, 0xFF)


BUNDLES = {
    "by name": handmade.bundle(layers(count=2)),
    "in two shards": handmade.bundle(layers(count=2), shards=2, per_block=2),
    "by object": handmade.object_bundle(*handmade.bn_graph()),
}


@pytest.mark.slow
@pytest.mark.parametrize("files", BUNDLES.values(), ids=BUNDLES)
def test_every_flipped_byte_of_a_checkpoint_is_caught(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    folder = write(tmp_path, files)
    sound = exported(folder / "m")
    caught = unseen = 0
    for name, content in files.items():
        for at in range(len(content)):
            for flip in FLIPS:
                changed = bytearray(content)
                changed[at] ^= flip
                (folder / name).write_bytes(changed)
                result = exported_or_none(folder / "m")
                assert result in (None, sound), f"byte {at} of {name} with {flip:#x}"
                caught += result is None
                unseen += result is not None
        (folder / name).write_bytes(content)
    # Only the metaindex block and its handle are never read: 13 bytes and a few of the footer.
    assert unseen <= len(FLIPS) * 60
    assert caught + unseen == len(FLIPS) * sum(map(len, files.values()))


@pytest.mark.slow
def test_every_flipped_byte_of_a_trained_models_batch_norm_is_caught(tmp_path: Path) -> None:
    for file in DIGITS.glob("model-400.[id]*"):
        shutil.copy(file, tmp_path)
    index = tmp_path / "model-400.index"
    data = tmp_path / "model-400.data-00000-of-00001"
    sound = exported(tmp_path / "model-400")
    places = _places_of_batch_norm(index.read_bytes())
    assert sum(end - start for start, end in places) == 4 * 4 * (8 + 16 + 16)
    for path, spans in ((index, [(0, index.stat().st_size)]), (data, places)):
        content = path.read_bytes()
        for at in (at for start, end in spans for at in range(start, end)):
            changed = bytearray(content)
            changed[at] ^= 0xFF
            path.write_bytes(changed)
            result = exported_or_none(tmp_path / "model-400")
            if path is data:
                assert result is None, f"byte {at} of the data"
            assert result in (None, sound), f"byte {at} of {path.name}"
        path.write_bytes(content)


def _places_of_batch_norm(index: bytes) -> list[tuple[int, int]]:
    from tests.fuzz import wire

    places = []
    for key, message in wire.read_table(index):
        if key.split(b"/")[-1].decode() in handmade.ROLES:
            fields = {field.number: field.value for field in wire.parse(message)}
            places.append((fields.get(4, 0), fields.get(4, 0) + fields[5]))
    return places


def test_every_flipped_byte_of_a_v1_checkpoint_is_caught(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    content = handmade.v1()
    path.write_bytes(content)
    sound = exported(path)
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 0xFF
        path.write_bytes(changed)
        assert exported_or_none(path) in (None, sound), f"byte {at}"


@pytest.mark.parametrize("files", BUNDLES.values(), ids=BUNDLES)
def test_truncated_checkpoints(files: dict[str, bytes], tmp_path: Path) -> None:
    folder = write(tmp_path, files)
    for name, content in files.items():
        for length in range(len(content)):
            (folder / name).write_bytes(content[:length])
            assert refused(folder / "m"), f"{name} of {length} bytes"
        (folder / name).write_bytes(content)


KERAS_FILES = {**handmade.hdf5_files(), "m.keras": handmade.keras_archive()}


@pytest.mark.parametrize("name", ["legacy.h5", "legacy-latest.h5", "weights.weights.h5", "m.keras"])
def test_truncated_keras_files(name: str, tmp_path: Path) -> None:
    content = KERAS_FILES[name]
    path = tmp_path / name
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        assert refused(path), f"{length} of {len(content)} bytes"


TWO_SHARDS = BUNDLES["in two shards"]
FIRST, SECOND = "m.data-00000-of-00002", "m.data-00001-of-00002"


def _swapped(files: dict[str, bytes]) -> dict[str, bytes]:
    return {**files, FIRST: files[SECOND], SECOND: files[FIRST]}


SHARDS: dict[str, Callable[[dict[str, bytes]], dict[str, bytes]]] = {
    "first missing": lambda files: {k: v for k, v in files.items() if k != FIRST},
    "second missing": lambda files: {k: v for k, v in files.items() if k != SECOND},
    "empty": lambda files: {**files, SECOND: b""},
    "swapped": _swapped,
    "the same twice": lambda files: {**files, SECOND: files[FIRST]},
    "another save's": lambda files: {
        **files,
        SECOND: handmade.bundle({k: v + 1 for k, v in layers(count=2).items()}, 2)[SECOND],
    },
}


@pytest.mark.parametrize("change", SHARDS.values(), ids=SHARDS)
def test_wrong_shards(
    change: Callable[[dict[str, bytes]], dict[str, bytes]], tmp_path: Path
) -> None:
    folder = write(tmp_path, change(TWO_SHARDS))
    with pytest.raises(bnstat.BnstatError, match=r"m\.data-0000[01]-of-00002"):
        exported(folder / "m")


def test_shards_of_an_earlier_save_of_the_same_name_are_not_read(tmp_path: Path) -> None:
    stale = {name: b"old" for name in handmade.bundle(layers(count=2), shards=3) if ".data" in name}
    folder = write(tmp_path, {**stale, **TWO_SHARDS})
    alone = write(tmp_path / "alone", TWO_SHARDS)
    assert exported(folder / "m") == exported(alone / "m")


@pytest.mark.parametrize("name", sorted(TWO_SHARDS))
def test_a_folder_instead_of_a_file(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, TWO_SHARDS)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert refused(folder / "m")
    assert refused(folder)


@pytest.mark.parametrize("name", sorted(TWO_SHARDS))
def test_a_pipe_instead_of_a_file_does_not_block(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, TWO_SHARDS)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    for target in (folder, folder / "m", folder / name):
        result = command("inspect", target, timeout=300)
        assert result.returncode == 2
        assert result.stderr.startswith(b"error: ")
        assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize("name", ["m.index", SECOND, "checkpoint"])
def test_a_symlink_that_leads_to_itself(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, TWO_SHARDS)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(name)
    if name == "checkpoint":
        assert exported(folder).startswith("{")
    else:
        assert refused(folder)
    assert refused(folder / name)


def test_folders_linked_in_a_circle(tmp_path: Path) -> None:
    inner = tmp_path / "a"
    inner.mkdir()
    (inner / "up").symlink_to(tmp_path, target_is_directory=True)
    assert refused(tmp_path)
    write(inner, TWO_SHARDS)
    assert exported(inner / "up" / "a" / "up" / "a" / "m").startswith("{")


@pytest.mark.parametrize("name", ["m.index", SECOND])
def test_unreadable_files(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, TWO_SHARDS)
    (folder / name).chmod(0)
    result = subprocess.run(
        [*_without_privileges(), sys.executable, "-m", "bnstat", "inspect", folder / "m"],
        capture_output=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.decode() == (
        f"error: {folder / name}: cannot be opened: Permission denied\n"
    )


def _without_privileges() -> list[str]:
    """Return a command prefix that takes root's privileges away."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root can read everything")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


# Files written with -o are complete or missing


@pytest.mark.parametrize("form", ["--json", "--csv", "--npz"])
@pytest.mark.parametrize("before", [None, b"what was there"])
def test_a_disk_that_fills_leaves_nothing_half_written(
    form: str, before: bytes | None, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    if before is not None:
        target.write_bytes(before)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))

    result = command("export", DIGITS, form, "-q", "-o", target, preexec_fn=limit)
    assert result.returncode == 2
    assert result.stderr.startswith(b"error: ")
    assert result.stderr.count(b"\n") == 1
    assert os.listdir(tmp_path) == ([] if before is None else ["out"])
    if before is not None:
        assert target.read_bytes() == before


@pytest.mark.parametrize("form", ["--json", "--csv", "--npz"])
def test_a_full_device(form: str) -> None:
    result = command("export", DIGITS, form, "-q", "-o", "/dev/full")
    assert result.returncode == 2
    assert b"No space left on device" in result.stderr
    assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize("is_model", [False, True])
@pytest.mark.parametrize("form", ["--json", "--csv", "--npz"])
def test_a_device_without_positions(form: str, is_model: bool, tmp_path: Path) -> None:
    tensors = {"weights": np.ones(3), **(layers() if is_model else {})}
    folder = write(tmp_path, handmade.bundle(tensors))
    result = command("export", folder, form, "-q", "-o", "/dev/null")
    assert (result.returncode, result.stderr) == (0 if is_model else 1, b"")


@pytest.mark.parametrize("arguments", [("export", "--json"), ("inspect",), ("check", "--json")])
def test_a_full_disk_behind_standard_output(arguments: tuple[str, ...]) -> None:
    name, *flags = arguments
    with open("/dev/full", "wb") as full:
        result = command(name, DIGITS, *flags, "-q", stdout=full)
    assert result.returncode == 2
    assert b"No space left on device" in result.stderr
    assert result.stderr.count(b"\n") == 1


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    """The last tensor's bytes are missing, so that the first could be written."""
    for file in DIGITS.glob("model-400.[id]*"):
        shutil.copy(file, tmp_path)
    data = tmp_path / "model-400.data-00000-of-00001"
    _, end = max(_places_of_batch_norm((tmp_path / "model-400.index").read_bytes()))
    data.write_bytes(data.read_bytes()[: end - 1])
    out = tmp_path / "out"
    out.mkdir()
    result = command("export", tmp_path / "model-400", "-q", "-o", out / "x.json")
    assert result.returncode == 2
    assert os.listdir(out) == []
