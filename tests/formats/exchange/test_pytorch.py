"""PyTorch's files, against PyTorch."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.formats.exchange.pytorch.file import open_contents, recognises
from bnstat.formats.exchange.pytorch.pickled import Global, Opaque, PickleError, unpickle
from bnstat.formats.exchange.pytorch.tensors import call, storage_of
from bnstat.model import Model, Source
from bnstat.storage.local import LocalFile
from tests.builders.places import from_extents
from tests.formats.keras.files import same_bits

torch = pytest.importorskip("torch", reason="PyTorch writes the files of these tests")

FORMS = {"zip": True, "legacy": False}
ROLES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


class Net(torch.nn.Module):
    """Names that natural order would put another way round."""

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


NAMES = ["stem.1", "block.0", "a"]


def save(path: Path, content: Any, form: str = "zip") -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=FORMS[form])
    return path


def opened(path: Path) -> Contents:
    assert recognises(LocalFile(path))
    return open_contents(LocalFile(path), Source(str(path), ""))


def as_array(tensor: Any) -> np.ndarray:
    """The tensor's numbers, those of bfloat16 included."""
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def assert_is(model: Model, net: Any, names: list[str] | None = None) -> None:
    """The model has the network's layers, in its order, bit for bit."""
    state = net.state_dict()
    assert [layer.name for layer in model] == (names or NAMES)
    for layer, own in zip(model, NAMES, strict=True):
        for name, role in ROLES.items():
            expected = state.get(f"{own}.{name}")
            found = layer.array(role)
            assert (found is None) == (expected is None)
            assert found is None or same_bits(found, as_array(expected)), (layer.name, role)
        count = state[f"{own}.num_batches_tracked"]
        assert layer.extra["num_batches_tracked"].read() == count.item()
    assert list(model.incomplete) == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [None, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_state_dicts(tmp_path: Path, form: str, dtype: Any) -> None:
    net = Net(dtype)
    model = bnstat.load(save(tmp_path / "m", net.state_dict(), form))
    assert model.source.format == "pytorch"
    assert_is(model, net)
    for layer in model:
        assert layer.epsilon is layer.momentum is layer.axis is None
        assert all(
            v.key == f"{layer.name}.{v.key.split('.')[-1]}" for v in layer.variables.values()
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "net"])
def test_checkpoints(tmp_path: Path, form: str, wrapper: str) -> None:
    net = Net()
    optimizer = torch.optim.Adam(net.parameters())
    sum(parameter.sum() for parameter in net.parameters()).backward()
    optimizer.step()
    content = {wrapper: net.state_dict(), "epoch": 3, "optimizer": optimizer.state_dict()}
    content["args"] = argparse.Namespace(lr=0.1)
    model = bnstat.load(save(tmp_path / "m", content, form))
    assert_is(model, net)
    assert model[0].variables["gamma"].key == f"{wrapper}/stem.1.weight"
    (note,) = model.notes
    assert "argparse.Namespace" in note
    assert "Adam" not in note


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_parallel_and_compiled(tmp_path: Path, prefix: str) -> None:
    net = Net()
    state = {prefix + name: tensor for name, tensor in net.state_dict().items()}
    assert_is(bnstat.load(save(tmp_path / "m", state)), net)
    assert_is(bnstat.load(save(tmp_path / "m", {"model": state})), net)


def test_an_attribute_called_module_is_the_authors(tmp_path: Path) -> None:
    net = Net()
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    state["head.weight"] = torch.ones(2)
    names = [f"module.{name}" for name in NAMES]
    assert_is(bnstat.load(save(tmp_path / "m", state)), net, names)


def test_lightning(tmp_path: Path) -> None:
    net = Net()
    content = {
        "pytorch-lightning_version": "2.5.0",
        "global_step": 1200,
        "state_dict": {f"net.{name}": tensor for name, tensor in net.state_dict().items()},
    }
    model = bnstat.load(save(tmp_path / "m.ckpt", content))
    assert (model.source.writer, model.source.step) == ("PyTorch Lightning 2.5.0", 1200)
    assert_is(model, net, [f"net.{name}" for name in NAMES])


@pytest.mark.parametrize("name", ["ema", "state_dict_ema", "params_ema"])
def test_averages_are_set_apart_unless_they_are_all(tmp_path: Path, name: str) -> None:
    net, ema = Net(), Net()
    for tensor in ema.state_dict().values():
        tensor.add_(1)
    path = save(tmp_path / "m", {"state_dict": net.state_dict(), name: ema.state_dict()})
    assert_is(bnstat.load(path), net)
    both = bnstat.load(path, include_shadows=True)
    assert len(both) == 2 * len(NAMES)
    shadow = both["stem.1/ExponentialMovingAverage"].moving_mean
    assert same_bits(shadow, as_array(ema.stem[1].running_mean))
    alone = bnstat.load(save(tmp_path / "m", {name: ema.state_dict()}))
    assert [layer.name for layer in alone] == NAMES
    assert same_bits(alone[0].moving_mean, as_array(ema.stem[1].running_mean))
    assert "averages" in alone[0].notes[0]


@pytest.mark.parametrize("form", FORMS)
def test_whole_models_tell_their_settings(tmp_path: Path, form: str) -> None:
    net = Net()
    model = bnstat.load(save(tmp_path / "m", {"model": net, "epoch": 1}, form))
    assert_is(model, net)
    assert [layer.epsilon for layer in model] == [2e-3, 1e-5, 1e-5]
    assert [layer.momentum for layer in model] == [0.8, 0.9, None]
    assert [layer.axis for layer in model] == [1, 1, 1]
    assert {layer.evidence for layer in model} == {"config"}
    (note,) = model.notes
    assert note.endswith(f"{Net.__module__}.Net")
    assert [layer.name for layer in bnstat.load(save(tmp_path / "n", net, form))] == NAMES


