"""The file `checkpoint`, in which a training job keeps the names of its checkpoints.

    model_checkpoint_path: "model-1200"
    all_model_checkpoint_paths: "model-1000"
    all_model_checkpoint_paths: "model-1200"

It is a CheckpointState in protobuf's text format (tensorflow/python/training/
checkpoint_state.proto). The paths are absolute when the job's folder was; folders move, so only
their last part is used.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from bnstat.storage.files import Folder

NAME = "checkpoint"

_LINE = re.compile(rb'^\s*(\w+)\s*:\s*(?:"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\')\s*$')
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|x[0-9a-fA-F]{1,2}|.)", re.DOTALL)
_ESCAPES = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}
_LARGEST = 16 << 20


class State(NamedTuple):
    """What a state file lists, as base names: the newest, and all, oldest first."""

    newest: str | None
    all: tuple[str, ...]


def read_state(folder: Folder, name: str = NAME) -> State | None:
    """The folder's state; None where it has no state file, or one that lists nothing."""
    file = folder.file(name)
    if file is None or file.size > _LARGEST or file.is_lfs_pointer():
        return None
    if not file.head(64).lstrip().startswith((b"model_checkpoint_path", b"all_model")):
        return None
    newest, listed = None, []
    for line in file.read().splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        quoted = match[2] if match[2] is not None else match[3]
        path = _ESCAPE.sub(_unescaped, quoted).decode("utf-8", "surrogateescape")
        name = re.split(r"[/\\]", path)[-1]
        if match[1] == b"model_checkpoint_path":
            newest = name
        elif match[1] == b"all_model_checkpoint_paths":
            listed.append(name)
    return State(newest, tuple(listed)) if newest is not None or listed else None


def _unescaped(match: re.Match[bytes]) -> bytes:
    """The byte that one of protobuf's escapes stands for."""
    code = match[1]
    if code[:1] in b"01234567":
        return bytes([int(code, 8) & 0xFF])
    if code[:1] == b"x" and len(code) > 1:
        return bytes([int(code[1:], 16)])
    return _ESCAPES.get(code, code)


def state_text(name: str) -> str:
    """The text of a state file that lists one checkpoint of its folder."""
    quoted = "".join(
        char if char.isascii() and char.isprintable() and char not in '"\\' else _octal(char)
        for char in name
    )
    return f'model_checkpoint_path: "{quoted}"\nall_model_checkpoint_paths: "{quoted}"\n'


def _octal(char: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", "surrogateescape"))
