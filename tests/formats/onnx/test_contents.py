"""The layers and tensors of ONNX files, compared with the `onnx` package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnsupportedError
from bnstat.formats.onnx.file import matches, open_contents
from bnstat.formats.protobuf.wire import field
from bnstat.model import ROLES, Source
from bnstat.storage.local import LocalFile
from tests.builders.effort import bounded
from tests.builders.oracle import assert_layers, from_extents, same_bits

onnx = pytest.importorskip("onnx", reason="the onnx package writes the files of these tests")

helper, to_tensor = onnx.helper, onnx.numpy_helper.from_array
node, FLOAT = helper.make_node, onnx.TensorProto.FLOAT

Arrays = dict[str, np.ndarray]


def arrays(seed: int = 0, dtype: Any = np.float32) -> Arrays:
    rng = np.random.default_rng(seed)
    return {role: rng.uniform(0.1, 2, 3).astype(dtype) for role in ROLES}


def tensors_of(of: Arrays) -> list[Any]:
    return [to_tensor(array, name) for name, array in of.items()]


def initializers(prefix: str, of: Arrays) -> list[Any]:
    return tensors_of({f"{prefix}.{role}": array for role, array in of.items()})


def norm(x: str, prefix: str, outputs: Sequence[str] = ("y",), **attributes: Any) -> Any:
    inputs = [x, *(f"{prefix}.{role}" for role in ROLES)]
    return node("BatchNormalization", inputs, list(outputs), **attributes)


def info(name: str, shape: Sequence[int] | None = None) -> Any:
    """Describe an input or an output of a graph."""
    return helper.make_tensor_value_info(name, FLOAT, shape)


def graph(nodes: Sequence[Any], tensors: Sequence[Any]) -> Any:
    return helper.make_graph(nodes, "g", [info("x")], [info("y")], tensors)


def body(nodes: Sequence[Any], tensors: Any, outputs: Sequence[str], inputs: Any = ()) -> Any:
    return helper.make_graph(nodes, "body", [*map(info, inputs)], [*map(info, outputs)], tensors)


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


def assert_layer(model: Any, name: str | int, of: Arrays) -> None:
    for role, array in of.items():
        assert same_bits(model[name].array(role), array), role


OPSETS = [helper.make_opsetid("", 15)]


@pytest.mark.parametrize(
    ("opset", "attributes", "outputs"),
    [
        (1, {"is_test": 1, "spatial": 1, "consumed_inputs": [0, 0, 0, 1, 1]}, ["y"]),
        (6, {"is_test": 0, "spatial": 1}, ["y"]),
        (7, {"spatial": 1}, ["y"]),
        (9, {}, ["y"]),
        (9, {}, ["y", "mean", "var", "saved_mean", "saved_var"]),
        (14, {"training_mode": 0}, ["y"]),
        (15, {"training_mode": 0}, ["y"]),
    ],
)
def test_every_version_of_the_operator(
    tmp_path: Path, opset: int, attributes: dict[str, Any], outputs: list[str]
) -> None:
    held = arrays()
    only = norm("x", "bn", outputs, epsilon=2e-3, momentum=0.75, **attributes)
    path = save(tmp_path / "m", graph([only], initializers("bn", held)), opset)
    model = bnstat.load(path)
    assert (model.source.format, model.source.writer) == ("onnx", f"test 1.2 (opset {opset})")
    (layer,) = model
    assert (layer.epsilon, layer.momentum, layer.axis) == (2e-3, 0.75, 1)
    assert layer.evidence == "graph"
    assert_layer(model, "bn", held)
    assert [variable.key for variable in layer.variables.values()] == [f"bn.{r}" for r in ROLES]


def test_defaults_of_the_operator(tmp_path: Path) -> None:
    """The default of epsilon always applies, the default of momentum only if the node trains."""
    for mode, momentum in ((0, None), (1, 0.9)):
        outputs = ["y", "mean", "var"] if mode else ["y"]
        only = norm("x", "bn", outputs, **({"training_mode": 1} if mode else {}))
        (layer,) = bnstat.load(save(tmp_path / "m", graph([only], initializers("bn", arrays()))))
        assert (layer.epsilon, layer.momentum) == (1e-5, momentum)


@pytest.mark.parametrize("stored", [(), ("gamma", "beta")])
def test_statistics_that_are_not_in_the_file(tmp_path: Path, stored: tuple[str, ...]) -> None:
    """Statistics that a node computes at run time, or that are inputs, are missing."""
    made = node("RandomNormal", [], ["bn.moving_mean"], shape=[3])
    partial = {role: array for role, array in arrays().items() if role in stored}
    tensors = [*initializers("bn", partial), *initializers("whole", arrays(1))]
    nodes = [made, norm("x", "bn", ["z"]), norm("z", "whole")]
    given = graph(nodes, tensors)
    inputs = (role for role in ROLES if role not in (*stored, "moving_mean"))
    given.input.extend(info(f"bn.{role}", [3]) for role in inputs)
    model = bnstat.load(save(tmp_path / "m", given))
    assert [layer.name for layer in model] == ["whole"]
    (layer,) = model.incomplete
    assert list(layer.variables) == list(stored)
    assert layer.epsilon == 1e-5


def test_not_spatial(tmp_path: Path) -> None:
    held = {role: array.reshape(1, 3) for role, array in arrays().items()}
    only = norm("x", "bn", spatial=0)
    (layer,) = bnstat.load(save(tmp_path / "m", graph([only], initializers("bn", held)), 7))
    assert layer.shape == (1, 3)
    assert layer.axis is None


def test_constants_casts_and_reshapes(tmp_path: Path) -> None:
    """Each statistic is passed in another way: as a constant, by casts and changes of shape."""
    held = arrays()
    nodes = [
        node("Constant", [], ["gamma"], value=to_tensor(held["gamma"])),
        node("Identity", ["beta0"], ["beta"]),
        node("Reshape", ["mean0", "shape"], ["mean1"]),
        node("Squeeze", ["mean1"], ["mean"]),
        node("Cast", ["var0"], ["var1"], to=1),
        node("Unsqueeze", ["var1", "axes"], ["var2"]),
        node("Reshape", ["var2", "minus"], ["var"]),
        node("BatchNormalization", ["x", "gamma", "beta", "mean", "var"], ["y"], name="a/bn"),
    ]
    held["moving_variance"] = held["moving_variance"].astype(np.float64)
    stored = {"beta0": held["beta"], "mean0": held["moving_mean"], "var0": held["moving_variance"]}
    shapes = {"shape": np.array([1, 3]), "axes": np.array([0]), "minus": np.array([-1])}
    model = bnstat.load(save(tmp_path / "m", graph(nodes, tensors_of({**stored, **shapes}))))
    assert_layers(model, {"a/bn": held})


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (2, 0, 1)], ids=str)
def test_nodes_before_the_nodes_that_they_depend_on(order: tuple[int, ...], tmp_path: Path) -> None:
    """The file also contains a cycle."""
    held = arrays()
    circle = [node("Identity", ["b"], ["a"]), node("Identity", ["a"], ["b"])]
    nodes = [
        node("Constant", [], ["mean0"], value=to_tensor(held["moving_mean"])),
        node("Identity", ["mean0"], ["bn.moving_mean"]),
        norm("x", "bn"),
    ]
    tensors = [each for each in initializers("bn", held) if each.name != "bn.moving_mean"]
    path = save(tmp_path / "m", graph([*circle, *(nodes[index] for index in order)], tensors))
    (layer,) = model = bnstat.load(path)
    assert_layers(model, {layer.name: held})


def test_inside_branches_loops_and_functions(tmp_path: Path) -> None:
    """The bodies of an If have initializers; the body of a loop uses the outer graph's."""
    held = {name: arrays(seed) for seed, name in enumerate(("a", "b", "c", "d"))}
    then = body([norm("x", "a", ["t"])], initializers("a", held["a"]), ["t"])
    other = body([norm("x", "b", ["e"])], initializers("b", held["b"]), ["e"])
    loop = [node("Identity", ["go"], ["again"]), norm("state", "c", ["next"])]
    repeated = body(loop, [], ("again", "next"), ("i", "go", "state"))
    names = ["X", "g", "b", "m", "v"]
    inner = node("BatchNormalization", names, ["Y"], name="inner")
    inner.attribute.append(onnx.AttributeProto(name="epsilon", type=1, ref_attr_name="small"))
    function = helper.make_function("own", "Norm", names, ["Y"], [inner], OPSETS, ["small"])
    passed = ["looped", *(f"d.{role}" for role in ROLES)]
    nodes = [
        node("If", ["flag"], ["chosen"], then_branch=then, else_branch=other),
        node("Loop", ["", "flag", "chosen"], ["looped"], body=repeated),
        node("Norm", passed, ["y"], name="called", domain="own", small=0.25),
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
    nodes.append(node("BatchNormalization", ["last", *numbered.values()], ["24"]))
    tensors += initializers("unnamed", arrays())
    tensors += tensors_of({name: arrays()[role] for role, name in numbered.items()})
    model = bnstat.load(save(tmp_path / "m", graph(nodes, tensors)))
    expected = ["z/bn", "net/bn2", "bn10", "unnamed", "BatchNormalization_24"]
    assert [layer.name for layer in model] == expected


def test_pytorch_names_of_initializers_name_the_layers(tmp_path: Path) -> None:
    held = arrays()
    names = [f"layer1.0.bn.{end}" for end in ("weight", "bias", "running_mean", "running_var")]
    only = node("BatchNormalization", ["x", *names], ["12"])
    tensors = tensors_of(dict(zip(names, held.values(), strict=True)))
    assert_layer(bnstat.load(save(tmp_path / "m", graph([only], tensors))), "layer1.0.bn", held)


def test_layer_norm_is_not_batch_norm(tmp_path: Path) -> None:
    only = node("LayerNormalization", ["x", "ln.weight", "ln.bias"], ["y"])
    tensors = [to_tensor(np.ones(3, np.float32), f"ln.{each}") for each in ("weight", "bias")]
    assert list(bnstat.load(save(tmp_path / "m", graph([only], tensors), 17))) == []


def test_truncated_files(tmp_path: Path) -> None:
    path = save(tmp_path / "m", graph([norm("x", "bn")], initializers("bn", arrays())))
    data = path.read_bytes()
    for length in range(60, len(data) - 1, 7):
        path.write_bytes(data[:length])
        assert matches(LocalFile(path))
        with pytest.raises(BnstatError):
            bnstat.load(path)


def test_a_damaged_attribute(tmp_path: Path) -> None:
    path = save(tmp_path / "m", graph([norm("x", "bn", epsilon=0.5)], initializers("bn", arrays())))
    sound = path.read_bytes()
    for damage in (b"epsilo\xff", b"epsilon"[:5] + b"\xff\xff"):
        path.write_bytes(sound.replace(b"epsilon", damage))
        with pytest.raises(DamagedError):
            bnstat.load(path)


def test_endless_recursion_of_functions(tmp_path: Path) -> None:
    functions = []
    for name, other in (("A", "B"), ("B", "A")):
        calls = [node(other, ["X"], [f"t{i}"], domain="own") for i in range(9)]
        functions.append(helper.make_function("own", name, ["X"], ["Y"], calls, OPSETS))
    call = node("A", ["x"], ["y"], domain="own")
    path = save(tmp_path / "m", graph([call], []), functions=functions)
    with pytest.raises(UnsupportedError):
        bnstat.load(path)


@pytest.mark.parametrize("crowd", ["inputs", "initializers"])
def test_a_function_with_many_names_that_is_called_often(crowd: str, tmp_path: Path) -> None:
    """Names of tensors count as well as nodes."""
    many = 5_000
    nodes = [node("Sum", ["x"] * many, ["z"])]
    if crowd == "initializers":
        tensors = [to_tensor(np.float32(1), str(index)) for index in range(many)]
        one = body([node("Identity", ["x"], ["z"])], tensors, ["z"])
        nodes = [node("If", ["x"], ["z"], then_branch=one, else_branch=one)]
    function = helper.make_function("own", "f", ["x"], ["z"], nodes, OPSETS)
    calls = [node("f", ["x"], [f"y{i}"], domain="own") for i in range(700)]
    path = save(tmp_path / "m", graph(calls, []), functions=[function])
    with pytest.raises(UnsupportedError, match="too many nodes after its functions"):
        bnstat.load(path)


@pytest.mark.parametrize(("depth", "readable"), [(40, True), (60, False)])
def test_bodies_in_bodies(tmp_path: Path, depth: int, readable: bool) -> None:
    """The messages are written by hand, because protobuf's parsers refuse 100 in each other."""
    held = arrays()
    nested = body([norm("x", "bn", ["z"])], initializers("bn", held), ["z"]).SerializeToString()
    for _ in range(depth):
        branch = field(1, b"then_branch") + field(6, nested)
        nested = field(1, field(2, b"z") + field(4, b"If") + field(5, branch))
    path = tmp_path / "m"
    path.write_bytes(b"\x08\x08" + field(7, nested))
    if readable:
        assert_layer(bnstat.load(path), "bn", held)
        return
    with pytest.raises(UnsupportedError, match="nested too deeply"):
        bnstat.load(path)


def test_nodes_with_the_same_name(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], [f"t{i}"], name="same") for i in range(20_000)]
    assert list(bnstat.load(save(tmp_path / "m", graph(nodes, [])))) == []


