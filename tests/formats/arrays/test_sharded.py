"""Safetensors and PyTorch files in several parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.formats.locate import locate
from tests.builders.oracle import same_bits
from tests.formats.arrays.test_safetensors import ROLES, state
from tests.fuzz.ports import safetensors_of


def write(folder: Path, tensors: Mapping[str, np.ndarray], **changed: str) -> Path:
    """Write two parts and their index, which names other parts for the tensors in `changed`."""
    places: dict[str, str] = {}
    for number in range(2):
        part = dict([*tensors.items()][number::2])
        name = f"model-0000{number + 1}-of-00002.safetensors"
        (folder / name).write_bytes(safetensors_of(part))
        places |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": {**places, **changed}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


def floats() -> dict[str, np.ndarray]:
    return {name: array for name, array in state().items() if array.dtype == np.float32}


def test_each_file_stands_for_the_model(tmp_path: Path) -> None:
    tensors = floats()
    index = write(tmp_path, tensors)
    for path in (index, tmp_path, tmp_path / "model-00002-of-00002.safetensors"):
        assert len(locate(str(path)).models) == 1
        model = bnstat.load(path)
        assert model.source.format == "safetensors"
        assert [layer.name for layer in model] == ["layer2.bn", "layer10.bn"]
        for layer in model:
            for name, role in ROLES.items():
                assert same_bits(layer.array(role), tensors[f"{layer.name}.{name}"])


def test_parts_of_pytorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(array) for name, array in floats().items()}
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    places = {name: names["2" not in name] for name in tensors}
    for part in names:
        torch.save(
            {name: t for name, t in tensors.items() if places[name] == part}, tmp_path / part
        )
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    model = bnstat.load(tmp_path)
    assert model.source.format == "pytorch"
    assert [layer.name for layer in model] == ["layer2.bn", "layer10.bn"]
    assert same_bits(model[0].moving_mean, tensors["layer2.bn.running_mean"].numpy())


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ("absent.safetensors", NotFoundError),
        ("../model-00001-of-00002.safetensors", DamagedError),
        ("model-00002-of-00002.safetensors", DamagedError),
        ("model.safetensors.index.json", BnstatError),
    ],
)
def test_indexes_with_a_wrong_part(tmp_path: Path, part: str, error: type[BnstatError]) -> None:
    index = write(tmp_path, floats(), **{next(iter(floats())): part})
    with pytest.raises(error):
        bnstat.load(index)


@pytest.mark.parametrize(
    "text", ['{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"x": "weight_map"}']
)
def test_invalid_indexes(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.safetensors.index.json").write_text(text)
    with pytest.raises(DamagedError):
        bnstat.load(tmp_path / "m.safetensors.index.json")


def test_a_part_without_an_index_is_a_model_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, floats()).unlink()
    assert len(locate(str(tmp_path)).models) == 2
