"""Valid and hostile pickles, written by hand without PyTorch."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import bnstat
from bnstat.errors import UnsupportedError
from bnstat.formats.pytorch import pickled, state
from bnstat.formats.pytorch.pickled import BudgetError, Global, Opaque, PickleError, unpickle
from bnstat.formats.pytorch.tensors import call, storage_of
from tests.builders.oracle import assert_layers, same_bits
from tests.formats.pytorch.reading import arrays, assert_within_budget, zipped
from tests.fuzz import ports
from tests.fuzz.handmade import values

CIRCLE: list[Any] = []
CIRCLE += [CIRCLE, {"self": CIRCLE}]
MODULE = b"ctorch.nn\nModule\n)R}" + ports.program("_modules") + b"}" + ports.program("n" * 500)
NESTED = {
    "itself": pickle.dumps(CIRCLE, 2)[2:-1],
    "tuples": b")" + b"\x85" * 300_000,
    "lists": b"]" * 100_000 + b"a" * 99_999,
    "dicts": b"}" + b"X\x01\0\0\0k}" * 100_000 + b"s" * 100_000,
    "modules": MODULE * 2000 + b"}" + b"ssb" * 2000,
}


@pytest.mark.parametrize("name", NESTED)
def test_deep_nesting(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "m", b"\x80\x02" + NESTED[name] + b".")
    assert not bnstat.load(path).stored


@pytest.mark.parametrize(
    "program",
    [
        *(b"r\xff\xff\xff\xffN.", b"N r\xff\xff\xff\xff"),  # keep nothing under a number
        *(b".", b"j\x01\0\0\0.", b"h\x05.", b"(((", b"t.", b"R.", b"NNR."),
        *(b"cos\nsystem\nNR.", b"cos\nsystem\n)R"),
        *(b"X\xff\xff\xff\xff.", b"\x8d" + b"\xff" * 8 + b".", b"\x8b\xff\xff\xff\xff."),
        *(b"\x82\x01.", b"\x97.", b"NNs.", b"(NNu.", b"Na.", b"K\x01Q."),
        *(b"I" + b"9" * 5000 + b"\n.", b"Fabc\n.", b"Iabc\n.", b"(K\x011N."),
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.",
    ],
)
def test_invalid_pickles(program: bytes) -> None:
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
    value, _ = unpickle(b"cos\nsystem\nK\x01\x85}\x92.", 0, call, storage_of)
    assert (value.kind, value.arguments) == (Global("os", "system"), (1,))


REPEATED = {
    "a text": ports.program("a" * 5000) + b"q\x010c_codecs\nencode\nq\x02",
    "pairs": b"(" + b"K\x01N\x86" * 5000 + b"lq\x01ccollections\nOrderedDict\nq\x02",
    "arguments": b"(" + b"N" * 5000 + b"tq\x01ca\nb\nq\x02",
}


@pytest.mark.parametrize("name", REPEATED)
def test_calls_have_a_budget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled, "_CALLS_FLOOR", 1000)
    given: list[int] = []

    def counted(function: Global, arguments: tuple[Any, ...]) -> Any:
        sizes = (len(each) for each in arguments if isinstance(each, str | list))
        given.append(len(arguments) + sum(sizes))
        return call(function, arguments)

    program = (
        REPEATED[name] + (b"h\x02h\x01R" if name == "arguments" else b"h\x02h\x01\x85R") * 9000
    )
    with pytest.raises(BudgetError):
        unpickle(program + b".", 0, counted, storage_of)
    assert sum(given) <= pickled._CALLS_PER_BYTE * len(program) + 1000


def test_instructions_have_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled, "_MOST_STEPS", 1000)
    assert unpickle(b"N" * 999 + b".", 0, call, storage_of) == (None, 1000)
    with pytest.raises(UnsupportedError, match="more than 1000 instructions"):
        bnstat.load(zipped(tmp_path / "m", b"N" * 1000 + b"."))


def test_keys_of_one_hash_are_not_kept() -> None:
    keys = [((1 << 61) - 1) << shift for shift in range(20)]
    program = b"".join(ports.program(key) + b"N" for key in keys)
    value, _ = unpickle(b"}(" + program + b"u.", 0, call, storage_of)
    assert len(value) == len(keys)
    assert sum(isinstance(key, int) for key in value) <= 4


def test_empty_containers_cost_nothing_to_walk() -> None:
    root = [[], {}, (), 1, "a", None, True, b""] * 1000
    assert sum(1 for _ in state._walk(root)) == 1


@pytest.mark.parametrize("limit", ["_MOST_VALUES", "_MOST_NAMES"])
def test_the_walk_has_a_budget(tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, limit, 1000)
    shared = {"a" * 500: {str(n): [n] for n in range(2000)}}
    with pytest.raises(UnsupportedError, match="than any network"):
        bnstat.load(zipped(tmp_path / "m", pickle.dumps(shared, 2)))


LAYERS = {"state": ["a", "b"], "checkpoint": ["a", "b"], "legacy": ["a", "b"], "whole": ["bn"]}


@pytest.mark.parametrize("name", LAYERS)
def test_every_form(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m"
    path.write_bytes(ports.pytorch_files()[f"{name}.pt"])
    model = bnstat.load(path)
    assert_layers(model, dict.fromkeys(LAYERS[name], values()))
    assert [layer.epsilon for layer in model] == ([1e-5] if name == "whole" else [None, None])


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(b"Float", "f4"), (b"BFloat16", ml_dtypes.bfloat16), (b"ComplexFloat", "c8"), (b"Char", "i1")],
)
def test_files_of_big_endian_machines(tmp_path: Path, kind: bytes, dtype: Any) -> None:
    array = np.array([1, 2, -3]).astype(dtype)
    content = ports.pickled({"t": ports.tensor(ports.Storage("0", 3))}).replace(b"Float", kind)
    members = {"data.pkl": content, "byteorder": b"big", "data/0": array.byteswap().tobytes()}
    (tmp_path / "m").write_bytes(ports.pytorch_members(members))
    variable = bnstat.load(tmp_path / "m").stored["t"]
    assert same_bits(variable.read(), array)
    assert [place.part for place in variable.extents()] == [None]


def test_old_files_of_big_endian_machines_are_little_endian(tmp_path: Path) -> None:
    """PyTorch's legacy format records the byte order of the machine, but never uses it."""
    content = ports.pytorch_files()["legacy.pt"]
    machine = ports.program("little_endian")
    assert content.count(machine + b"\x88") == 1
    (tmp_path / "m").write_bytes(content.replace(machine + b"\x88", machine + b"\x89"))
    assert_layers(bnstat.load(tmp_path / "m"), dict.fromkeys("ab", values()))


