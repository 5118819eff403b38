"""The tensors of ONNX files, compared with the `onnx` package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.formats.contents import Contents
from bnstat.formats.onnx.file import open_contents
from bnstat.model import ROLES, Source
from bnstat.storage.local import LocalFile
from tests.builders.places import from_extents
from tests.formats.keras.files import same_bits
from tests.formats.onnx.models import (
    arrays,
    assert_layer,
    graph,
    helper,
    initializers,
    norm,
    onnx,
    save,
    to_tensor,
)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("raw", [True, False])
def test_types_and_encodings(tmp_path: Path, kind: str, raw: bool) -> None:
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    held = arrays(dtype=dtype)
    tensors = []
    for role, array in held.items():
        code = helper.np_dtype_to_tensor_dtype(dtype)
        content = array.tobytes() if raw else array.astype(np.float64)
        tensors.append(helper.make_tensor(f"bn.{role}", code, array.shape, content, raw=raw))
        assert same_bits(onnx.numpy_helper.to_array(tensors[-1]), array)
    path = save(tmp_path / "m", graph([norm("x", "bn")], tensors))
    model = bnstat.load(path)
    assert_layer(model, "bn", held)
    for variable in model[0].variables.values():
        if raw:
            assert same_bits(from_extents(variable), variable.read())
        else:
            assert [place.part for place in variable.extents()] == [None]


def test_listed_values_of_every_type(tmp_path: Path) -> None:
    codes = ["UINT8", "INT8", "UINT16", "INT16", "INT32", "INT64", "BOOL", "UINT32", "UINT64"]
    codes += ["COMPLEX64", "COMPLEX128", "FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "FLOAT8E5M2"]
    tensors = []
    for name in codes:
        code = getattr(onnx.TensorProto, name)
        values = [1, 0, 1] if name == "BOOL" else [3, 100, 7]
        tensors.append(helper.make_tensor(name, code, [3], values))
    path = save(tmp_path / "m", graph([], tensors))
    contents = open_contents(LocalFile(path), Source(str(path), ""))
    assert list(contents.variables) == codes
    for tensor in tensors:
        assert not tensor.raw_data
        found = contents.variables[tensor.name].read()
        assert same_bits(found, onnx.numpy_helper.to_array(tensor)), tensor.name


def with_external_data(path: Path, **entries: str) -> Path:
    """Write a model of one layer whose tensors are in another file, at these positions."""
    tensors = []
    for number, role in enumerate(ROLES):
        tensor = onnx.TensorProto(name=f"bn.{role}", data_type=1, dims=[3], data_location=1)
        for key, value in {"offset": str(12 * number), **entries}.items():
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    return save(path, graph([norm("x", "bn")], tensors))


def test_external_data(tmp_path: Path) -> None:
    held = arrays()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/weights.bin").write_bytes(b"".join(a.tobytes() for a in held.values()))
    path = with_external_data(tmp_path / "m.onnx", location="data/weights.bin")
    model = bnstat.load(path)
    assert_layer(model, "bn", held)
    for variable in model[0].variables.values():
        assert variable.extents()[0].file.name == "weights.bin"
        assert same_bits(from_extents(variable), variable.read())
    assert len(bnstat.load(tmp_path / "m.onnx", values=False)) == 1


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ({"location": "absent.bin"}, NotFoundError),
        ({"location": "../secret"}, DamagedError),
        ({"location": "a/../../secret"}, DamagedError),
        ({"location": "/etc/passwd"}, DamagedError),
        ({"location": "..\\secret"}, DamagedError),
        ({"location": "C:secret"}, DamagedError),
        ({"location": ""}, DamagedError),
        ({"location": "w", "offset": "1000"}, DamagedError),
        ({"location": "w", "offset": "-4"}, DamagedError),
        ({"location": "w", "offset": "9" * 5000}, DamagedError),
        ({"location": "w", "length": "13"}, DamagedError),
    ],
)
def test_invalid_external_data(
    tmp_path: Path, entries: dict[str, str], error: type[BnstatError]
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/w").write_bytes(bytes(48))
    (tmp_path / "secret").write_bytes(bytes(48))
    layer = bnstat.load(with_external_data(tmp_path / "below/m.onnx", **entries))[0]
    with pytest.raises(error):
        layer.read()


def test_only_batch_norm_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file of 64 MB, a few pieces are read."""
    big = to_tensor(np.zeros(16 << 20, np.float32), "big")
    path = save(tmp_path / "m", graph([norm("x", "bn")], [big, *initializers("bn", arrays())]))
    read = 0
    original = LocalFile._read

    def counted(self: LocalFile, offset: int, length: int) -> bytes:
        nonlocal read
        read += length
        return original(self, offset, length)

    monkeypatch.setattr(LocalFile, "_read", counted)
    bnstat.load(path, eager=True)
    assert 0 < read < 200_000


def with_dims(path: Path, dims: Sequence[int]) -> Contents:
    tensors = initializers("bn", arrays())
    del tensors[0].dims[:]
    tensors[0].dims.extend(dims)
    save(path, graph([norm("x", "bn")], tensors))
    return open_contents(LocalFile(path), Source("", ""))


@pytest.mark.parametrize("dims", [[4], [2**40, 2**40]])
def test_bytes_that_do_not_fit_the_shape(tmp_path: Path, dims: list[int]) -> None:
    with pytest.raises(DamagedError):
        with_dims(tmp_path / "m", dims).variables["bn.gamma"].read()


@pytest.mark.parametrize("dims", [[-3], [1] * 40])
def test_impossible_shapes(tmp_path: Path, dims: list[int]) -> None:
    assert list(with_dims(tmp_path / "m", dims).variables) == [f"bn.{role}" for role in ROLES[1:]]
