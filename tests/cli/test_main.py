from __future__ import annotations

import click
import numpy as np
import pytest

from bnstat.cli import COMMANDS
from bnstat.errors import DamagedError, NotFoundError
from tests.output.models import model, usual, variable
from tests.terminal import in_terminal


def test_help_and_version(run):
    for arguments in ([], ["-h"], ["--help"]):
        result = run(*arguments)
        assert (result.exit_code, result.stdout[:6]) == (0, "Usage:")
        assert all(f"  {name}" in result.stdout for name in COMMANDS)
    assert run("--version").stdout.startswith("bnstat 1.")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_with_examples(run, command):
    shown = run(command, "-h").stdout
    assert "Examples:" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (NotFoundError("x", "no such file", "try y"), "error: x: no such file; try y\n"),
        (DamagedError("x\x1b[31m\n", "bad"), "error: x\\x1b[31m\\n: bad\n"),
        (PermissionError(13, "Permission denied", "x"), "error: x: Permission denied\n"),
        (OSError("strange"), "error: strange\n"),
        (MemoryError(), "error: not enough memory for this file\n"),
    ],
)
def test_errors_are_one_line(run, loads, error, line):
    loads(error)
    result = run("inspect", "x")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", line)


def test_a_defect_is_not_hidden(run, loads):
    loads(ZeroDivisionError())
    assert isinstance(run("inspect").exception, ZeroDivisionError)


def test_interruption(run, loads):
    loads(KeyboardInterrupt())
    result = run("inspect")
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("chek", "No such command 'chek'. Did you mean check?"),
        ("Inspct", "No such command 'Inspct'. Did you mean inspect?"),
        ("zzz", "No such command 'zzz'."),
        ("\x1b[31m", r"No such command '\x1b[31m'."),
    ],
)
def test_an_unknown_command(run, typed, message):
    result = run(typed, "model.keras")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == f"Error: {message}"


LONG_WORD = "a" * 50
MISSING = f"no such folder {'or-file ' * 10}\x1b[31m {LONG_WORD}"


@pytest.mark.parametrize("columns", [40, 80])
def test_a_terminal_gets_messages_in_whole_words(run, columns):
    lines = in_terminal(["inspect", MISSING], columns).splitlines()
    line = run("inspect", MISSING).stderr
    assert line.count("\n") == 1
    assert " ".join(lines).split() == line.split()
    assert all(len(line) <= columns or line.strip().startswith(LONG_WORD) for line in lines)
    assert len(lines) > 1


def test_notes_go_to_standard_error(run, loads):
    loads(model(usual("bn"), incomplete=[usual("a\x1b"), usual("b")], notes=["read\x1b oddly"]))
    assert run("inspect").stderr == (
        "note: read\\x1b oddly\n"
        "note: 2 batch-norm layers are in the file without moving statistics: a\\x1b, b\n"
    )
    assert run("inspect", "-q").stderr == ""


TRAINING, OLD = {"uses_batch_statistics": True}, {"running_std": variable("s", np.ones(8, "f4"))}


@pytest.mark.parametrize(
    ("fields", "start", "end"),
    [
        (TRAINING, "exported in training mode (each batch ", "none are stored or needed): bn"),
        ({"extra": OLD}, "written before Keras 1.0, with ", "but without a moving variance: bn"),
    ],
)
def test_layers_without_a_variance_are_noted(run, loads, fields, start, end):
    loads(model(incomplete=[usual("bn", **fields)]))
    result = run("inspect")
    assert result.exit_code == 1
    note, hint = result.stderr.splitlines()
    assert note.startswith(f"note: 1 batch-norm layer was {start}")
    assert note.endswith(end)
    assert hint == "no batch-norm layer with both moving statistics found in runs/cnn"


def test_ctrl_c_while_the_command_line_is_read(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(click.Group, "parse_args", interrupted)
    result = run("inspect")
    assert (result.exit_code, result.output) == (130, "")
