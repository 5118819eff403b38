"""Tensors, arrays and other objects in PyTorch files, compared with what PyTorch loads."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.errors import DamagedError, UnsupportedError
from bnstat.model import ROLES
from tests.builders.oracle import assert_layers, from_extents, same_bits
from tests.formats.pytorch.files import FORMS, Net, assert_is, save, torch
from tests.formats.pytorch.reading import zipped

WHOLE = torch.arange(12.0)
VIEWS = {
    "transposed": WHOLE.reshape(3, 4).t(),
    "every other": WHOLE[1::2],
    "a part": torch.arange(24.0).reshape(2, 3, 4)[1, :, 1:3],
    "expanded": torch.arange(3.0)[:, None].expand(3, 4),
    "scalar": WHOLE[2],
    "empty": torch.zeros(0, 3),
    "a row of a transposed": WHOLE.reshape(3, 4).t()[2],
    "the first half": WHOLE[:6],
    "the second half": WHOLE[6:],
}


@pytest.mark.parametrize("form", FORMS)
def test_views(tmp_path: Path, form: str) -> None:
    content = {"views": VIEWS, "listed": [WHOLE, {"d": WHOLE[::3]}]}
    variables = bnstat.load(save(tmp_path / "m", content, form)).stored
    assert list(variables) == [*(f"views/{name}" for name in VIEWS), "listed/0", "listed/1/d"]
    assert same_bits(variables["listed/1/d"].read(), WHOLE[::3].numpy())
    for name, tensor in VIEWS.items():
        variable = variables[f"views/{name}"]
        assert variable.shape == tuple(tensor.shape)
        assert same_bits(variable.read(), tensor.numpy())
        (place,) = variable.extents()
        assert (place.part is not None) == tensor.is_contiguous()
        if place.part is not None:
            assert same_bits(from_extents(variable), tensor.numpy())
    alone = bnstat.load(save(tmp_path / "m", WHOLE, form)).stored
    assert same_bits(alone["tensor"].read(), WHOLE.numpy())


@pytest.mark.parametrize("form", [*FORMS, "safetensors"])
def test_every_type(tmp_path: Path, form: str) -> None:
    kinds = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    kinds += ["complex64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64"]
    is_safetensors = form == "safetensors"
    kinds += ["float8_e4m3fnuz", "float8_e5m2fnuz"] if is_safetensors else ["complex128"]
    tensors = {kind: torch.tensor([[0, 1, 3]]).to(getattr(torch, kind)) for kind in kinds}
    if is_safetensors:
        pytest.importorskip("safetensors.torch").save_file(tensors, tmp_path / "m")
    else:
        save(tmp_path / "m", tensors, form)
    stored = bnstat.load(tmp_path / "m").stored
    assert set(stored) == set(kinds)
    for kind, tensor in tensors.items():
        found = stored[kind].read()
        assert (found.dtype.name, found.shape) == (stored[kind].dtype, (1, 3)) == (kind, (1, 3))
        assert found.tobytes() == tensor.view(torch.uint8).numpy().tobytes()


def test_parameters_and_their_subclasses(tmp_path: Path) -> None:
    class Own(torch.nn.Parameter):
        pass

    values = torch.arange(3.0)
    content = {"p": torch.nn.Parameter(values), "o": Own(values), "b": torch.nn.Buffer(values)}
    stored = bnstat.load(save(tmp_path / "m", content)).stored
    assert set(stored) == {"p", "o", "b"}
    for variable in stored.values():
        assert variable.read().tolist() == [0, 1, 2]


def test_tensors_beyond_their_storage(tmp_path: Path) -> None:
    data = save(tmp_path / "m", {"t": torch.arange(4.0)}).read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickled = archive.read("m/data.pkl")
    shape = b"K\x04\x85q"
    assert pickled.count(shape) == 1
    for other, *storage in ((b"K\x05\x85q", bytes(16)), (b"K\xff\x85q", bytes(16)), (shape,)):
        path = zipped(tmp_path / "m", pickled.replace(shape, other), *storage)
        with pytest.raises(DamagedError):
            bnstat.load(path).stored["t"].read()


RANDOM = np.random.default_rng(3)
NAMES = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8"])
def test_arrays_of_numpy(tmp_path: Path, dtype: str, protocol: int, form: str) -> None:
    held = {name: (RANDOM.random(5) + 0.5).astype(dtype) for name in NAMES}
    held |= {"turned": np.arange(6, dtype="<i8").reshape(2, 3).T, "none": np.zeros((0, 2))}
    texts = {"texts": np.array(["a", None]), "names": np.array(["a", "b"])}
    content = {**held, **texts, "scalar": np.float64(3)}
    model = bnstat.load(save(tmp_path / "m.pt", content, form, pickle_protocol=protocol))
    assert not model.notes
    native = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in held.items()}
    assert_layers(model, {"bn": dict(zip(ROLES, native.values(), strict=False))})
    assert set(model.stored) == set(held)
    for name, array in native.items():
        assert same_bits(model.stored[name].read(), array)


def test_an_array_without_its_bytes(tmp_path: Path) -> None:
    content = pickle.dumps({"a": np.arange(4.0)}, 2).replace(b"K\x04\x85", b"K\x05\x85")
    model = bnstat.load(zipped(tmp_path / "m.pt", content))
    with pytest.raises(DamagedError, match="do not fit"):
        model.stored["a"].read()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_quantized_tensors(tmp_path: Path, form: str) -> None:
    values = torch.from_numpy(RANDOM.normal(size=(4, 3, 2)).astype(np.float32))
    scales = torch.from_numpy(RANDOM.uniform(0.01, 0.1, 3))
    zeros = torch.tensor([-3, 0, 5])
    held = {
        "tensor": torch.quantize_per_tensor(values, 0.03, 7, torch.quint8),
        "signed": torch.quantize_per_tensor(values, 0.03, -7, torch.qint8),
        "wide": torch.quantize_per_tensor(values, 1e-4, 0, torch.qint32),
        "view": torch.quantize_per_tensor(values, 0.03, 7, torch.quint8)[1:, 1],
        "channel": torch.quantize_per_channel(values, scales, zeros, 1, torch.qint8),
    }
    model = bnstat.load(save(tmp_path / "m.pt", held, form))
    assert not model.notes
    for name, tensor in held.items():
        variable, expected = model.stored[name], tensor.dequantize().numpy()
        assert (variable.dtype, variable.shape) == ("float32", expected.shape)
        assert same_bits(variable.read(), np.ascontiguousarray(expected))
        step = scales.numpy()[:, None] if name == "channel" else np.float32(tensor.q_scale())
        assert np.array_equal(variable.step() + 0 * expected, step + 0 * expected)
        assert [place.part for place in variable.extents()] == [None]


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_port_is_proven(tmp_path: Path) -> None:
    torch.manual_seed(2)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6))
    net[1].running_mean.uniform_(-1, 1)
    net[1].running_var.uniform_(0.5, 2)
    net.eval()
    save(tmp_path / "float.pt", net.state_dict())
    tools = torch.ao.quantization
    fused = tools.fuse_modules(net, [["0", "1"]])
    fused.qconfig = tools.get_default_qconfig("fbgemm")
    prepared = tools.prepare(fused)
    prepared(torch.rand(4, 3, 8, 8))
    save(tmp_path / "int8.pt", tools.convert(prepared).state_dict())
    pair = (bnstat.load(tmp_path / "float.pt"), bnstat.load(tmp_path / "int8.pt"))
    difference = bnstat.diff(*pair, epsilon=1e-5)
    assert difference.equivalent
    assert [(each.layer, each.rounding) for each in difference.folded] == [("1", "quantized")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("_rebuild_sparse_tensor", torch.eye(5).to_sparse()),
        ("_rebuild_sparse_tensor", torch.eye(5).to_sparse_csr()),
        ("_rebuild_meta_tensor_no_storage", torch.empty(3, device="meta")),
    ],
    ids=["sparse", "rows", "meta"],
)
def test_tensors_of_other_kinds_are_named(tmp_path: Path, name: str, tensor: Any) -> None:
    net = Net()
    path = save(tmp_path / "m.pt", {**net.state_dict(), "other": tensor})
    model = bnstat.load(path)
    assert_is(model, net)
    (note,) = model.notes
    assert f"torch._utils.{name}" in note


def test_distributed_checkpoints_are_refused(tmp_path: Path) -> None:
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    dcp.save({"model": Net().state_dict()}, checkpoint_id=tmp_path)
    for path in (tmp_path, tmp_path / ".metadata", tmp_path / "__0_0.distcp"):
        with pytest.raises(UnsupportedError, match="dcp_to_torch"):
            bnstat.load(path)
