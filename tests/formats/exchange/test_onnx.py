"""ONNX files, against the `onnx` package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.formats.exchange.onnx.file import open_contents, recognises
from bnstat.formats.register import file_format
from bnstat.model import ROLES, Model, Source
from bnstat.storage.local import LocalFile
from tests.builders.places import from_extents
from tests.formats.keras.files import same_bits

onnx = pytest.importorskip("onnx", reason="the onnx package writes the files of these tests")
helper, to_tensor = onnx.helper, onnx.numpy_helper.from_array

OPSETS: dict[int, dict[str, Any]] = {
    1: {"is_test": 1, "spatial": 1, "consumed_inputs": [0, 0, 0, 1, 1]},
    6: {"is_test": 0, "spatial": 1},
    7: {"spatial": 1},
    9: {},
    14: {"training_mode": 0},
    15: {"training_mode": 0},
}
"""Version of the operator -> the attributes that it has beside epsilon and momentum."""

Arrays = dict[str, np.ndarray]


def arrays(seed: int = 0, dtype: Any = np.float32, channels: int = 3) -> Arrays:
    rng = np.random.default_rng(seed)
    return {role: rng.uniform(0.1, 2, channels).astype(dtype) for role in ROLES}


def initializers(prefix: str, of: Arrays) -> list[Any]:
    return [to_tensor(array, f"{prefix}.{role}") for role, array in of.items()]


def norm(x: str, prefix: str, outputs: Sequence[str] = ("y",), **attributes: Any) -> Any:
    inputs = [x, *(f"{prefix}.{role}" for role in ROLES)]
    return helper.make_node("BatchNormalization", inputs, list(outputs), **attributes)


def graph(nodes: Sequence[Any], tensors: Sequence[Any], name: str = "g") -> Any:
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    return helper.make_graph(nodes, name, inputs, outputs, tensors)


def body(nodes: Sequence[Any], tensors: Sequence[Any], outputs: Sequence[str]) -> Any:
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    return helper.make_graph(nodes, "body", [], infos, tensors)


def save(path: Path, of_graph: Any, opset: int = 15, **rest: Any) -> Path:
    model = helper.make_model(
        of_graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("own", 1)],
        producer_name="test",
        producer_version="1.2",
        **rest,
    )
    path.write_bytes(model.SerializeToString())
    return path


def assert_layer(model: Model, name: str, of: Arrays) -> None:
    for role, array in of.items():
        assert same_bits(model[name].array(role), array), role


@pytest.mark.parametrize("opset", OPSETS)
def test_every_version_of_the_operator(tmp_path: Path, opset: int) -> None:
    held = arrays()
    node = norm("x", "bn", epsilon=2e-3, momentum=0.75, **OPSETS[opset])
    path = save(tmp_path / "m", graph([node], initializers("bn", held)), opset)
    model = bnstat.load(path)
    assert (model.source.format, model.source.writer) == ("onnx", f"test 1.2 (opset {opset})")
    (layer,) = model
    assert (layer.epsilon, layer.momentum, layer.axis) == (2e-3, 0.75, 1)
    assert layer.evidence == "graph"
    assert_layer(model, "bn", held)
    assert [variable.key for variable in layer.variables.values()] == [f"bn.{r}" for r in ROLES]


def test_training_form_of_five_outputs(tmp_path: Path) -> None:
    held = arrays()
    outputs = ["y", "mean", "var", "saved_mean", "saved_var"]
    path = save(tmp_path / "m", graph([norm("x", "bn", outputs)], initializers("bn", held)), 9)
    assert_layer(bnstat.load(path), "bn", held)


def test_what_the_operator_defines_where_nothing_is_written(tmp_path: Path) -> None:
    """Epsilon counts always, momentum only where the node trains."""
    for mode, momentum in ((0, None), (1, 0.9)):
        outputs = ["y", "mean", "var"] if mode else ["y"]
        node = norm("x", "bn", outputs, **({"training_mode": 1} if mode else {}))
        (layer,) = bnstat.load(save(tmp_path / "m", graph([node], initializers("bn", arrays()))))
        assert (layer.epsilon, layer.momentum) == (1e-5, momentum)


def test_not_spatial(tmp_path: Path) -> None:
    held = {role: array.reshape(1, 3) for role, array in arrays().items()}
    node = norm("x", "bn", spatial=0)
    (layer,) = bnstat.load(save(tmp_path / "m", graph([node], initializers("bn", held)), 7))
    assert layer.shape == (1, 3)
    assert layer.axis is None


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("raw", [True, False])
def test_types_and_ways_to_store(tmp_path: Path, kind: str, raw: bool) -> None:
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


def test_every_listed_type_as_onnx_reads_it(tmp_path: Path) -> None:
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


def test_constants_and_what_lies_between(tmp_path: Path) -> None:
    """Each statistic comes another way: a constant, through casts and changes of shape."""
    held = arrays()
    nodes = [
        helper.make_node("Constant", [], ["gamma"], value=to_tensor(held["gamma"])),
        helper.make_node("Identity", ["beta0"], ["beta"]),
        helper.make_node("Reshape", ["mean0", "shape"], ["mean1"]),
        helper.make_node("Squeeze", ["mean1"], ["mean"]),
        helper.make_node("Cast", ["var0"], ["var1"], to=1),
        helper.make_node("Unsqueeze", ["var1", "axes"], ["var2"]),
        helper.make_node("Reshape", ["var2", "minus"], ["var"]),
        helper.make_node(
            "BatchNormalization", ["x", "gamma", "beta", "mean", "var"], ["y"], name="a/bn"
        ),
    ]
    tensors = [
        to_tensor(held["beta"], "beta0"),
        to_tensor(held["moving_mean"], "mean0"),
        to_tensor(held["moving_variance"].astype(np.float64), "var0"),
        to_tensor(np.array([1, 3]), "shape"),
        to_tensor(np.array([0]), "axes"),
        to_tensor(np.array([-1]), "minus"),
    ]
    model = bnstat.load(save(tmp_path / "m", graph(nodes, tensors)))
    (layer,) = model
    assert layer.name == "a/bn"
    expected = {**held, "moving_variance": held["moving_variance"].astype(np.float64)}
    assert_layer(model, "a/bn", expected)


def test_inside_branches_loops_and_functions(tmp_path: Path) -> None:
    """Two bodies of an If use names of their own, a loop's uses the outer graph's tensors."""
    held = {name: arrays(seed) for seed, name in enumerate(("a", "b", "c", "d"))}
    then = body([norm("x", "a", ["t"])], initializers("a", held["a"]), ["t"])
    other = body([norm("x", "b", ["e"])], initializers("b", held["b"]), ["e"])
    loop = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"]), norm("state", "c", ["next"])],
        "loop",
        [
            helper.make_tensor_value_info("i", onnx.TensorProto.INT64, None),
            helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, None),
            helper.make_tensor_value_info("state", onnx.TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("again", onnx.TensorProto.BOOL, None),
            helper.make_tensor_value_info("next", onnx.TensorProto.FLOAT, None),
        ],
    )
    inner = helper.make_node("BatchNormalization", ["X", "g", "b", "m", "v"], ["Y"], name="inner")
    inner.attribute.append(onnx.AttributeProto(name="epsilon", type=1, ref_attr_name="small"))
    function = helper.make_function(
        "own", "Norm", ["X", "g", "b", "m", "v"], ["Y"], [inner],
        [helper.make_opsetid("", 15)], ["small"],
    )  # fmt: skip
    call = helper.make_node(
        "Norm", ["looped", *(f"d.{role}" for role in ROLES)], ["y"],
        name="called", domain="own", small=0.25,
    )  # fmt: skip
    nodes = [
        helper.make_node("If", ["flag"], ["chosen"], then_branch=then, else_branch=other),
        helper.make_node("Loop", ["", "flag", "chosen"], ["looped"], body=loop),
        call,
    ]
    tensors = [to_tensor(np.array(True), "flag")]
    tensors += initializers("c", held["c"]) + initializers("d", held["d"])
    model = bnstat.load(save(tmp_path / "m", graph(nodes, tensors), functions=[function]))
    assert [layer.name for layer in model] == ["a", "b", "c", "called/inner"]
    for name in ("a", "b", "c"):
        assert_layer(model, name, held[name])
    assert_layer(model, "called/inner", held["d"])
    assert model["called/inner"].epsilon == 0.25


def test_names_and_order_of_the_network(tmp_path: Path) -> None:
    names = ["/z/bn/BatchNormalization", "StatefulPartitionedCall/net/bn2/FusedBatchNormV3", "bn10"]
    nodes, tensors = [], []
    for index, name in enumerate(names):
        output = "y" if index == 2 else f"t{index}"
        nodes.append(norm(f"t{index - 1}" if index else "x", f"w{index}", [output], name=name))
        tensors += initializers(f"w{index}", arrays(index))
    nodes.append(norm("y", "unnamed", ["last"]))
    numbered = dict(zip(ROLES, ("20", "21", "22", "23"), strict=True))
    nodes.append(helper.make_node("BatchNormalization", ["last", *numbered.values()], ["24"]))
    tensors += initializers("unnamed", arrays())
    tensors += [to_tensor(arrays()[role], name) for role, name in numbered.items()]
    model = bnstat.load(save(tmp_path / "m", graph(nodes, tensors)))
    expected = ["z/bn", "net/bn2", "bn10", "unnamed", "BatchNormalization_24"]
    assert [layer.name for layer in model] == expected


def test_pytorch_names_of_initializers_name_the_layers(tmp_path: Path) -> None:
    held = arrays()
    names = ("layer1.0.bn.weight", "layer1.0.bn.bias")
    names += ("layer1.0.bn.running_mean", "layer1.0.bn.running_var")
    node = helper.make_node("BatchNormalization", ["x", *names], ["12"])
    tensors = [to_tensor(array, name) for array, name in zip(held.values(), names, strict=True)]
    assert_layer(bnstat.load(save(tmp_path / "m", graph([node], tensors))), "layer1.0.bn", held)


def test_layer_norm_is_none(tmp_path: Path) -> None:
    node = helper.make_node("LayerNormalization", ["x", "ln.weight", "ln.bias"], ["y"])
    tensors = [to_tensor(np.ones(3, np.float32), f"ln.{each}") for each in ("weight", "bias")]
    assert list(bnstat.load(save(tmp_path / "m", graph([node], tensors), 17))) == []


def outside(path: Path, **entries: str) -> Path:
    """A model of one layer, each of whose tensors lies at these places beside the file."""
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
    path = outside(tmp_path / "m.onnx", location="data/weights.bin")
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
def test_external_data_that_is_refused(
    tmp_path: Path, entries: dict[str, str], error: type[BnstatError]
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/w").write_bytes(bytes(48))
    (tmp_path / "secret").write_bytes(bytes(48))
    layer = bnstat.load(outside(tmp_path / "below/m.onnx", **entries))[0]
    with pytest.raises(error):
        layer.read()


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of 64 MB costs a few pieces of its file."""
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


