"""Models that try to do more than compute are refused unless the user trusts them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bnstat import drift, recalibrate
from bnstat.errors import UnsupportedError
from bnstat.estimate.running.allowed_ops import ALLOWED, refuse_unlisted
from tests.builders.hostile import X, const, function, graph, node, saved_model

Attack = Callable[[Path], Sequence[Any]]
"""Nodes that write below a folder, or read a file in it."""

SECRET = "12, 34"


def attack(op: str, *inputs: str, **attributes: Any) -> Attack:
    """Return an attack by one op; in its attributes, FOLDER stands for the folder."""

    def build(folder: Path) -> Sequence[Any]:
        filled = {
            name: value.replace(b"FOLDER", str(folder).encode())
            if isinstance(value, bytes)
            else value
            for name, value in attributes.items()
        }
        return [node("attack", op, *inputs, **filled)]

    return build


def after(constants: dict[str, Any], build: Attack) -> Attack:
    """Return an attack whose op takes constants."""
    return lambda folder: [*(const(*item) for item in constants.items()), *build(folder)]


def on_dataset(op: str, **constants: str) -> Attack:
    """Return an attack by an op that takes a dataset and texts."""

    def build(folder: Path) -> Sequence[Any]:
        types = {"Toutput_types": [tf.string], "output_shapes": shapes([])}
        return [
            const("records", ["record"]),
            node("dataset", "TensorSliceDataset", "records", **types),
            *(const(name, text.replace("FOLDER", str(folder))) for name, text in constants.items()),
            node("attack", op, "dataset", *constants),
        ]

    return build


def shapes(*sizes: Sequence[int]) -> Any:
    value = tf.compat.v1.AttrValue()
    for each in sizes:
        value.list.shape.append(tf.TensorShape(each).as_proto())
    return value


def debug(folder: Path) -> Sequence[Any]:
    urls = [f"file://{folder}/out".encode()]
    return [
        const("c", np.int32([-1, 1, 1, 3])),
        node("debug", "DebugIdentity", "c", T=tf.int32, tensor_name=b"c:0", debug_urls=urls),
        node("attack", "Reshape", "x", "debug", T=tf.float32, Tshape=tf.int32),
    ]


def read_by_shape_inference(folder: Path) -> Sequence[Any]:
    return [
        const("name", str(folder / "secret")),
        node("read", "ReadFile", "name"),
        node("raw", "DecodeRaw", "read", out_type=tf.int32),
        node("attack", "Reshape", "x", "raw", T=tf.float32, Tshape=tf.int32),
    ]


RECORDS = {"filename": "FOLDER/out", "compression_type": ""}
FILE = b"FOLDER/secret"
DUMP = {"log_dir_path": b"FOLDER", "file_name": b"out", "func_name": b"f", "node_name": b"n"}
STATISTICS = {"low": np.float32(0), "high": np.float32(1), "bins": np.int64([1])}
SAMPLER = {"num_true": 1, "num_sampled": 1, "unique": True, "range_max": 1}
PROTO = {"message_type": b"M", "field_names": [b"f"], "output_types": [tf.float32]}

ATTACKS: dict[str, Attack] = {
    "DatasetToTFRecord": on_dataset("DatasetToTFRecord", **RECORDS),
    "ExperimentalDatasetToTFRecord": on_dataset("ExperimentalDatasetToTFRecord", **RECORDS),
    "DistributedSave": on_dataset("DistributedSave", directory="FOLDER", address="localhost:1"),
    "DumpTensor": attack("DumpTensor", "x", T=tf.float32, enabled=True, **DUMP),
    "CalibrationStatisticsSaver": after(
        STATISTICS,
        attack(
            "CalibrationStatisticsSaver",
            *STATISTICS,
            Tin=[tf.float32, tf.float32, tf.int64],
            ids=[b"1"],
            calibration_methods=[1],
            output_file_path=b"FOLDER/out",
        ),
    ),
    "FixedUnigramCandidateSampler": after(
        {"classes": np.int64([[0]])},
        attack("FixedUnigramCandidateSampler", "classes", vocab_file=FILE, **SAMPLER),
    ),
    "RecordInput": attack("RecordInput", file_pattern=FILE, batch_size=1),
    "ImmutableConst": attack(
        "ImmutableConst", dtype=tf.uint8, shape=tf.TensorShape([4]), memory_region_name=FILE
    ),
    "DecodeProtoV2": after(
        {"proto": "proto"}, attack("DecodeProtoV2", "proto", descriptor_source=FILE, **PROTO)
    ),
    "Skipgram": attack("Skipgram", filename=FILE, batch_size=1),
    "Print": attack("Print", "x", "x", T=tf.float32, U=[tf.float32], message=b"\x1b[31mred"),
    "Abort": attack("Abort", exit_without_error=True),
    "DebugIdentity": debug,
    "ReadFile": read_by_shape_inference,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "secret").write_text(SECRET)
    return tmp_path / "files"


@pytest.mark.parametrize("op", ATTACKS)
def test_what_reaches_beyond_memory_is_refused(
    op: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = saved_model(tmp_path / "model", graph(ATTACKS[op](folder)))
    for run in (drift, recalibrate):
        with pytest.raises(UnsupportedError, match=f"would execute .*{op}") as refused:
            run(path, X)
        assert SECRET not in str(refused.value)
    assert [each.name for each in folder.iterdir()] == ["secret"]
    assert "\x1b[31m" not in "".join(capfd.readouterr())


def test_an_op_that_ends_the_process_is_refused_even_if_trusted(
    folder: Path, tmp_path: Path
) -> None:
    path = saved_model(tmp_path / "model", graph(ATTACKS["Abort"](folder)))
    with pytest.raises(UnsupportedError, match="would execute Abort, which ends bnstat"):
        drift(path, X, trust=True)


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


def test_functions_are_followed_wherever_they_are_named(folder: Path, tmp_path: Path) -> None:
    read = function("read", _reading(folder), "size:y:0")
    plain = function("plain", [], "a")
    call = node("call", "PartitionedCall", "a", Tin=[tf.float32], Tout=[tf.float32], f="read")
    outer = function("outer", [call], "call:output:0")
    types = {"Tin": [tf.float32], "Tout": [tf.float32]}
    number = const("number", np.float32(1))
    callers = {
        "call": [number, node("attack", "StatefulPartitionedCall", "number", f="outer", **types)],
        "by name": [number, node("attack", "outer", "number")],
        "branch": [
            number,
            const("never", False),
            node(
                "attack",
                "If",
                "never",
                "number",
                Tcond=tf.bool,
                then_branch="outer",
                else_branch="plain",
                **types,
            ),
        ],
        "loop": [
            number,
            node("attack", "While", "number", T=[tf.float32], cond="plain", body="outer"),
        ],
        "map": [
            const("numbers", np.float32([1])),
            node(
                "attack",
                "MapDefun",
                "numbers",
                Targuments=[tf.float32],
                output_types=[tf.float32],
                output_shapes=shapes([]),
                f="outer",
            ),
        ],
        "an op as a function": [number, node("attack", "PartitionedCall", "number", f="ReadFile")],
    }
    branches = node("attack", "Case", "index", "number", Tin=types["Tin"], Tout=types["Tout"])
    for name in ("plain", "outer"):
        branches.attr["branches"].list.func.add(name=name)
    callers["one of several branches"] = [number, const("index", np.int32(0)), branches]
    given = node("attack", "PartitionedCall", "number", f="plain", **types)
    given.attr["f"].func.attr["inner"].func.name = "outer"
    callers["attribute of a function"] = [number, given]
    for name, nodes in callers.items():
        made = graph(nodes, library=_library(read, plain, outer))
        path = saved_model(tmp_path / name.replace(" ", "-"), made)
        with pytest.raises(UnsupportedError, match="would execute ReadFile"):
            drift(path, X)
        # Without the call, the same functions are allowed.
        made = graph(nodes[:1], library=_library(read, plain, outer))
        refuse_unlisted(made.__class__(node=made.node), name)


@pytest.mark.parametrize("caller", ["call", "branch"])
def test_functions_that_call_each_other_many_times(caller: str, tmp_path: Path) -> None:
    """Each of thirty functions calls the next one twice, which makes a billion ops."""
    types = {"Tin": [tf.float32], "Tout": [tf.float32]}

    def twice(name: str, argument: str) -> list[Any]:
        if caller == "call":
            calls = [node("b", "PartitionedCall", argument, f=name, **types)]
            return [*calls, node("c", "PartitionedCall", "b:output:0", f=name, **types)]
        chosen = {"then_branch": name, "else_branch": name, "Tcond": tf.bool, **types}
        return [const("never", False), node("c", "If", "never:output:0", argument, **chosen)]

    bodies = [function(f"f{i}", twice(f"f{i + 1}", "a"), "c:output:0") for i in range(30)]
    library = _library(*bodies, function("f30", [], "a"))
    number = const("number", np.float32(1))
    attack = node("attack", "PartitionedCall", "number", f="f0", **types)
    path = saved_model(tmp_path / "m", graph([number, attack], library=library))
    with pytest.raises(UnsupportedError, match="more than 100000 ops"):
        drift(path, X)


def test_functions_that_call_each_other_in_a_circle(tmp_path: Path) -> None:
    types = {"Tin": [tf.float32], "Tout": [tf.float32]}
    call = node("b", "PartitionedCall", "a", f="f0", **types)
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
    body = [
        const("name", str(folder / "secret")),
        node("read", "ReadFile", "name:output:0"),
        node("twice", "Add", "a", "a", T=tf.float32),
    ]
    partly = function("partly", body, "twice:z:0")
    partly.control_ret.clear()
    del partly.signature.control_output[:]
    types = {"Tin": [tf.float32], "Tout": [tf.float32]}
    nodes = [
        const("name", str(folder / "secret")),
        node("beside", "ReadFile", "name"),
        node("twice", "PartitionedCall", "x", f="partly", **types),
    ]
    made = graph(nodes, "twice", _library(unused, partly))
    result = drift(saved_model(tmp_path / "model", made), X)
    np.testing.assert_allclose(result.layers[0].mean, 2 * X.mean((0, 1, 2)), rtol=1e-5)


def test_nothing_is_evaluated_to_learn_the_shape_of_an_input(folder: Path, tmp_path: Path) -> None:
    """Importing a graph runs the stateless ops that decide a shape."""
    path = saved_model(tmp_path / "model", graph(debug(folder), "attack"))
    with pytest.raises(UnsupportedError, match="would execute DebugIdentity"):
        drift(path, X, inputs=["attack"])
    assert [each.name for each in folder.iterdir()] == ["secret"]


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

NAMING = {
    "filename",
    "file_pattern",
    "vocab_file",
    "descriptor_source",
    "debug_urls",
    "memory_region_name",
    "log_dir_path",
    "output_file_path",
    "address",
    "directory",
    "file_prefix",
    "device_name",
}
"""Attributes and inputs that name a file, an address or a device."""


def test_no_allowed_op_names_a_file_or_reaches_another_process() -> None:
    for name, op in _registered().items():
        if name in ALLOWED:
            assert not {each.name for each in (*op.attr, *op.input_arg)} & NAMING, name
            assert not REACHING.search(name)
