"""Tensors in PyTorch files, compared with PyTorch."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from bnstat.errors import DamagedError
from tests.builders.places import from_extents
from tests.formats.keras.files import same_bits
from tests.formats.pytorch.files import (
    FORMS,
    save,
    torch,
)
from tests.formats.pytorch.reading import opened, zipped

VIEWS = {
    "transposed": lambda: torch.arange(12.0).reshape(3, 4).t(),
    "every other": lambda: torch.arange(12.0)[1::2],
    "a part": lambda: torch.arange(24.0).reshape(2, 3, 4)[1, :, 1:3],
    "expanded": lambda: torch.arange(3.0)[:, None].expand(3, 4),
    "scalar": lambda: torch.arange(3.0)[2],
    "empty": lambda: torch.zeros(0, 3),
    "a row of a transposed": lambda: torch.arange(12.0).reshape(3, 4).t()[2],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("view", VIEWS)
def test_views(tmp_path: Path, form: str, view: str) -> None:
    tensor = VIEWS[view]()
    contents = opened(save(tmp_path / "m", {"t": tensor}, form))
    variable = contents.variables["t"]
    assert variable.shape == tuple(tensor.shape)
    assert same_bits(variable.read(), tensor.numpy())
    (place,) = variable.extents()
    assert (place.part is not None) == tensor.is_contiguous()
    if place.part is not None:
        assert same_bits(from_extents(variable), tensor.numpy())


@pytest.mark.parametrize("form", FORMS)
def test_tensors_that_share_a_storage(tmp_path: Path, form: str) -> None:
    whole = torch.arange(10.0)
    content = {"a": whole[:4], "b": whole[4:], "c": [whole, {"d": whole[::3]}]}
    contents = opened(save(tmp_path / "m", content, form))
    assert list(contents.variables) == ["a", "b", "c/0", "c/1/d"]
    for key, expected in (("a", whole[:4]), ("b", whole[4:]), ("c/1/d", whole[::3])):
        assert same_bits(contents.variables[key].read(), expected.numpy())


@pytest.mark.parametrize("form", FORMS)
def test_a_tensor_alone(tmp_path: Path, form: str) -> None:
    contents = opened(save(tmp_path / "m", torch.arange(3.0), form))
    assert contents.variables["tensor"].read().tolist() == [0, 1, 2]


@pytest.mark.parametrize("form", FORMS)
def test_every_type(tmp_path: Path, form: str) -> None:
    kinds = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    kinds += ["complex64", "complex128", "bfloat16"]
    newer = ["float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64"]
    tensors = {kind: torch.tensor([0, 1, 3]).to(getattr(torch, kind)) for kind in kinds + newer}
    contents = opened(save(tmp_path / "m", tensors, form))
    for kind, tensor in tensors.items():
        found = contents.variables[kind].read()
        assert found.dtype.name == kind
        assert found.tobytes() == tensor.view(torch.uint8).numpy().tobytes()


def test_parameters_and_their_subclasses(tmp_path: Path) -> None:
    class Own(torch.nn.Parameter):
        pass

    values = torch.arange(3.0)
    content = {"p": torch.nn.Parameter(values), "o": Own(values), "b": torch.nn.Buffer(values)}
    contents = opened(save(tmp_path / "m", content))
    assert set(contents.variables) == {"p", "o", "b"}
    for variable in contents.variables.values():
        assert variable.read().tolist() == [0, 1, 2]


def test_tensors_beyond_their_storage(tmp_path: Path) -> None:
    data = save(tmp_path / "m", {"t": torch.arange(4.0)}).read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickled = archive.read("m/data.pkl")
    shape = b"K\x04\x85q"
    assert pickled.count(shape) == 1
    for other in (b"K\x05\x85q", b"K\xff\x85q"):
        path = zipped(tmp_path / "m", pickled.replace(shape, other), data__0=bytes(16))
        with pytest.raises(DamagedError):
            opened(path).variables["t"].read()
    with pytest.raises(DamagedError):
        opened(zipped(tmp_path / "m", pickled)).variables["t"].read()
