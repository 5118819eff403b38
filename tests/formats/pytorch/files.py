"""Files that PyTorch writes, and the layers to find in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bnstat.model import ROLES, Model
from tests.builders.oracle import same_bits
from tests.fuzz import ports

torch = pytest.importorskip("torch", reason="PyTorch writes the files of these tests")

FORMS = {"zip": True, "legacy": False}
NAMES = ["stem.1", "block.0", "a"]


class Net(torch.nn.Module):
    """A network whose order is not the natural order of the names."""

    def __init__(self, dtype: Any = None) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4, eps=2e-3, momentum=0.2)
        )
        self.block = torch.nn.ModuleList([torch.nn.BatchNorm2d(4, affine=False)])
        self.a = torch.nn.BatchNorm1d(5, momentum=None)
        self.norm = torch.nn.LayerNorm(4)
        generator = torch.Generator().manual_seed(0)
        for name, tensor in self.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
            elif name.startswith("stem"):
                tensor.fill_(9)
        if dtype is not None:
            self.to(dtype)


def save(path: Path, content: Any, form: str = "zip", **options: Any) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=FORMS[form], **options)
    return path


def as_array(tensor: Any) -> np.ndarray:
    """Return the numbers of a tensor, also of bfloat16."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def assert_is(model: Model, net: Any, names: list[str] | None = None) -> None:
    """Assert that a model has the layers of a network, in its order, bit for bit."""
    state = net.state_dict()
    assert [layer.name for layer in model] == (names or NAMES)
    for layer, own in zip(model, NAMES, strict=True):
        for name, role in zip(ports.NAMES, ROLES, strict=True):
            expected = state.get(f"{own}.{name}")
            found = layer.array(role)
            assert (found is None) == (expected is None)
            assert found is None or same_bits(found, as_array(expected)), (layer.name, role)
        count = state[f"{own}.num_batches_tracked"]
        assert layer.extra["num_batches_tracked"].read() == count.item()
    assert list(model.incomplete) == []