@pytest.mark.parametrize("parallel", ["", "module."])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "copied"])
def test_a_model_beside_its_state_dict(parallel: str, shared: bool, tmp_path: Path) -> None:
    """Tensors that share a storage are read once; copies may have other numbers."""
    inner = ports.torch_norm(ports.tensors(), eps=0.5, momentum=0.1)
    others = ports.tensors(0 if shared else 4)
    state = {f"{parallel}stem.bn.{name}": tensor for name, tensor in others.items()}
    net = ports.torch_module("net:Net", {"stem": ports.torch_module("net:Stem", {"bn": inner})})
    content = ports.pickled({"state_dict": state, "full_model": net})
    model = bnstat.load(zipped(tmp_path / "m", content, *arrays(2)))
    assert len(model) == (1 if shared else 2)
    if shared:
        (layer,) = model
        assert (layer.name, layer.epsilon) == ("stem.bn", 0.5)
        assert [f.rule for f in bnstat.check(model) if f.rule == "BN013"] == []
    assert_layers(model, dict.fromkeys(model.keys(), values()))


@pytest.mark.parametrize("alone", [False, True])
def test_averages_by_the_class_of_pytorch(tmp_path: Path, alone: bool) -> None:
    """`AveragedModel` has a count beside the tensors of the module that it contains."""
    averaged = {f"module.bn.{name}": tensor for name, tensor in ports.tensors(4).items()}
    averaged["n_averaged"] = ports.tensor(ports.Storage("0", 3))
    state = {f"bn.{name}": tensor for name, tensor in ports.tensors().items()}
    content = averaged if alone else {"model": state, "model_ema": averaged}
    path = zipped(tmp_path / "m", ports.pickled(content), *arrays(2))
    assert bnstat.load(path).keys() == ["bn"]
    shadows = [] if alone else ["bn/ExponentialMovingAverage"]
    assert bnstat.load(path, include_shadows=True).keys() == ["bn", *shadows]


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_pruned_parameter_is_multiplied_by_its_mask(tmp_path: Path, is_whole: bool) -> None:
    pruned = {name.replace("weight", "weight_orig"): each for name, each in ports.tensors().items()}
    pruned["weight_mask"] = ports.tensor(ports.Storage("4", 3))
    content: Any = {f"bn.{name}": tensor for name, tensor in pruned.items()}
    if is_whole:
        content = ports.torch_module("net:Net", {"bn": ports.torch_norm(pruned, eps=1e-5)})
    mask = np.array([1, 0, 1], np.float32)
    model = bnstat.load(zipped(tmp_path / "m", ports.pickled(content), *arrays(), mask.tobytes()))
    expected = values()
    assert_layers(model, {"bn": {**expected, "gamma": expected["gamma"] * mask}})
    gamma = model["bn"].variables["gamma"]
    assert (gamma.key, gamma.name, gamma.extents()) == ("bn.weight_orig", "bn.weight", ())
    assert "bn.weight_mask" in model.stored


