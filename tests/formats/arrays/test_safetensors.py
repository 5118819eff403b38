"""Safetensors files, compared with the `safetensors` package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bnstat
from bnstat import model
from bnstat.errors import DamagedError
from bnstat.formats.arrays.safetensors import matches
from bnstat.storage.local import LocalFile
from tests.builders.oracle import from_extents, same_bits
from tests.fuzz.ports import with_length

ROLES = dict(zip(("weight", "bias", "running_mean", "running_var"), model.ROLES, strict=True))


def state(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors = {
        f"layer{index}.bn.{name}": rng.uniform(0.1, 2, 3).astype(np.float32)
        for index in (10, 2)
        for name in ROLES
    }
    tensors["layer2.bn.num_batches_tracked"] = np.array(7)
    tensors["ln.weight"] = tensors["ln.bias"] = np.ones(3, np.float32)
    return tensors


def test_files_of_the_safetensors_package(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.numpy").save_file
    path, tensors = tmp_path / "m", state()
    save_file(tensors, path, metadata={"format": "pt"})
    found = bnstat.load(path)
    assert (found.source.format, found.source.writer) == ("safetensors", "PyTorch")
    assert [layer.name for layer in found] == ["layer2.bn", "layer10.bn"]
    for layer in found:
        assert layer.epsilon is layer.momentum is layer.axis is None
        for name, role in ROLES.items():
            assert layer.variables[role].key == f"{layer.name}.{name}"
            assert same_bits(layer.array(role), tensors[f"{layer.name}.{name}"])
            assert same_bits(from_extents(layer.variables[role]), layer.array(role))
    assert found["layer2.bn"].extra["num_batches_tracked"].read() == 7


def written(path: Path, header: object, data: bytes = bytes(48)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(with_length(text) + data)
    return path


def entry(**changed: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [3], "data_offsets": [0, 12], **changed}


@pytest.mark.parametrize(
    "damaged",
    [
        *({"data_offsets": each} for each in ([0, 8], [0, 100], [12, 0], [-12, 0], [0], None)),
        {"data_offsets": [0, 2**70]},
        *({"shape": each} for each in ([2**62, 4], [-3], [1.5], [True], [1] * 100, "3")),
        {"shape": [0, 2**32, 2**32], "data_offsets": [0, 0]},
        {"dtype": 3},
    ],
)
def test_invalid_entries(tmp_path: Path, damaged: dict[str, object]) -> None:
    path = written(tmp_path / "m", {"t": entry(**damaged)})
    with pytest.raises(DamagedError):
        bnstat.load(path).stored["t"].read()


@pytest.mark.parametrize("header", [b"{}x", b"{" * 100_000, b'{"t": 3}', b'{"t": {}}', b"{\xff}"])
def test_invalid_headers(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(DamagedError):
        bnstat.load(written(tmp_path / "m", header))


def test_plain_json_is_not_recognised(tmp_path: Path) -> None:
    (tmp_path / "m").write_text('{"a": {"b": {"c": {}}}}')
    assert not matches(LocalFile(tmp_path / "m"))


def test_tensors_do_not_overlap(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="overlap"):
        bnstat.load(written(tmp_path / "m", {"a": entry(), "b": entry()}, bytes(12)))