@pytest.mark.slow
def test_more_nodes_than_any_network(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"\x08\x08" + field(7, b"\x0a\x00" * (1 << 20)))
    with bounded(), pytest.raises(UnsupportedError, match="the model is too large to be read"):
        bnstat.load(tmp_path / "m")


def test_positions_that_a_file_claims_are_ignored(tmp_path: Path) -> None:
    """The fields that mark positions in a skeleton may also be in the file."""
    held = arrays()
    claimed = b"\xc1\x3e" + bytes(8) + b"\xc9\x3e" + bytes(8)
    tensors = [field(5, t.SerializeToString() + claimed) for t in initializers("bn", held)]
    nodes = graph([norm("x", "bn")], []).SerializeToString()
    (tmp_path / "m").write_bytes(b"\x08\x08" + field(7, nodes + b"".join(tensors)))
    assert_layer(bnstat.load(tmp_path / "m"), "bn", held)


def test_other_files_are_not_recognised(tmp_path: Path) -> None:
    path = tmp_path / "m"
    for data in (b"\x08\1\x12\0", b"\x08", b"\x08\7", b"\n\3\n\1x", b"\x08\7:\2\x0f\0"):
        path.write_bytes(data)
        assert not matches(LocalFile(path))


def test_initializers_that_are_also_inputs(tmp_path: Path) -> None:
    """Version 3 of the format and PyTorch's `keep_initializers_as_inputs` require this."""
    held = arrays()
    made = graph([norm("x", "bn")], initializers("bn", held))
    made.input.extend(info(f"bn.{role}", [3]) for role in ROLES)
    model = bnstat.load(save(tmp_path / "m", made, 7, ir_version=3))
    assert_layer(model, "bn", held)
    assert [v.key for v in model["bn"].variables.values()] == [f"bn.{role}" for role in ROLES]