NORM = "torch.nn.modules.instancenorm:InstanceNorm2d"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (NORM, ["bn"]),
        (f"__torch__.{NORM}", ["bn"]),
        ("layers:BatchInstanceNorm2d", ["bn", "norm"]),
        ("layers:Norm", ["bn", "norm"]),
    ],
)
def test_the_class_decides_if_running_statistics_are_of_batches(
    tmp_path: Path, kind: str, names: list[str]
) -> None:
    settings = {"eps": 1e-5, "momentum": 0.1}
    norm = ports.torch_norm(ports.tensors(4), **settings)._replace(function=kind)
    if kind.startswith("__torch__"):
        norm = ports.Call(kind, (), ports.tensors(4))
    modules = {"bn": ports.torch_norm(ports.tensors(), **settings), "norm": norm}
    content = ports.pickled(ports.torch_module("net:Net", modules))
    model = bnstat.load(zipped(tmp_path / "m", content, *arrays(2)))
    assert model.keys() == names
    reasons = {each.key: each.reason for each in model.explain()}
    if names == ["bn"]:
        assert reasons["norm.running_var"] == "its layer's class is InstanceNorm2d"


def test_a_module_of_two_names_is_one_layer(tmp_path: Path) -> None:
    """The pickle contains the module once, and refers to it by its number in the memo."""
    mark = ports.program(ports.Name("a:b"))
    norm = ports.program(ports.torch_norm(ports.tensors(), eps=1e-5, momentum=0.1))
    again = ports.torch_module("torch.nn:Sequential", {"0": ports.Name("a:b")})
    pipeline = ports.program(again).replace(mark, b"h\x07")
    children = b"}(" + ports.program("bn1") + norm + b"q\x07" + ports.program("pipeline")
    program = ports.program(ports.Call("net:Net", (), {"_modules": ports.Name("a:b")}))
    program = program.replace(mark, children + pipeline + b"u")
    model = bnstat.load(zipped(tmp_path / "m", b"\x80\x02" + program + b".", *arrays()))
    assert not [found for found in bnstat.check(model) if found.severity == "error"]
    assert_layers(model, {"bn1": values()})


def test_repeated_numbers_have_a_budget(tmp_path: Path) -> None:
    """Strides of 0 repeat a number. The budget ends between a pruned parameter and its mask."""
    names = (*ports.NAMES[1:], "weight_orig", "weight_mask")
    sizes = {f"{layer}.{name}": 1 << 24 for layer in range(8) for name in names}
    small = {f"bn.{name}": 5 for name in ports.NAMES}
    one = ports.tensor(ports.Storage("0", 1))
    storage, offset, _, _, *rest = one.arguments
    state = {
        name: one._replace(arguments=(storage, offset, (size,), (0,), *rest))
        for name, size in {**sizes, **small}.items()
    }
    zipped(tmp_path / "m", ports.pickled(state), b"\0\0\x80?")
    stored = bnstat.load(tmp_path / "m").stored
    assert all(stored[name].read().tolist() == [1] * 5 for name in small)
    with pytest.raises(UnsupportedError, match=r"0\.weight_mask: .*more memory than the file"):
        stored["0.weight_orig"].read()
    assert_within_budget(tmp_path / "m")
