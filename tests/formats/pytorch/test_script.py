"""TorchScript archives: names, settings from the code, and the stores of tch-rs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import bnstat
from bnstat.model import ROLES
from tests.builders.oracle import assert_layers, same_bits
from tests.formats.pytorch.reading import arrays
from tests.fuzz import ports
from tests.fuzz.handmade import values

TENSORS = ports.tensors()
NORM = "__torch__.torch.nn.modules.batchnorm"
CODE = "code/__torch__/torch/nn/modules/batchnorm"
HEAD = """class BatchNorm2d(Module):
  __parameters__ = ["weight", "bias", ]
  weight : Tensor
"""
CONSTANTS = f"{HEAD}  momentum : Final[float] = 0.20000000000000001\n  eps : Final[float] = 0.003\n"
CALL = "torch.batch_norm(input, self.weight, _2, _1, _0, False, {}, 0.0030000000000000001, True)"
TRACED = f"{HEAD}  def forward(self: X) -> Tensor:\n    input = {CALL}\n    return input\n"
SCRIPTED = f"""{HEAD}  def forward(self: X) -> Tensor:
    _0 = __torch__.torch.nn.functional.batch_norm
    _3 = _0(input, running_mean, running_var, weight, bias, bn_training, {{}}, 0.003, )
    return _3
"""
OTHER = "class Other(Module):\n  eps : Final[float] = 9.\n  momentum : Final[float] = 9.\n"


def archive(path: Path, root: Any, code: Mapping[str, str] = {}) -> Path:
    members = {f"{name}.py": text.encode() for name, text in code.items()}
    members |= {f"data/{key}": data for key, data in enumerate(arrays())}
    path.write_bytes(ports.pytorch_members({"data.pkl": ports.pickled(root), **members}))
    return path


def network(*kinds: str) -> ports.Call:
    """Return a module with norms of these classes in `features`."""
    state = {"training": False, **TENSORS}
    norms = {str(at): ports.Call(kind, (), state) for at, kind in enumerate(kinds)}
    features = ports.Call("__torch__.torch.nn.modules.container:Sequential", (), norms)
    return ports.Call("__torch__:Net", (), {"training": False, "features": features})


@pytest.mark.parametrize(
    ("code", "momentum"),
    [
        (CONSTANTS, 0.8),
        (f"{OTHER}{CONSTANTS}{OTHER}", 0.8),
        (TRACED.format(0.2), 0.8),
        (TRACED.format("exponential_average_factor"), None),
        (SCRIPTED.format(0.2), 0.8),
        (SCRIPTED.format("factor"), None),
    ],
)
def test_settings_are_read_from_the_code(tmp_path: Path, code: str, momentum: float | None) -> None:
    path = archive(
        tmp_path / "m",
        network(f"{NORM}:BatchNorm2d", f"{NORM}.___torch_mangle_7:BatchNorm2d"),
        {CODE: code, f"{CODE}/___torch_mangle_7": CONSTANTS},
    )
    model = bnstat.load(path)
    assert model.keys() == ["features.0", "features.1"]
    assert [layer.epsilon for layer in model] == [0.003, 0.003]
    assert [layer.momentum for layer in model] == [momentum, 0.8]
    assert [layer.axis for layer in model] == [1, 1]
    assert_layers(model, dict.fromkeys(model.keys(), values()))
    for layer in model:
        keys = [layer.variables[role].key for role in ROLES]
        assert keys == [f"{layer.name}.{name}" for name in ports.NAMES]


@pytest.mark.parametrize(
    "code",
    [
        *(None, "", OTHER, HEAD, "\0\xff"),
        HEAD + "  eps : Final[float] = __import__('os').abort()\n",
        HEAD + "  momentum : Final[float] = 0.1\n",
        TRACED.format(0.2) + TRACED.format(0.3).replace(HEAD, ""),
    ],
)
def test_code_without_settings(tmp_path: Path, code: str | None) -> None:
    members = {} if code is None else {CODE: code}
    (layer,) = bnstat.load(archive(tmp_path / "m", network(f"{NORM}:BatchNorm2d"), members))
    assert layer.epsilon is layer.momentum is None
    assert layer.name == "features.0"


def test_dots_of_tch_rs(tmp_path: Path) -> None:
    norm = reversed(TENSORS.items())
    state = {f"net|bn_{at}|{name}": value for name, value in norm for at in (10, 9)}
    model = bnstat.load(archive(tmp_path / "m.ot", ports.Call("__torch__:Module", (), state)))
    assert model.keys() == ["net.bn_9", "net.bn_10"]
    assert model[0].variables["gamma"].key == "net|bn_9|weight"
    assert_layers(model, dict.fromkeys(model.keys(), values()))


def test_numbers_of_tch_rs(tmp_path: Path) -> None:
    storage, *_ = TENSORS["bias"].arguments
    kernel = (storage, 0, (3, 1, 1), (1, 1, 1), False, None)
    state = {"weight": TENSORS["bias"]._replace(arguments=kernel)}
    state |= {"running_var": TENSORS["running_var"], "weight__1": TENSORS["weight"]}
    state |= {"running_mean": TENSORS["running_mean"], "bias": TENSORS["bias"]}
    (layer,) = bnstat.load(archive(tmp_path / "m.ot", ports.Call("__torch__:Module", (), state)))
    keys = [layer.variables[role].key for role in ROLES]
    assert keys == ["weight__1", "bias", "running_mean", "running_var"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_files_of_torch(tmp_path: Path, how: str) -> None:
    torch = pytest.importorskip("torch")
    inner = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2, 3e-3, 0.2))
    net = torch.nn.Sequential(inner, torch.nn.BatchNorm2d(2)).eval()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.add_(3)
    example = torch.ones(1, 1, 9, 9)
    built = torch.jit.script(net) if how == "script" else torch.jit.trace(net, example)
    built.save(tmp_path / "m")
    model = bnstat.load(tmp_path / "m")
    assert model.keys() == ["0.1", "1"]
    assert [layer.epsilon for layer in model] == [3e-3, 1e-5]
    assert [layer.momentum for layer in model] == [0.8, 0.9]
    for layer in model:
        for variable in layer.all_variables():
            assert same_bits(variable.read(), net.state_dict()[variable.key].numpy())
