from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bnstat.loading
from tests.builders.signals import heeded
from tests.cli.files import command_line

ROOT = Path(__file__).resolve().parents[2]

DRIVER = """
import atexit, signal, sys
import bnstat.loading
from tests.output.models import *

MODEL = {model}
bnstat.loading.load = lambda path, **options: MODEL
from bnstat.__main__ import run
run()
"""


@pytest.fixture
def loads(monkeypatch):
    """Let every path hold a given model; the calls of `load` are collected."""

    def let(model):
        calls = []

        def load(path, **options):
            calls.append((path, options))
            if isinstance(model, BaseException):
                raise model
            return bnstat.loading.narrow(model, options["layers"])

        monkeypatch.setattr(bnstat.loading, "load", load)
        return calls

    return let


@pytest.fixture
def run():
    """Run the command line in this process."""
    return command_line


@pytest.fixture
def clean_environment():
    names = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    return {**environment, "TERM": "xterm", "LANG": "C.UTF-8"}


@pytest.fixture
def start(clean_environment):
    """Start the command line as a process of its own that finds a given model everywhere."""
    started = []

    def start(arguments, model="model(usual('conv1/bn', 64), usual('conv2/bn'))", **options):
        variables = options.pop("variables", {})
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER.format(model=model), *arguments],
            cwd=ROOT,
            env={**clean_environment, **variables},
            **{
                "stdin": subprocess.DEVNULL,
                "stderr": subprocess.PIPE,
                "preexec_fn": heeded,
                **options,
            },
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