def test_truncated_anywhere_is_recognised_and_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m", graph([norm("x", "bn")], initializers("bn", arrays())))
    data = path.read_bytes()
    for length in range(60, len(data) - 1, 7):
        path.write_bytes(data[:length])
        assert recognises(LocalFile(path))
        with pytest.raises(BnstatError):
            bnstat.load(path)


def test_an_attribute_that_is_damaged(tmp_path: Path) -> None:
    path = save(tmp_path / "m", graph([norm("x", "bn", epsilon=0.5)], initializers("bn", arrays())))
    sound = path.read_bytes()
    for damage in (b"epsilo\xff", b"epsilon"[:5] + b"\xff\xff"):
        path.write_bytes(sound.replace(b"epsilon", damage))
        with pytest.raises(DamagedError):
            bnstat.load(path)


def with_dims(path: Path, dims: Sequence[int]) -> Contents:
    tensors = initializers("bn", arrays())
    del tensors[0].dims[:]
    tensors[0].dims.extend(dims)
    save(path, graph([norm("x", "bn")], tensors))
    return open_contents(LocalFile(path), Source("", ""))


@pytest.mark.parametrize("dims", [[4], [2**40, 2**40]])
def test_other_bytes_than_the_shape_says(tmp_path: Path, dims: list[int]) -> None:
    with pytest.raises(DamagedError):
        with_dims(tmp_path / "m", dims).variables["bn.gamma"].read()


