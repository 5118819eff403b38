"""Runs of the command line in this process, and model files made by hand."""

from __future__ import annotations

import inspect
from pathlib import Path

import h5py
import numpy as np
from click.testing import CliRunner, Result

from bnstat.cli import main
from bnstat.model import BatchNorm


def command_line(*arguments: object) -> Result:
    """Run the command line in this process."""
    # Before click 8.2, the two streams are kept apart only on demand.
    apart = "mix_stderr" in inspect.signature(CliRunner).parameters
    runner = CliRunner(mix_stderr=False) if apart else CliRunner()
    return runner.invoke(main, list(map(str, arguments)))


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