def test_the_first_version_of_the_format(tmp_path: Path) -> None:
    """Like a SavedModel, it starts with a 1 and field 2. It contains no opset."""
    held = arrays()
    only = norm("x", "bn", epsilon=2e-3, is_test=1)
    model = helper.make_model(graph([only], initializers("bn", held)), producer_name="pytorch")
    model.ir_version = 1
    del model.opset_import[:]
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    found = bnstat.load(path)
    assert (found.source.format, found["bn"].epsilon) == ("onnx", 2e-3)
    assert_layer(found, "bn", held)


# Constants that the graph computes

ReferenceEvaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator


def _chain(*steps: Any) -> list[Any]:
    """Chain nodes of (operator, further inputs, attributes); the output is `bn.gamma`."""
    names = [*(f"t{place}" for place in range(len(steps) - 1)), "bn.gamma"]
    nodes, before = [], []
    for (kind, inputs, attributes), name in zip(steps, names, strict=True):
        nodes.append(node(kind, [*before, *inputs], [name], **attributes))
        before = [name]
    return nodes


_FILL = {"value": to_tensor(np.array([1.25], np.float32))}
COMPUTED: dict[str, list[Any]] = {
    "ConstantOfShape": [("ConstantOfShape", ["shape"], _FILL)],
    "ConstantOfShape, default": [("ConstantOfShape", ["shape"], {})],
    "value_floats": [("Constant", [], {"value_floats": [1.5, 2.0, -0.5]})],
    "Expand of a scalar": [("Constant", [], {"value_float": 1.5}), ("Expand", ["shape"], {})],
    "Expand of one": [("Expand", ["one", "shape"], {})],
    "shape in pieces": [("Concat", ["three"], {"axis": 0}), ("ConstantOfShape", [], _FILL)],
    "Shape of another": [("Shape", ["other"], {}), ("ConstantOfShape", [], _FILL)],
    "passed on": [
        ("ConstantOfShape", ["shape"], _FILL), ("Identity", [], {}),
        ("Unsqueeze", ["axis"], {}), ("Squeeze", ["axis"], {}), ("Reshape", ["shape"], {}),
    ],
    "cast": [("Cast", ["half"], {"to": FLOAT}), ("Mul", ["other"], {})],
    "arithmetic": [
        ("Add", ["other", "one"], {}), ("Sub", ["one"], {}), ("Sqrt", [], {}), ("Neg", [], {}),
        ("Reciprocal", [], {}), ("Div", ["other"], {}), ("Mul", ["one"], {}),
    ],
    "transposed": [
        ("Unsqueeze", ["other", "axis"], {}), ("Transpose", [], {"perm": [1, 0]}),
        ("Concat", [], {"axis": 0}), ("Reshape", ["shape"], {}),
    ],
}  # fmt: skip


