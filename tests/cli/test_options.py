from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest

from bnstat.storage.local import LocalFile
from tests.cli.files import write_h5
from tests.fuzz import handmade
from tests.output.models import model, usual

ROOT = Path(__file__).resolve().parents[2]
RUN = "tests/data/digits/run"
LARGE, SMALL = 50_000, 3
SLOWLY = """
import time
from bnstat.model import BatchNorm
from bnstat.output.terminal import screen as progress
progress._DELAY = 0.01
read = BatchNorm.read
def slowly(layer):
    time.sleep(0.3)
    read(layer)
BatchNorm.read = slowly
from bnstat.__main__ import run
run()
"""


@pytest.mark.parametrize("command", ["inspect", "export"])
def test_default_options(run, loads, command):
    calls = loads(model(usual("bn")))
    assert run(command).exit_code == 0
    assert calls == [
        (
            ".",
            {
                "checkpoint": None,
                "step": None,
                "reader": "auto",
                "patterns": (),
                "include_shadows": False,
                "layers": (),
                "values": True,
                "eager": True,
                "config": None,
                "track": ANY,
                "max_download": 256_000_000,
                "storage_options": {},
            },
        )
    ]


@pytest.mark.parametrize("command", ["inspect", "export"])
def test_options_are_passed_on(run, loads, command):
    calls = loads(model(usual("bn")))
    result = run(
        *(command, "runs/cnn", "--checkpoint", "model-7", "--step", "7", "--reader", "native"),
        *("--pattern", "gamma=scale=1$", "--pattern", r"moving_mean=\bmu$"),
        *("--include-shadows", "--no-values", "--layer", "bn", "--layer", "b*"),
        *("--config", "m.json"),
    )
    assert result.exit_code == 0
    assert calls == [
        (
            "runs/cnn",
            {
                "checkpoint": "model-7",
                "step": 7,
                "reader": "native",
                "patterns": (("gamma", "scale=1$"), ("moving_mean", r"\bmu$")),
                "include_shadows": True,
                "layers": ("bn", "b*"),
                "values": False,
                "eager": True,
                "config": "m.json",
                "track": ANY,
                "max_download": 256_000_000,
                "storage_options": {},
            },
        )
    ]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("scale$", "ROLE=REGEX"),
        ("scale=x", "gamma, beta, moving_mean, moving_variance"),
        ("gamma=(", "not a regular expression"),
    ],
)
def test_wrong_patterns(run, loads, pattern, message):
    loads(model())
    result = run("inspect", "--pattern", pattern)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("globs", "names"),
    [
        (["block1/*"], ["block1/a", "block1/b"]),
        (["*/a"], ["block1/a", "block2/a"]),
        (["block2/a", "block1/b"], ["block1/b", "block2/a"]),
        (["block?/[ab]"], ["block1/a", "block1/b", "block2/a"]),
    ],
)
def test_layers_are_chosen_by_name(run, loads, globs, names):
    loads(model(usual("block1/a"), usual("block1/b"), usual("block2/a")))
    options = [part for glob in globs for part in ("--layer", glob)]
    result = run("inspect", *options)
    table = result.stdout.split("\n\n")[1].splitlines()
    assert [line.split()[0] for line in table[1:]] == names


@pytest.mark.parametrize("globs", [["blok1"], ["block1", "blok1"], ["BLOCK1"]])
def test_a_glob_without_match_names_similar_layers(run, loads, globs):
    loads(model(usual("block1"), usual("stem")))
    result = run("inspect", *[part for glob in globs for part in ("--layer", glob)])
    assert result.exit_code == 2
    assert f"no batch-norm layer matches '{globs[-1]}'; near names: block1" in result.stderr


@pytest.fixture
def read(monkeypatch):
    """The number of bytes read of each file, by its name."""
    counts = {}
    plain = LocalFile._read

    def counted(file, offset, length):
        counts[file.name] = counts.get(file.name, 0) + length
        return plain(file, offset, length)

    monkeypatch.setattr(LocalFile, "_read", counted)
    return counts


@pytest.fixture(params=["checkpoint", "h5"])
def two_layers(request, tmp_path):
    """A file with a layer that is small and one that is not; its data file."""
    if request.param == "h5":
        write_h5(tmp_path / "m.h5", usual("large", LARGE), usual("small", SMALL))
        return tmp_path / "m.h5"
    tensors = {
        f"{name}/{role}": array
        for name, channels in (("large", LARGE), ("small", SMALL))
        for role, array in handmade.values(channels).items()
    }
    for name, content in handmade.bundle(tensors).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path / "m.data-00000-of-00001"


@pytest.mark.parametrize(
    "command", ["inspect", "inspect --values", "export", "check", "diff {0}", "history --json"]
)
def test_other_layers_are_not_read(run, read, two_layers, command):
    name, *rest = command.format(two_layers).split()
    paths = 2 if name == "diff" else 1
    result = run(name, two_layers, *rest, "-q", "--layer", "s*")
    assert result.exit_code in (0, 1), result.output
    assert SMALL * 16 * paths <= read[two_layers.name] < LARGE * 4
    read.clear()
    run(name, two_layers, *rest, "-q")
    assert read[two_layers.name] >= LARGE * 16 * paths


def stderr_on_a_terminal(*arguments):
    """Return the exit code and standard error of a command that reads slowly, on a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    code = subprocess.run(
        [sys.executable, "-c", SLOWLY, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        cwd=ROOT,
        env=environment,
        timeout=300,
        check=False,
    ).returncode
    os.set_blocking(ours, False)
    os.close(theirs)
    errors = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            errors += chunk
    except OSError:  # the terminal's other end is closed
        pass
    os.close(ours)
    return code, errors


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["inspect", RUN], 0),
        (["export", RUN], 0),
        (["check", RUN], 0),
        (["diff", RUN, RUN], 0),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_progress_is_shown_while_layers_are_read(arguments, code):
    exit_code, errors = stderr_on_a_terminal(*arguments)
    assert exit_code == code, errors
    assert b"reading" in errors
    assert b"33%" in errors


def test_quiet_commands_show_no_progress():
    assert stderr_on_a_terminal("export", RUN, "-q") == (0, b"")