def test_torch_script(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(4))
    net[0].running_mean.add_(3)
    torch.jit.script(net).save(tmp_path / "m")
    (layer,) = bnstat.load(tmp_path / "m")
    assert layer.name == "0"
    assert same_bits(layer.moving_mean, as_array(net[0].running_mean))


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


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("form", FORMS)
def test_every_protocol(tmp_path: Path, form: str, protocol: int) -> None:
    net = Net()
    torch.save(
        net.state_dict(), tmp_path / "m", pickle_protocol=protocol,
        _use_new_zipfile_serialization=FORMS[form],
    )  # fmt: skip
    assert_is(bnstat.load(tmp_path / "m"), net)


def test_parameters_and_their_subclasses(tmp_path: Path) -> None:
    class Own(torch.nn.Parameter):
        pass

    values = torch.arange(3.0)
    content = {"p": torch.nn.Parameter(values), "o": Own(values), "b": torch.nn.Buffer(values)}
    contents = opened(save(tmp_path / "m", content))
    assert set(contents.variables) == {"p", "o", "b"}
    for variable in contents.variables.values():
        assert variable.read().tolist() == [0, 1, 2]


class _Bomb:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_executed(tmp_path: Path, form: str) -> None:
    net = Net()
    content = {"model": net.state_dict(), "extra": _Bomb(f"touch {tmp_path / 'executed'}")}
    model = bnstat.load(save(tmp_path / "m", content, form))
    assert_is(model, net)
    assert "system" in model.notes[0]
    assert not (tmp_path / "executed").exists()


def zipped(path: Path, pickle_: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", pickle_)
        for name, content in members.items():
            archive.writestr(f"m/{name.replace('__', '/')}", content)
    return path


def test_containers_that_contain_themselves(tmp_path: Path) -> None:
    content: dict[str, Any] = {"list": []}
    content["list"].append(content)
    content["self"] = content
    assert dict(opened(zipped(tmp_path / "m", pickle.dumps(content, 2))).variables) == {}


@pytest.mark.parametrize("opening", [b"(t", b"]", b"}"])
def test_nesting_without_end(tmp_path: Path, opening: bytes) -> None:
    deep = {b"(t": b")" + b"\x85" * 300_000, b"]": b"]" * 100_000 + b"a" * 99_999,
            b"}": b"}" + b"X\x01\0\0\0k}" * 100_000 + b"s" * 100_000}  # fmt: skip
    path = zipped(tmp_path / "m", b"\x80\x02" + deep[opening] + b".")
    assert dict(opened(path).variables) == {}


@pytest.mark.parametrize(
    "program",
    [
        b"r\xff\xff\xff\xffN.",  # keeps nothing under a number
        b"N r\xff\xff\xff\xff",
        b".",
        b"j\x01\0\0\0.",
        b"h\x05.",
        b"(((",
        b"t.",
        b"R.",
        b"NNR.",
        b"cos\nsystem\nNR.",
        b"cos\nsystem\n)R",
        b"X\xff\xff\xff\xff.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x8b\xff\xff\xff\xff.",
        b"\x82\x01.",
        b"\x97.",
        b"NNs.",
        b"(NNu.",
        b"Na.",
        b"K\x01Q.",
        b"I" + b"9" * 5000 + b"\n.",
        b"Fabc\n.",
        b"Iabc\n.",
        b"(K\x011N.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.",
    ],
)
def test_pickles_that_are_none(program: bytes) -> None:
    try:
        value, _ = unpickle(program, 0, call, storage_of)
    except PickleError:
        return
    assert value is None or isinstance(value, Opaque)


def test_unknown_things_stay_unbuilt() -> None:
    program = b"cos\nsystem\nX\x02\0\0\0ls\x85R}X\x01\0\0\0aK\x01sb."
    value, end = unpickle(program, 0, call, storage_of)
    assert (value.kind, value.arguments) == (Global("os", "system"), ("ls",))
    assert (value.state, end) == ({"a": 1}, len(program))


@pytest.mark.parametrize("form", FORMS)
def test_cut_short(tmp_path: Path, form: str) -> None:
    data = save(tmp_path / "m", Net().state_dict(), form).read_bytes()
    for length in range(200, len(data) - 1, len(data) // 19):
        (tmp_path / "m").write_bytes(data[:length])
        assert recognises(LocalFile(tmp_path / "m"))
        with pytest.raises(BnstatError) as caught:
            bnstat.load(tmp_path / "m", eager=True)
        assert not isinstance(caught.value, NotFoundError)


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


def test_few_numbers_repeated_without_end(tmp_path: Path) -> None:
    path = save(tmp_path / "m", {"t": torch.ones(1).expand(1 << 40)})
    with pytest.raises(UnsupportedError):
        opened(path).variables["t"].read()


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = OrderedDict(big=torch.zeros(4 << 20), **Net().state_dict())
    for form in FORMS:
        path = save(tmp_path / "m", state, form)
        read = 0
        original = LocalFile._read

        def counted(self: LocalFile, offset: int, length: int, original: Any = original) -> bytes:
            nonlocal read
            read += length
            return original(self, offset, length)

        with monkeypatch.context() as patch:
            patch.setattr(LocalFile, "_read", counted)
            bnstat.load(path, eager=True)
        assert 0 < read < 600_000, form


def test_a_zip_of_something_else_is_none(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m", "w") as archive:
        archive.writestr("a/b.txt", "data.pkl")
    assert not recognises(LocalFile(tmp_path / "m"))
    (tmp_path / "p").write_bytes(pickle.dumps({"a": 1}))
    assert not recognises(LocalFile(tmp_path / "p"))