def _computed(steps: list[Any]) -> Any:
    other, three = np.array([0.5, 1.5, 2.5], np.float32), np.array([3])
    sizes = {"shape": three, "three": three, "axis": np.array([0])}
    values = {"one": np.array([1.75], np.float32), "other": other, "half": other.astype("f2")}
    tensors = initializers("bn", arrays())[1:] + tensors_of({**sizes, **values})
    return graph([*_chain(*steps), norm("x", "bn")], tensors)


@pytest.mark.parametrize("name", COMPUTED)
def test_a_parameter_that_the_file_computes(name: str, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", _computed(COMPUTED[name]), opset=13)
    model = onnx.load(path)
    model.graph.output.append(info("bn.gamma"))
    x = np.zeros((1, 3, 2, 2), np.float32)
    oracle = ReferenceEvaluator(model).run(["bn.gamma"], {"x": x})[0]
    model = bnstat.load(path)
    gamma = model[0].array("gamma")
    np.testing.assert_allclose(gamma, oracle, rtol=1e-6)
    assert (gamma.dtype, gamma.shape) == (oracle.dtype, oracle.shape)
    assert len(model) == 1
    assert model.incomplete == ()


def test_a_stored_tensor_that_nodes_pass_on(tmp_path: Path) -> None:
    steps = [("Identity", ["other"], {}), ("Reshape", ["shape"], {})]
    (layer,) = bnstat.load(save(tmp_path / "m.onnx", _computed(steps), opset=13))
    assert layer.variables["gamma"].key == "other"


def test_nodes_that_depend_on_an_input_are_not_evaluated(tmp_path: Path) -> None:
    steps = [("Shape", ["x"], {}), ("ConstantOfShape", [], _FILL)]
    (layer,) = bnstat.load(save(tmp_path / "m.onnx", _computed(steps), opset=13))
    assert layer.gamma is None


def test_a_large_tensor_is_not_evaluated(tmp_path: Path) -> None:
    of = _computed(COMPUTED["ConstantOfShape"])
    column = np.ones((1 << 14, 1), np.float32)
    others = {"huge": np.array([1 << 40, 1 << 40]), "column": column, "row": column.T.copy()}
    of.initializer.extend(tensors_of(others))
    of.node.extend([
        node("ConstantOfShape", ["huge"], ["h"]),
        node("Expand", ["one", "huge"], ["e"]),
        node("Add", ["column", "row"], ["square"]),
        node("Concat", ["row"] * 20_000, ["joined"], axis=0),
        node("Constant", [], ["list"], value_ints=[1] * 300_000),
        node("Constant", [], ["text"], value_string="a"),
        *(node("Relu", [name], [f"{name}2"]) for name in ("square", "joined", "list", "text")),
    ])  # fmt: skip
    (layer,) = bnstat.load(save(tmp_path / "m.onnx", of, opset=13))
    assert layer.gamma is not None


def test_a_norm_of_single_operations_is_not_evaluated(tmp_path: Path) -> None:
    of = arrays()
    nodes = [
        node("Constant", [], ["epsilon"], value_float=0.01),
        node("Add", ["bn.moving_variance", "epsilon"], ["v"]),
        node("Sqrt", ["v"], ["s"]),
        node("Div", ["bn.gamma", "s"], ["g"]),
        node("Mul", ["x", "g"], ["xg"]),
        node("Mul", ["bn.moving_mean", "g"], ["mg"]),
        node("Sub", ["bn.beta", "mg"], ["b"]),
        node("Add", ["xg", "b"], ["y"]),
    ]
    (layer,) = bnstat.load(save(tmp_path / "m.onnx", graph(nodes, initializers("bn", of))))
    assert layer.epsilon == 0.01
    assert_layer([layer], 0, of)


# Batch norm that an exporter folded


def _convolutions(*names: tuple[str, ...], add: str = "") -> Any:
    """Chain convolutions, each with a kernel and, if there is a second name, a bias."""
    nodes, tensors, before = [], [], "x"
    for place, (kernel, *bias) in enumerate(names):
        tensors.append(to_tensor(np.ones((3, 3, 1, 1), np.float32), kernel))
        tensors += tensors_of(dict.fromkeys(bias, np.ones(3, np.float32)))
        nodes.append(node("Conv", [before, kernel, *bias], [f"c{place}"]))
        before = f"c{place}"
    if add:
        tensors.append(to_tensor(np.ones((1, 3, 1, 1), np.float32), add))
        nodes.append(node("Add", [before, add], ["a"]))
        before = "a"
    nodes.append(node("Relu", [before], ["y"]))
    return graph(nodes, tensors)


FUSED = "net/relu/Relu;net/batch_normalization_3/FusedBatchNormV3;net/conv/Conv2D"
FOLDED = {
    "folded into 1 convolution, as names": _convolutions(("k", FUSED), ("l", "conv2/b")),
    "folded into 2 convolutions and 1 other operation, as names": _convolutions(
        ("bn1.k", FUSED), ("l", "bn_2/b"), add="net/batch_norm/b"
    ),
    "into 2 convolutions with a bias": _convolutions(("k", "b"), ("l", "c"), ("m",)),
}


@pytest.mark.parametrize(("message", "of"), FOLDED.items(), ids=FOLDED)
def test_folding_is_noted(message: str, of: Any, tmp_path: Path) -> None:
    model = bnstat.load(save(tmp_path / "m.onnx", of))
    assert not model.layers
    (note,) = model.notes
    assert message in note
    assert "bnstat diff ORIGINAL FILE" in note


def test_other_models_have_no_note(tmp_path: Path) -> None:
    plain = _convolutions(("k",), ("l",))
    assert not bnstat.load(save(tmp_path / "plain.onnx", plain)).notes
    whole = _convolutions(("k", "b"))
    whole.initializer.extend(initializers("bn", arrays()))
    whole.node.append(norm("c0", "bn", ["z"]))
    assert not bnstat.load(save(tmp_path / "whole.onnx", whole)).notes


# Tensors


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_raw_values(tmp_path: Path, kind: str) -> None:
    import ml_dtypes

    held = arrays(dtype=np.dtype(getattr(ml_dtypes, kind, kind)))
    path = save(tmp_path / "m", graph([norm("x", "bn")], initializers("bn", held)))
    model = bnstat.load(path)
    assert_layer(model, "bn", held)
    for variable in model[0].variables.values():
        assert same_bits(from_extents(variable), variable.read())


def test_listed_values_of_every_type(tmp_path: Path) -> None:
    codes = ["UINT8", "INT8", "UINT16", "INT16", "INT32", "INT64", "BOOL", "UINT32", "UINT64"]
    codes += ["COMPLEX64", "COMPLEX128", "FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "FLOAT8E5M2"]
    lists = {name: [1, 0, 1] if name == "BOOL" else [3, 100, 7] for name in codes}
    types = {name: getattr(onnx.TensorProto, name) for name in codes}
    tensors = [helper.make_tensor(name, types[name], [3], lists[name]) for name in codes]
    path = save(tmp_path / "m", graph([], tensors))
    contents = open_contents(LocalFile(path), Source(str(path), ""))
    assert list(contents.variables) == codes
    for tensor in tensors:
        assert not tensor.raw_data
        variable = contents.variables[tensor.name]
        assert same_bits(variable.read(), onnx.numpy_helper.to_array(tensor)), tensor.name
        assert [place.part for place in variable.extents()] == [None]


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


OUTSIDE = ("../secret", "a/../../secret", "/etc/passwd", "..\\secret", "C:secret")


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ({"location": "absent.bin"}, NotFoundError),
        *(({"location": path}, DamagedError) for path in (*OUTSIDE, "")),
        *(({"location": "w", "offset": at}, DamagedError) for at in ("1000", "-4", "9" * 5000)),
        ({"location": "w", "length": "13"}, DamagedError),
    ],
)
def test_invalid_external_data(tmp_path: Path, entries: dict[str, str], error: Any) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/w").write_bytes(bytes(48))
    (tmp_path / "secret").write_bytes(bytes(48))
    layer = bnstat.load(with_external_data(tmp_path / "below/m.onnx", **entries))[0]
    with pytest.raises(error):
        layer.read()
    if entries["location"] != "w" or "length" in entries:
        with pytest.raises(error):
            layer.variables["gamma"].extents()


def test_only_batch_norm_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("dims", [[4], [2**40, 2**40], [-3], [1] * 40], ids=str)
def test_invalid_shapes(tmp_path: Path, dims: list[int]) -> None:
    tensors = initializers("bn", arrays())
    tensors[0].dims[:] = dims
    path = save(tmp_path / "m", graph([norm("x", "bn")], tensors))
    contents = open_contents(LocalFile(path), Source("", ""))
    if dims != [4]:
        assert list(contents.variables) == [f"bn.{role}" for role in ROLES[1:]]
        return
    with pytest.raises(DamagedError):
        contents.variables["bn.gamma"].read()
