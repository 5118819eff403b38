from __future__ import annotations

import subprocess
import sys

import click
import pytest

from bnstat.cli import COMMANDS
from bnstat.errors import DamagedError, NotFoundError
from tests.output.models import model, usual
from tests.terminal import in_terminal


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage:")
    for name, line in COMMANDS.items():
        assert f"  {name}" in result.stdout
        assert line.split()[0] in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_with_examples(run, command):
    result = run(command, "-h")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_version(run):
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("bnstat 1.")


@pytest.mark.parametrize("command", ["inspect", "export"])
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
def test_errors_are_one_line(run, loads, command, error, line):
    loads(error)
    result = run(command, "x")
    assert result.exit_code == 2
    assert result.stderr == line
    assert result.stdout == ""


def test_a_huge_error_is_cut(run, loads):
    loads(NotFoundError("n" * 10_000_000, "no"))
    result = run("inspect")
    assert result.exit_code == 2
    assert len(result.stderr) < 3000


def test_a_defect_is_not_hidden(run, loads):
    loads(ZeroDivisionError())
    assert isinstance(run("inspect").exception, ZeroDivisionError)


def test_interruption(run, loads):
    loads(KeyboardInterrupt())
    result = run("inspect")
    assert result.exit_code == 130
    assert result.output == ""


LISTING = "atexit.register(lambda: print(*sys.modules, file=sys.stderr))"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_next_to_nothing(option):
    code = f"import atexit, sys; {LISTING}; from bnstat.cli import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", code, option], capture_output=True, text=True, check=True
    )
    loaded = set(process.stderr.split())
    assert "click" in loaded
    assert not {"numpy", "rich", "bnstat.model", "bnstat.cli.inspect"} & loaded


@pytest.mark.parametrize(
    ("arguments", "left_out"),
    [
        (["inspect"], {"bnstat.cli.export", "bnstat.cli.check", "bnstat.output.terminal.listing"}),
        (["inspect"], {"bnstat.cli.help", "bnstat.docs", "bnstat.output.terminal.markdown"}),
        (["inspect", "--values"], {"bnstat.cli.export", "bnstat.exchange.json"}),
        (
            ["export", "--json"],
            {"bnstat.cli.inspect", "bnstat.exchange.csv", "bnstat.exchange.npz"},
        ),
        (
            ["export", "--csv"],
            {"bnstat.cli.inspect", "bnstat.exchange.json", "bnstat.exchange.npz"},
        ),
        (
            ["export", "--npz"],
            {"bnstat.cli.inspect", "bnstat.exchange.json", "bnstat.exchange.csv"},
        ),
    ],
)
def test_imports_are_lazy(start, arguments, left_out):
    process = start(arguments, model=f"({LISTING}, model(usual('bn')))[1]", stdout=subprocess.PIPE)
    _, err = process.communicate(timeout=300)
    loaded = set(err.decode().split())
    assert f"bnstat.cli.{arguments[0]}" in loaded
    assert not (left_out | {"rich", "tensorflow", "h5py", "jsonschema"}) & loaded


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
    assert result.exit_code == 2
    assert result.stdout == ""
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
    result = run("inspect")
    assert result.exit_code == 0
    assert result.stderr == (
        "note: read\\x1b oddly\n"
        "note: 2 batch-norm layers are in the file without moving statistics: a\\x1b, b\n"
    )
    assert run("inspect", "-q").stderr == ""


def test_layers_in_training_mode_are_noted(run, loads):
    layer = usual("bn", uses_batch_statistics=True)
    loads(model(incomplete=[layer]))
    result = run("inspect")
    assert result.exit_code == 1
    note, last = result.stderr.splitlines()
    assert note == (
        "note: 1 batch-norm layer was exported in training mode (each batch is normalized by its "
        "own statistics, none are stored or needed): bn"
    )
    assert last == "no batch-norm layer with both moving statistics found in runs/cnn"


def test_ctrl_c_while_the_command_line_is_read(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(click.Group, "parse_args", interrupted)
    result = run("inspect")
    assert (result.exit_code, result.output) == (130, "")
