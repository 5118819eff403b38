"""PyTorch files that are written by hand, so that PyTorch need not be installed."""

from __future__ import annotations

from pathlib import Path

import pytest

import bnstat
from bnstat.errors import UnsupportedError
from tests.builders.oracle import assert_layers
from tests.fuzz import ports
from tests.fuzz.handmade import values

LAYERS = {"state": ["a", "b"], "checkpoint": ["a", "b"], "legacy": ["a", "b"], "whole": ["bn"]}


@pytest.mark.parametrize("name", LAYERS)
def test_every_form(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m"
    path.write_bytes(ports.pytorch_files()[f"{name}.pt"])
    model = bnstat.load(path)
    assert_layers(model, dict.fromkeys(LAYERS[name], values()))
    assert [layer.epsilon for layer in model] == ([1e-5] if name == "whole" else [None, None])


def module(kind: str, **held: object) -> ports.Call:
    state = {"_parameters": {}, "_buffers": {}, "_modules": {}, **held}
    return ports.Call(kind, (), state)


def norm() -> bytes:
    tensors = {name: ports.tensor(ports.Storage(str(at), 3)) for at, name in enumerate(ports.NAMES)}
    held = {"_parameters": dict(list(tensors.items())[:2]),
            "_buffers": dict(list(tensors.items())[2:])}  # fmt: skip
    kind = "torch.nn.modules.batchnorm:BatchNorm2d"
    return ports.program(module(kind, eps=1e-5, momentum=0.1, num_features=3, **held))


@pytest.mark.parametrize("parallel", ["", "module."])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "copied"])
def test_a_model_beside_its_state_dict(parallel: str, shared: bool, tmp_path: Path) -> None:
    """Tensors that share a storage are read once; copies may have other numbers."""
    storages = [ports.Storage(str(at), 3) for at in range(8)]
    own, others = storages[:4], storages[:4] if shared else storages[4:]
    held = {name: ports.tensor(storage) for name, storage in zip(ports.NAMES, own, strict=True)}
    parts = {"_parameters": dict(list(held.items())[:2]), "_buffers": dict(list(held.items())[2:])}
    inner = module("torch.nn.modules.batchnorm:BatchNorm2d", eps=0.5, momentum=0.1, **parts)
    state = {
        f"{parallel}stem.bn.{name}": ports.tensor(storage)
        for name, storage in zip(ports.NAMES, others, strict=True)
    }
    net = module("net:Net", _modules={"stem": module("net:Stem", _modules={"bn": inner})})
    content = {"state_dict": state, "full_model": net}
    arrays = [array.tobytes() for array in values().values()] * 2
    path = tmp_path / "m"
    members = {str(at): array for at, array in enumerate(arrays)}
    path.write_bytes(ports.pytorch_zip(ports.pickled(content), members))
    model = bnstat.load(path)
    assert len(model) == (1 if shared else 2)
    if shared:
        (layer,) = model
        assert (layer.name, layer.epsilon) == ("stem.bn", 0.5)
        assert [f.rule for f in bnstat.check(model) if f.rule == "BN013"] == []
    assert_layers(model, dict.fromkeys(model.keys(), values()))


def test_a_module_of_two_names_is_one_layer(tmp_path: Path) -> None:
    """The pickle contains the module once, and refers to it by its number in the memo."""
    again = {"_parameters": {}, "_buffers": {}, "_modules": {"0": ports.Name("a:b")}}
    pipeline = ports.program(ports.Call("torch.nn:Sequential", (), again))
    pipeline = pipeline.replace(ports.program(ports.Name("a:b")), b"h\x07")
    children = b"}(" + ports.program("bn1") + norm() + b"q\x07" + ports.program("pipeline")
    program = ports.program(ports.Call("net:Net", (), {"_modules": ports.Name("a:b")}))
    program = program.replace(ports.program(ports.Name("a:b")), children + pipeline + b"u")
    storages = {str(at): array.tobytes() for at, array in enumerate(values().values())}
    path = tmp_path / "m"
    path.write_bytes(ports.pytorch_zip(b"\x80\x02" + program + b".", storages))
    model = bnstat.load(path)
    assert not [found for found in bnstat.check(model) if found.severity == "error"]
    assert_layers(model, {"bn1": values()})


def repeated(path: Path, sizes: dict[str, int]) -> None:
    """Write a file whose tensors repeat one number by strides of 0."""
    storage, hooks = ports.Storage("0", 1), ports.Call("collections:OrderedDict", ())
    state = {
        name: ports.Call(
            "torch._utils:_rebuild_tensor_v2", (storage, 0, (size,), (0,), False, hooks)
        )
        for name, size in sizes.items()
    }
    path.write_bytes(ports.pytorch_zip(ports.pickled(state), {"0": b"\0\0\x80?"}))


def test_repeated_numbers_have_a_budget(tmp_path: Path) -> None:
    sizes = {f"{layer}.{name}": 1 << 24 for layer in range(8) for name in ports.NAMES}
    small = {f"bn.{name}": 5 for name in ports.NAMES}
    repeated(tmp_path / "m", sizes | small)
    stored = bnstat.load(tmp_path / "m").stored
    assert all(stored[name].read().tolist() == [1] * 5 for name in small)
    read = 0
    for name in sizes:
        try:
            read += stored[name].read().nbytes
        except UnsupportedError:
            continue
    assert 0 < read <= (1 << 28) + 2 * (tmp_path / "m").stat().st_size
