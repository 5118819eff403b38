from __future__ import annotations

import subprocess
import sys

import pytest

from bnstat.cli import COMMANDS
from bnstat.errors import DamagedError, NotFoundError
from tests.output.models import model, usual


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
    assert result.stdout.startswith("bnstat 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspct"],
        ["inspect", "--nonsense"],
        ["inspect", "a", "b"],
        ["--nonsense"],
        ["export", "-o"],
    ],
)
def test_wrong_usage(run, loads, arguments):
    loads(model())
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error:" in result.stderr
    assert result.stdout == ""


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


@pytest.mark.parametrize(
    ("arguments", "left_out"),
    [
        (["--help"], ["numpy", "bnstat.model", "bnstat.cli.inspect", "bnstat.cli.export"]),
        (
            ["inspect"],
            ["bnstat.cli.export", "bnstat.cli.check", "rich", "zipfile", "csv", "tensorflow"],
        ),
        (["export", "--json"], ["bnstat.cli.inspect", "rich", "zipfile", "csv", "tensorflow"]),
    ],
)
def test_only_what_is_needed_is_imported(start, arguments, left_out):
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from bnstat.cli import main\n"
        "main()"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments, "no/such/path"][: 4 + len(arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    loaded = process.stderr.split()
    assert "click" in loaded
    assert not set(left_out) & set(loaded)


def test_module_runs():
    process = subprocess.run(
        [sys.executable, "-m", "bnstat", "--version"], capture_output=True, text=True, check=True
    )
    assert process.stdout.startswith("bnstat 0.")


def test_notes_go_to_standard_error(run, loads):
    loads(model(usual("bn"), incomplete=[usual("a\x1b"), usual("b")], notes=["read\x1b oddly"]))
    result = run("inspect")
    assert result.exit_code == 0
    assert result.stderr == (
        "note: read\\x1b oddly\n"
        "note: 2 batch-norm layers are in the file without moving statistics: a\\x1b, b\n"
    )
    assert run("inspect", "-q").stderr == ""
