from __future__ import annotations

import numpy as np
import pytest

import bnstat.loading
from tests.cli.files import command_line, write_h5
from tests.compare.ports import arrays_of, random_kernel, scale_and_shift, trained
from tests.output.models import usual


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
    return command_line


@pytest.fixture
def sound(tmp_path):
    return write_h5(tmp_path / "sound.h5", usual("bn"))


@pytest.fixture
def old(tmp_path):
    return write_h5(tmp_path / "old.h5", usual("a", seed=1), usual("b", seed=2))


@pytest.fixture
def new(tmp_path):
    """The file `old` with other values of the layer `b`."""
    return write_h5(tmp_path / "new.h5", usual("a", seed=1), usual("b", seed=3))


@pytest.fixture
def folded(tmp_path):
    """A convolution with batch norm, and a convolution that contains the batch norm."""
    norm, kernel = trained("bn", 6), random_kernel(3, 3, 4, 6)
    scale, shift = scale_and_shift(norm)
    own = {f"bn/{role}": array for role, array in arrays_of(norm).items()}
    np.savez(tmp_path / "own.npz", **own, **{"conv/kernel": kernel})
    product = (kernel * scale).transpose(3, 2, 0, 1)
    np.savez(tmp_path / "folded.npz", **{"conv.weight": product, "conv.bias": shift})
    return str(tmp_path / "own.npz"), str(tmp_path / "folded.npz")
