"""Checkpoints written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bnstat.model import ROLES
from tests.fuzz import handmade


def save_norm(folder: Path, prefix: str, mean: float) -> None:
    """Write a bundle with the layer `bn` of 3 channels, all numbers of it being `mean`."""
    tensors = {f"bn/{role}": np.full(3, mean, "f4") for role in ROLES}
    for name, content in handmade.bundle(tensors, prefix=prefix).items():
        (folder / name).write_bytes(content)
