"""Models that try to do more than compute are refused unless the user trusts them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from bnstat import drift
from bnstat.errors import BnstatError, UnsupportedError
from bnstat.estimate.running.allowed_ops import ALLOWED, refuse_unlisted
from tests.builders.hostile import X, const, function, graph, node, saved_model

SECRET = "12, 34"


def shapes(*sizes: Sequence[int]) -> Any:
    value = tf.compat.v1.AttrValue()
    for each in sizes:
        value.list.shape.append(tf.TensorShape(each).as_proto())
    return value


def attacks(folder: Path) -> dict[str, list[Any]]:
    """Return op -> nodes that write below a folder, read a file in it, or end the process."""
    out = f"{folder}/out"

    def reshape(*before: Any) -> list[Any]:
        shape = before[-1].name
        return [*before, node("attack", "Reshape", "x", shape, T=tf.float32, Tshape=tf.int32)]

    types = {"Toutput_types": [tf.string], "output_shapes": shapes([])}
    debug = {"T": tf.int32, "tensor_name": b"c:0", "debug_urls": [f"file://{out}".encode()]}
    printing = {"T": tf.float32, "U": [tf.float32], "message": b"\x1b[31mred"}
    return {
        "DatasetToTFRecord": [
            *(const("records", ["r"]), const("filename", out), const("compression", "")),
            node("dataset", "TensorSliceDataset", "records", **types),
            node("attack", "DatasetToTFRecord", "dataset", "filename", "compression"),
        ],
        "DebugIdentity": reshape(
            const("c", np.int32([-1, 1, 1, 3])), node("debug", "DebugIdentity", "c", **debug)
        ),
        "ReadFile": reshape(  # shape inference runs it
            const("name", f"{folder}/secret"),
            node("read", "ReadFile", "name"),
            node("raw", "DecodeRaw", "read", out_type=tf.int32),
        ),
        "Print": [node("attack", "Print", "x", "x", **printing)],
        "Abort": [node("attack", "Abort", exit_without_error=True)],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "secret").write_text(SECRET)
    return tmp_path / "files"


@pytest.mark.parametrize("op", attacks(Path()))
def test_what_reaches_beyond_memory_is_refused(op, folder, tmp_path, capfd) -> None:
    path = saved_model(tmp_path / "model", graph(attacks(folder)[op]))
    with pytest.raises(UnsupportedError, match=f"would execute .*{op}") as refused:
        drift(path, X)
    assert SECRET not in str(refused.value)
    if op == "Abort":
        with pytest.raises(UnsupportedError, match="would execute Abort, which ends bnstat"):
            drift(path, X, trust=True)
    assert [each.name for each in folder.iterdir()] == ["secret"]
    assert "\x1b[31m" not in "".join(capfd.readouterr())


def _reading(folder: Path) -> list[Any]:
    """The body of a function that reads a file and returns its size."""
    return [
        const("name", str(folder / "secret")),
        node("read", "ReadFile", "name:output:0"),
        node("length", "StringLength", "read:contents:0"),
        node("size", "Cast", "length:output:0", SrcT=tf.int32, DstT=tf.float32),
    ]


def _library(*functions: Any) -> Any:
    library = tf.compat.v1.GraphDef().library
    library.function.extend(functions)
    return library


TYPES = {"Tin": [tf.float32], "Tout": [tf.float32]}


def test_functions_are_followed_wherever_they_are_named(folder: Path, tmp_path: Path) -> None:
    call = node("call", "PartitionedCall", "a", f="read", **TYPES)
    library = _library(
        function("read", _reading(folder), "size:y:0"),
        function("plain", [], "a"),
        function("outer", [call], "call:output:0"),
    )
    branches = node("attack", "Case", "index", "number", **TYPES)
    for name in ("plain", "outer"):
        branches.attr["branches"].list.func.add(name=name)
    given = node("attack", "PartitionedCall", "number", f="plain", **TYPES)
    given.attr["f"].func.attr["inner"].func.name = "outer"
    chosen = {"then_branch": "outer", "else_branch": "plain", "Tcond": tf.bool, **TYPES}
    mapped = {"Targuments": [tf.float32], "output_types": [tf.float32], "f": "outer"}
    loop = {"T": [tf.float32], "cond": "plain", "body": "outer"}
    callers = {
        "call": node("attack", "StatefulPartitionedCall", "number", f="outer", **TYPES),
        "by name": node("attack", "outer", "number"),
        "branch": node("attack", "If", "never", "number", **chosen),
        "loop": node("attack", "While", "number", **loop),
        "map": node("attack", "MapDefun", "numbers", output_shapes=shapes([]), **mapped),
        "an op as a function": node("attack", "PartitionedCall", "number", f="ReadFile"),
        "one of several branches": branches,
        "attribute of a function": given,
    }
    constants = {"number": np.float32(1), "numbers": np.float32([1]), "index": np.int32(0)}
    nodes = [const(*item) for item in {**constants, "never": False}.items()]
    for name, caller in callers.items():
        made = graph([*nodes, caller], library=library)
        path = saved_model(tmp_path / name.replace(" ", "-"), made)
        with pytest.raises(UnsupportedError, match="would execute ReadFile"):
            drift(path, X)


@pytest.mark.parametrize("caller", ["call", "branch"])
def test_functions_that_call_each_other_many_times(caller: str, tmp_path: Path) -> None:
    """Each of thirty functions calls the next one twice, which makes a billion ops."""

    def twice(name: str, argument: str) -> list[Any]:
        if caller == "call":
            calls = [node("b", "PartitionedCall", argument, f=name, **TYPES)]
            return [*calls, node("c", "PartitionedCall", "b:output:0", f=name, **TYPES)]
        chosen = {"then_branch": name, "else_branch": name, "Tcond": tf.bool, **TYPES}
        return [const("never", False), node("c", "If", "never:output:0", argument, **chosen)]

    bodies = [function(f"f{i}", twice(f"f{i + 1}", "a"), "c:output:0") for i in range(30)]
    library = _library(*bodies, function("f30", [], "a"))
    number = const("number", np.float32(1))
    attack = node("attack", "PartitionedCall", "number", f="f0", **TYPES)
    path = saved_model(tmp_path / "m", graph([number, attack], library=library))
    with pytest.raises(UnsupportedError, match="more than 100000 ops"):
        drift(path, X)


def test_functions_that_call_each_other_in_a_circle(tmp_path: Path) -> None:
    call = node("b", "PartitionedCall", "a", f="f0", **TYPES)
    library = _library(function("f0", [call], "b:output:0"))
    nodes = [const("number", np.float32(1)), node("attack", "f0", "number")]
    path = saved_model(tmp_path / "m", graph(nodes, library=library))
    with pytest.raises(UnsupportedError, match="in a circle"):
        drift(path, X)


def test_a_function_with_the_name_of_an_op_hides_nothing(folder: Path, tmp_path: Path) -> None:
    harmless = function("ReadFile", [], "a")
    nodes = [const("name", str(folder / "secret")), node("attack", "ReadFile", "name")]
    path = saved_model(tmp_path / "model", graph(nodes, library=_library(harmless)))
    with pytest.raises(UnsupportedError, match="ReadFile"):
        drift(path, X)


def test_what_does_not_run_does_not_matter(folder: Path, tmp_path: Path) -> None:
    """Unused ops, functions that nothing calls, and ops in functions that nothing returns."""
    unused = function("unused", _reading(folder), "size:y:0")
    body = [*_reading(folder)[:2], node("twice", "Add", "a", "a", T=tf.float32)]
    partly = function("partly", body, "twice:z:0")
    partly.control_ret.clear()
    del partly.signature.control_output[:]
    nodes = [
        const("name", str(folder / "secret")),
        node("beside", "ReadFile", "name"),
        node("twice", "PartitionedCall", "x", f="partly", **TYPES),
    ]
    made = graph(nodes, "twice", _library(unused, partly))
    result = drift(saved_model(tmp_path / "model", made), X)
    np.testing.assert_allclose(result.layers[0].mean, 2 * X.mean((0, 1, 2)), rtol=1e-5)


def test_nothing_is_evaluated_to_learn_the_shape_of_an_input(folder: Path, tmp_path: Path) -> None:
    """Importing a graph runs the stateless ops that decide a shape."""
    path = saved_model(tmp_path / "model", graph(attacks(folder)["DebugIdentity"], "attack"))
    with pytest.raises(UnsupportedError, match="would execute DebugIdentity"):
        drift(path, X, inputs=["attack"])
    assert [each.name for each in folder.iterdir()] == ["secret"]


def test_ops_that_copy_each_other_in_a_circle(tmp_path: Path) -> None:
    made = graph([node("circle", "Identity", "circle", T=tf.float32)], "circle")
    made.node[-1].CopyFrom(node("y", "AddV2", "bn/norm", "x", T=tf.float32))
    with pytest.raises(BnstatError, match="cannot run it: 4 nodes in a cycle"):
        drift(saved_model(tmp_path / "model", made), X)


def test_ops_that_lack_their_inputs(tmp_path: Path) -> None:
    made = graph([node("switch", "Switch", "x", T=tf.float32)], "switch")
    with pytest.raises(BnstatError, match="do not match 1 inputs specified"):
        drift(saved_model(tmp_path / "switch", made), X)
    for op in ("SoftmaxCrossEntropyWithLogits", "Softmax"):
        made = graph([])
        loss = node("loss", op, *["copy"] * (op == "Softmax"))
        made.node.extend([node("copy", "Identity"), loss])
        (tmp_path / op).write_bytes(made.SerializeToString())
        (layer,) = drift(tmp_path / op, X, outputs=["y"] * (op == "Softmax")).layers
        np.testing.assert_allclose(layer.mean, X.mean((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dtype", 999, "'x:0' has an unknown dtype"),
        ("name", "none:0", "depend on none of its inputs"),
        ("name", "", "depend on none of its inputs"),
    ],
)
def test_signatures_that_do_not_fit_the_graph(field, value, message, tmp_path) -> None:
    file = saved_model(tmp_path / "model", graph([])) / "saved_model.pb"
    made = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    setattr(made.meta_graphs[0].signature_def["serving_default"].inputs["x"], field, value)
    file.write_bytes(made.SerializeToString())
    with pytest.raises(BnstatError, match=message):
        drift(file.parent, X)


def _registered() -> dict[str, Any]:
    """Return the definitions of all ops that this TensorFlow registers, by name."""
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session

    message = op_def_pb2.OpList()
    message.ParseFromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    return {op.name: op for op in message.op}


CENSUS = {"2.21": (1910, 846)}
"""Version of TensorFlow -> how many ops it registers, and how many of them are allowed."""


def test_no_registered_op_passes_that_is_not_on_the_list() -> None:
    """The census. If the list changes, look at each op that is new on it."""
    passing = set()
    for name in _registered():
        with suppress(UnsupportedError):
            refuse_unlisted(tf.compat.v1.GraphDef(node=[node("op", name)]), "graph")
            passing.add(name)
    assert passing == ALLOWED & _registered().keys()
    census = CENSUS.get(".".join(tf.__version__.split(".")[:2]))
    if census is not None:
        assert len(passing) == census[1] == len(ALLOWED)
        assert len(_registered()) >= census[0]


REACHING = re.compile(
    "File|Dataset|Iterator|Reader|Summary|Print|Debug|Dump|Abort|Save|Restore|Checkpoint|Send|Recv"
    "|Rpc|Remote|PyFunc|TPU|Xla|Collective|Nccl|Queue|Barrier|Stage|Session|Mlir|Proto"
)
"""Parts of the names of ops that reach beyond the graph's values in memory."""

NAMING = re.compile(
    "filename|file_pattern|vocab_file|descriptor_source|debug_urls|memory_region_name|log_dir_path"
    "|output_file_path|address|directory|file_prefix|device_name"
)
"""Attributes and inputs that name a file, an address or a device."""

NEVER_ALLOWED = {
    *("CalibrationStatisticsSaver", "DecodeProtoV2", "DistributedSave", "DumpTensor", "Skipgram"),
    *("ExperimentalDatasetToTFRecord", "FixedUnigramCandidateSampler", "ImmutableConst"),
    *("DatasetToTFRecord", "DebugIdentity", "ReadFile", "RecordInput", "WriteFile"),
}
"""Ops that access files. Neither pattern above matches all of them."""


def test_no_allowed_op_names_a_file_or_reaches_another_process() -> None:
    assert ALLOWED.isdisjoint(NEVER_ALLOWED)
    for name, op in _registered().items():
        if name in ALLOWED:
            names = [each.name for each in (*op.attr, *op.input_arg)]
            assert not any(map(NAMING.fullmatch, names)), name
            assert not REACHING.search(name)
