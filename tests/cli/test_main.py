from __future__ import annotations

import subprocess
import sys

import click
import pytest

from bnstat.cli import COMMANDS
from bnstat.errors import DamagedError, NotFoundError
from tests.output.models import model, usual
from tests.terminal import ROOT, in_terminal


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage:")
    assert all(f"  {name}" in result.stdout for name in COMMANDS)


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
    assert (result.exit_code, result.output) == (130, "")


RUN = "tests/data/digits/run/model-100"


@pytest.mark.parametrize(
    ("arguments", "needed", "left_out"),
    [
        ("--help", "click", "numpy rich bnstat.model bnstat.cli.inspect"),
        ("--version", "click", "numpy rich bnstat.model bnstat.cli.inspect"),
        ("help", "bnstat.docs", "rich tensorflow h5py bnstat.formats.locate bnstat.loading"),
        ("help safety", "rich", "tensorflow h5py bnstat.formats.locate bnstat.loading"),
        (
            f"inspect {RUN}",
            "bnstat.cli.inspect",
            "bnstat.cli.export bnstat.cli.check bnstat.cli.help bnstat.docs rich tensorflow h5py "
            "bnstat.output.terminal.listing bnstat.output.terminal.markdown bnstat.exchange.json",
        ),
        (f"export --csv {RUN}", "bnstat.exchange.csv", "bnstat.exchange.json bnstat.exchange.npz"),
    ],
)
def test_commands_import_no_more_than_they_need(arguments, needed, left_out):
    script = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
        "from bnstat.cli import main; main()"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, *arguments.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(process.stderr.split())
    assert needed in loaded
    assert not set(left_out.split()) & loaded


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
    result = run("inspect")
    assert result.exit_code == 0
    assert result.stderr == (
        "note: read\\x1b oddly\n"
        "note: 2 batch-norm layers are in the file without moving statistics: a\\x1b, b\n"
    )
    assert run("inspect", "-q").stderr == ""


def test_layers_in_training_mode_are_noted(run, loads):
    loads(model(incomplete=[usual("bn", uses_batch_statistics=True)]))
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
