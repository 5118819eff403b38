"""Runs of the command line in this process, and model files made by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from click.testing import CliRunner, Result

from bnstat.cli import main
from bnstat.model import BatchNorm
from tests.terminal import ROOT


def command_line(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, list(map(str, arguments)))


def in_child(*arguments: object, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run the command line in its own process; `env` is added to the environment."""
    prefix, env = options.pop("prefix", ()), os.environ | options.pop("env", {})
    command = [*prefix, sys.executable, "-m", "bnstat", *map(str, arguments)]
    streams = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    defaults = {**streams, "text": True, "timeout": 300, "cwd": ROOT}
    return subprocess.run(command, env=env, check=False, **(defaults | options))


def write_h5(path: Path, *layers: BatchNorm) -> str:
    """Write layers as a weights-only Keras 2 file, and return its path."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{role}:0" for role in layer.variables]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, role in zip(names, layer.variables, strict=True):
                group.create_dataset(name, data=np.asarray(layer.array(role)))
    return str(path)
