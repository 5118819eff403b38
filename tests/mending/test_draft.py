"""A copy is written whole or not at all, and the original is unchanged."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import bnstat
from bnstat.mending import draft as drafts
from bnstat.mending.draft import copy_file, exchange
from tests.builders.mended import new_values
from tests.builders.signals import heeded
from tests.mending.originals import DIGITS, ROOT, assert_mended, assert_stored, contents, mended

DRIVER = """
import sys
import bnstat.mending.apply, bnstat.mending.draft, bnstat.mending.writers.tensorflow
from tests.builders.mended import new_values
from tests.builders.signals import hit
import bnstat

path, copy, module, name, number, sent = sys.argv[1:]
values = new_values(bnstat.load(path))
hit(module, name, int(number), int(sent))
where = dict(in_place=True) if copy == "-" else dict(output=copy)
bnstat.apply(path, values, **where)
"""
MOMENTS = [
    ("bnstat.mending.draft", "copy_file", 1),
    ("bnstat.mending.draft", "copy_file", 2),
    ("bnstat.mending.writers.tensorflow", "change", 1),
    ("bnstat.mending.apply", "verify", 1),
    ("bnstat.mending.draft", "_sync", 2),
    ("os", "rename", 1),
    ("os", "replace", 1),
    ("os", "replace", 2),
]


def interrupted(path: Path, copy: str, moment: tuple[str, str, int], sent: int) -> int:
    arguments = [str(path), copy, *map(str, moment), str(int(sent))]
    return subprocess.run(
        [sys.executable, "-c", DRIVER, *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        preexec_fn=heeded,
    ).returncode


@pytest.mark.parametrize(
    ("moment", "sent"),
    [
        *((moment, signal.SIGTERM) for moment in MOMENTS),
        *((moment, sent) for moment in MOMENTS[1:6:2] for sent in (signal.SIGINT, signal.SIGKILL)),
    ],
    ids=str,
)
def test_a_signal_at_any_moment(
    checkpoint: Path, tmp_path: Path, moment: tuple[str, str, int], sent: int
) -> None:
    before = contents(tmp_path / "in")
    (tmp_path / "out").mkdir()
    code = interrupted(checkpoint, str(tmp_path / "out/c"), moment, sent)
    assert contents(tmp_path / "in") == before
    left = {name for name in os.listdir(tmp_path / "out") if not name.startswith(".bnstat-")}
    if moment == ("os", "replace", 2):
        # Only the index is replaced, so the signal is never sent.
        assert code == 0
    else:
        assert code == {signal.SIGTERM: 128 + signal.SIGTERM}.get(signal.Signals(sent), -sent)
    if sent != signal.SIGKILL:
        assert left == set(os.listdir(tmp_path / "out"))
        assert left in (set(), {"c.index", *(f"c.data-0000{n}-of-00002" for n in range(2))})
    if "c.index" in left:
        assert_mended(tmp_path / "out/c", checkpoint)
    assert ("c.index" in left) <= (moment[0] == "os")


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_signal_at_any_moment_in_place(
    checkpoint: Path, tmp_path: Path, moment: tuple[str, str, int]
) -> None:
    before = contents(tmp_path / "in")
    shutil.copytree(tmp_path / "in", tmp_path / "kept")
    interrupted(checkpoint, "-", moment, signal.SIGTERM)
    after = contents(tmp_path / "in")
    assert after.keys() == before.keys()
    if after != before:
        assert moment[0] == "os"
        assert_mended(checkpoint, tmp_path / "kept/m")


def refuse_call(number: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make a call of `os.replace` fail; return the list of targets of all calls."""
    real, calls = os.replace, []

    def replace(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == number:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    return calls


def test_half_a_replacement_is_undone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(tmp_path / "in")
    # The first call replaces the index of the copy, and the third one the second shard.
    calls = refuse_call(3, monkeypatch)
    with pytest.raises(bnstat.BnstatError, match="Input/output error"):
        mended(checkpoint, in_place=True)
    assert len(calls) > 3
    assert contents(tmp_path / "in") == before


def _change(source: str, target: str, real: Any = copy_file) -> None:
    real(source, target)
    if source.endswith(".index"):
        os.utime(source, (1, 1))


def _damage(contents: Any, _: Any) -> None:
    raise bnstat.DamagedError(f"{contents.source.path}.index", "is damaged")


def _fill(*arguments: Any, **_: Any) -> None:
    paths = [each.source.path for each in arguments if hasattr(each, "source")]
    raise OSError(28, "No space left on device", *paths)


@pytest.mark.parametrize(
    ("module", "name", "replacement", "message"),
    [
        ("bnstat.mending.apply", "write_arrays", lambda *_: None, "in/m: the copy was deleted"),
        ("bnstat.mending.draft", "copy_file", _change, "in/m.index: changed while it was copied"),
        # Errors have the name of the copy.
        ("bnstat.mending.apply", "write_arrays", _damage, "c.index: is damaged"),
        ("bnstat.mending.apply", "write_arrays", _fill, "c: cannot be written: No space"),
        *(("os", name, _fill, "c: cannot be written: No space")
          for name in ("rename", "fsync", "mkdir")),
    ],
)  # fmt: skip
def test_a_copy_that_fails_is_not_kept(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    module: str, name: str, replacement: Any, message: str,
) -> None:  # fmt: skip
    before = contents(tmp_path)
    values = new_values(bnstat.load(checkpoint))
    monkeypatch.setattr(import_module(module), name, replacement)
    with pytest.raises(bnstat.BnstatError) as caught:
        bnstat.apply(checkpoint, values, tmp_path / "c")
    monkeypatch.undo()
    assert str(caught.value).startswith(f"{tmp_path}/{message}")
    assert sorted(os.listdir(tmp_path)) == ["in"]
    assert contents(tmp_path) == before


def test_in_place(saved_model: Path, checkpoint: Path, tmp_path: Path) -> None:
    for path in (saved_model, checkpoint):
        names = sorted(os.listdir(path.parent))
        values = mended(path, in_place=True)
        assert sorted(os.listdir(path.parent)) == names
        assert_stored(path, values)


def test_a_folder_in_place_if_names_cannot_be_swapped(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(tmp_path)
    monkeypatch.setattr(drafts, "exchange", lambda *_: False)
    with monkeypatch.context() as failing:
        refuse_call(1, failing)
        with pytest.raises(bnstat.BnstatError, match="cannot be written"):
            mended(saved_model, in_place=True)
    assert contents(tmp_path) == before
    mended(saved_model, in_place=True)
    assert_mended(saved_model, DIGITS)
    assert os.listdir(tmp_path) == ["sm"]


def test_a_link_is_replaced_but_not_its_target(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for path in checkpoint.parent.iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    before = contents(checkpoint.parent)
    bnstat.apply(tmp_path / "links/m", new_values(bnstat.load(checkpoint)), in_place=True)
    assert contents(checkpoint.parent) == before
    assert_mended(tmp_path / "links/m", checkpoint)


SPARSE = b"\0" * (8 << 20) + b"middle" + b"\0" * (8 << 20)


@pytest.mark.parametrize("system", ["supported", "refused", "missing"])
@pytest.mark.parametrize("data", [b"", b"x", os.urandom(3 << 20), SPARSE], ids=len)
def test_a_copy_has_the_same_bytes(
    data: bytes, system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may not be able to copy between files without reading them."""

    def refuse(*_: Any) -> int:
        raise OSError(18, "Invalid cross-device link")

    if system == "refused":
        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    elif system == "missing":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    with open(tmp_path / "a", "wb") as file:
        middle = data.find(b"middle")
        file.seek(max(middle, 0))
        file.write(data if middle < 0 else b"middle")
        file.truncate(len(data))
    copy_file(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == data


def test_only_regular_files_are_copied_and_nothing_is_overwritten(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(bnstat.BnstatError, match="is not a regular file"):
        copy_file(str(tmp_path / "pipe"), str(tmp_path / "b"))
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        copy_file(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == b"old"


def test_folders_swap_their_names(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of-{name}").touch()
    if not exchange(str(tmp_path / "a"), str(tmp_path / "b")):
        pytest.skip("the system cannot swap names")
    assert os.listdir(tmp_path / "a") == ["of-b"]
    assert os.listdir(tmp_path / "b") == ["of-a"]
    assert not exchange(str(tmp_path / "a"), str(tmp_path / "c"))
