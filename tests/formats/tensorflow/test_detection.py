"""The state file `checkpoint`, written by TensorFlow and by others."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorflow.python.checkpoint.checkpoint_management import update_checkpoint_state_internal

from bnstat.formats.tensorflow.detection import State, read_state, state_text
from bnstat.storage.local import LocalFolder


def _read(folder: Path, text: str | bytes) -> State:
    data = text.encode() if isinstance(text, str) else text
    (folder / "checkpoint").write_bytes(data)
    return read_state(LocalFolder(str(folder)))


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(
    "name", ["model-7", "with space", 'quo"te', "\u00e4\u4e2d", "tab\t", "a.b"]
)
def test_files_of_tensorflow(tmp_path: Path, name: str, relative: bool) -> None:
    paths = [str(tmp_path / part) for part in ("first", name)]
    update_checkpoint_state_internal(str(tmp_path), paths[1], paths, save_relative_paths=relative)
    assert read_state(LocalFolder(str(tmp_path))) == State(name, ("first", name))


@pytest.mark.parametrize(
    "text",
    [
        'model_checkpoint_path: "m-2"\nall_model_checkpoint_paths: "m-1"\n'
        'all_model_checkpoint_paths: "m-2"\n',
        'model_checkpoint_path: "m-2"\r\nall_model_checkpoint_paths: "m-1"\r\n'
        'all_model_checkpoint_paths: "m-2"\r\n',
        "model_checkpoint_path: '/gone/m-2'\nall_model_checkpoint_paths: '/gone/m-1'\n"
        "all_model_checkpoint_paths: '/gone/m-2'\n",
        'model_checkpoint_path: "C:\\\\models\\\\m-2"\n'
        'all_model_checkpoint_paths: "C:\\\\models\\\\m-1"\n'
        'all_model_checkpoint_paths: "C:\\\\models\\\\m-2"\n',
        'all_model_checkpoint_paths: "m-1"\n  all_model_checkpoint_paths :"m-2"\n'
        'all_model_checkpoint_timestamps: 1.5\nmodel_checkpoint_path: "m-2"',
    ],
)
def test_files_of_others(tmp_path: Path, text: str) -> None:
    assert _read(tmp_path, text) == State("m-2", ("m-1", "m-2"))


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (r"a\303\244", "\u00e4"),
        (r"a\xc3\xa4", "\u00e4"),
        (r"a\344", "\udce4"),
        (r"a\xe4b", "\udce4b"),
        (r"a\703\644", "\u00e4"),
        (r"a\0019", "\x019"),
        (r"a\xg", "xg"),
        (r"a\t\n\r\'\?", "\t\n\r'?"),
        ("a\u4e2d\\303\\244", "\u4e2d\u00e4"),
    ],
)
def test_escapes(tmp_path: Path, written: str, name: str) -> None:
    assert _read(tmp_path, f'model_checkpoint_path: "{written}"') == State(
        f"a{name}", (f"a{name}",)
    )


@pytest.mark.parametrize("name", ["model-7", "\u00e4\u4e2d", 'a"b', "tab\t", "\udcff", "~ \x7f'"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    text = state_text(name)
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    assert _read(tmp_path, text) == State(name, (name,))
    plain = 'model_checkpoint_path: "m 1"\nall_model_checkpoint_paths: "m 1"\n'
    assert state_text("m 1") == plain


def test_no_newest(tmp_path: Path) -> None:
    assert _read(tmp_path, 'all_model_checkpoint_paths: "m-1"') == State(None, ("m-1",))


@pytest.mark.parametrize(
    "text",
    ["", "model_checkpoint_path: 3", "hello", b"\xff\xfe\x00", "model_checkpoint_path"],
)
def test_other_files_of_that_name(tmp_path: Path, text: str | bytes) -> None:
    assert _read(tmp_path, text) == State()


def test_files_with_another_start(tmp_path: Path) -> None:
    assert _read(tmp_path, '\n model_checkpoint_path: "m"') == State("m", ("m",))
    assert _read(tmp_path, 'other: 1\nmodel_checkpoint_path: "m"') == State()


def test_no_such_file(tmp_path: Path) -> None:
    assert read_state(LocalFolder(str(tmp_path))) == State()
    (tmp_path / "checkpoint").mkdir()
    assert read_state(LocalFolder(str(tmp_path))) == State()
