"""The state file `checkpoint`, written by TensorFlow and by others."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorflow.python.checkpoint.checkpoint_management import update_checkpoint_state_internal

from bnstat.formats.tensorflow.detection import State, read_state, state_text
from bnstat.storage.local import LocalFolder


def _read(folder: Path, text: str | bytes) -> State:
    (folder / "checkpoint").write_bytes(text.encode() if isinstance(text, str) else text)
    return read_state(LocalFolder(str(folder)))


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("name", ["model-7", "a space", 'quo"te', "\u00e4\u4e2d", "tab\t", "a.b"])
def test_files_of_tensorflow(tmp_path: Path, name: str, relative: bool) -> None:
    paths = [str(tmp_path / part) for part in ("first", name)]
    update_checkpoint_state_internal(str(tmp_path), paths[1], paths, save_relative_paths=relative)
    assert read_state(LocalFolder(str(tmp_path))) == State(name, ("first", name))


BOTH = State("m-2", ("m-1", "m-2"))
NEWEST, ALL = "model_checkpoint_path: ", "all_model_checkpoint_paths: "


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (f'{NEWEST}"m-2"\n{ALL}"m-1"\n{ALL}"m-2"\n', BOTH),
        (f'{NEWEST}"m-2"\r\n{ALL}"m-1"\r\n{ALL}"m-2"\r\n', BOTH),
        (f"{NEWEST}'/gone/m-2'\n{ALL}'/gone/m-1'\n{ALL}'/gone/m-2'\n", BOTH),
        (f'{NEWEST}"C:\\\\m\\\\m-2"\n{ALL}"C:\\\\m\\\\m-1"\n{ALL}"C:\\\\m\\\\m-2"\n', BOTH),
        (f'{ALL}"m-1"\n  all_model_checkpoint_paths :"m-2"\n'
         f'all_model_checkpoint_timestamps: 1.5\n{NEWEST}"m-2"', BOTH),
        (f'{ALL}"m-1"', State(None, ("m-1",))),
        (f'\n {NEWEST}"m"', State("m", ("m",))),
        (f'other: 1\n{NEWEST}"m"', State()),
        (f"{NEWEST}3", State()),
        *((text, State()) for text in ("", "hello", "model_checkpoint_path", b"\xff\xfe\x00")),
    ],
)  # fmt: skip
def test_files_of_others(tmp_path: Path, text: str | bytes, state: State) -> None:
    assert _read(tmp_path, text) == state


@pytest.mark.parametrize(
    ("written", "name"),
    [(r"a\303\244", "\u00e4"), (r"a\xc3\xa4", "\u00e4"), (r"a\344", "\udce4"),
     (r"a\xe4b", "\udce4b"), (r"a\703\644", "\u00e4"), (r"a\0019", "\x019"), (r"a\xg", "xg"),
     (r"a\t\n\r\'\?", "\t\n\r'?"), ("a\u4e2d\\303\\244", "\u4e2d\u00e4")],
)  # fmt: skip
def test_escapes(tmp_path: Path, written: str, name: str) -> None:
    assert _read(tmp_path, f'{NEWEST}"{written}"') == State(f"a{name}", (f"a{name}",))


@pytest.mark.parametrize("name", ["model-7", "\u00e4\u4e2d", 'a"b', "tab\t", "\udcff", "~ \x7f'"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    text = state_text(name)
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    assert _read(tmp_path, text) == State(name, (name,))
    assert state_text("m 1") == f'{NEWEST}"m 1"\n{ALL}"m 1"\n'


def test_no_such_file(tmp_path: Path) -> None:
    folder = LocalFolder(str(tmp_path))
    assert read_state(folder) == read_state(folder, ".") == State()
