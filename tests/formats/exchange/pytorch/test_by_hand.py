"""Files of PyTorch's layout that are written by hand, where PyTorch is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest

import bnstat
from tests.formats.keras.files import same_bits
from tests.fuzz import ports
from tests.fuzz.handmade import values

LAYERS = {"state": ["a", "b"], "checkpoint": ["a", "b"], "legacy": ["a", "b"], "whole": ["bn"]}


@pytest.mark.parametrize("name", LAYERS)
def test_every_form(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m"
    path.write_bytes(ports.pytorch_files()[f"{name}.pt"])
    model = bnstat.load(path)
    assert [layer.name for layer in model] == LAYERS[name]
    for layer in model:
        for role, array in values().items():
            assert same_bits(layer.array(role), array)
    assert [layer.epsilon for layer in model] == ([1e-5] if name == "whole" else [None, None])