@pytest.mark.parametrize("dims", [[-3], [1] * 40])
def test_shapes_that_cannot_be(tmp_path: Path, dims: list[int]) -> None:
    assert list(with_dims(tmp_path / "m", dims).variables) == [f"bn.{role}" for role in ROLES[1:]]


def test_functions_that_call_each_other_without_end(tmp_path: Path) -> None:
    functions = [
        helper.make_function(
            "own", name, ["X"], ["Y"],
            [helper.make_node(other, ["X"], [f"t{i}"], domain="own") for i in range(9)],
            [helper.make_opsetid("", 15)],
        )
        for name, other in (("A", "B"), ("B", "A"))
    ]  # fmt: skip
    call = helper.make_node("A", ["x"], ["y"], domain="own")
    path = save(tmp_path / "m", graph([call], []), functions=functions)
    with pytest.raises(UnsupportedError):
        bnstat.load(path)


def test_nodes_that_are_all_called_alike(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], [f"t{i}"], name="same") for i in range(20_000)]
    path = save(tmp_path / "m", graph(nodes, []))
    assert list(bnstat.load(path)) == []


def test_what_is_no_onnx_is_left_to_others(tmp_path: Path) -> None:
    path = tmp_path / "m"
    others = (b"\x08\x01\x12\x00", b"\x08", b"\x08\x07", b"\x0a\x03\x0a\x01x")
    for data in (*others, b"\x08\x07:\x02\x0f\x00"):
        path.write_bytes(data)
        assert not recognises(LocalFile(path))
        assert file_format(LocalFile(path)) is None
