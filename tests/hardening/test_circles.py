"""Structures with cycles, deep nesting, or references to missing parts."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

import bnstat
from bnstat.discovery import discover
from bnstat.formats.contents import Contents, Layer
from tests.builders.tables import varint
from tests.formats.tensorflow.test_graph_def import Node, add_function, graph_def
from tests.fuzz import handmade
from tests.fuzz.handmade import zipped
from tests.fuzz.wire import Field, encode
from tests.hardening.support import Judge, layers, write

# Cycles


@pytest.mark.slow
def test_every_object_holds_every_other_and_a_long_chain(tmp_path: Path, judged: Judge) -> None:
    every = [handmade.node({f"c{i}": i for i in range(500)}) for _ in range(500)]
    chain = [handmade.node({"next": i + 1}) for i in range(200_000)] + [handmade.node({})]
    for nodes in (every, chain):
        judged(write(tmp_path, handmade.object_bundle(encode(nodes), {})))


def _call(name: str, function: str) -> Node:
    return (name, "StatefulPartitionedCall", ["x"], {"f": function})


LIBRARIES: dict[str, list[list[Node]]] = {
    "itself": [[_call("n0", "f0")]],
    "one another": [[_call("n0", "f1")], [_call("n0", "f0")]],
    "itself twice": [[_call("n0", "f0"), _call("n1", "f0")]],
    "two of the next": [[_call(f"n{k}", f"f{i + 1}") for k in range(2)] for i in range(100)],
    "many arguments": [
        [_call(f"n{i}", "f1") for i in range(2000)],
        [("n0", "AddN", ["x"] * 50_000)],
    ],
    "a chain": [[_call("n0", f"f{i + 1}")] for i in range(5000)],
    "none": [],
}
"""Bodies of the functions `f0`, `f1`, ..."""


@pytest.mark.slow
@pytest.mark.parametrize("functions", LIBRARIES.values(), ids=LIBRARIES)
def test_functions_that_call(functions: list[list[Node]], tmp_path: Path, judged: Judge) -> None:
    message = graph_def(("x", "Placeholder", []), _call("b", "f0"), ("c", "Relu", ["b"]))
    for number, body in enumerate(functions):
        add_function(message, f"f{number}", ["x"], {"y": "n0:output:0"}, *body)
    graph = message.SerializeToString()
    judged(write(tmp_path, {"frozen.pb": graph}) / "frozen.pb")
    meta = encode([Field(1, 2, encode([Field(5, 2, b"2.0")])), Field(2, 2, graph)])
    saved = encode([Field(1, 0, 1), Field(2, 2, meta)])
    judged(write(tmp_path / "saved", {"saved_model.pb": saved}))
    files = handmade.bundle(layers())
    assert judged(write(tmp_path / "beside", {**files, "m.meta": meta})).startswith("answer")


@pytest.mark.slow
def test_ops_in_circles(tmp_path: Path, judged: Judge) -> None:
    ops = ("FusedBatchNormV3", "Mul", "AddV2", "Rsqrt", "Identity", "Sub", "Merge", "Switch")
    circle: list[Node] = [
        (f"n{i}", op, [f"n{(i + k) % len(ops)}" for k in range(5)]) for i, op in enumerate(ops)
    ]
    chain: list[Node] = [(f"i{i}", "Identity", [f"i{i + 1}"]) for i in range(100_000)]
    chain.append(("bn", "FusedBatchNormV3", [f"i{i}" for i in range(5)]))
    for name, nodes in (("circle.pb", circle), ("chain.pb", chain)):
        judged(write(tmp_path, {name: graph_def(*nodes).SerializeToString()}) / name)


# Nesting


def _nested(number: int, depth: int) -> bytes:
    heads: list[bytes] = []
    length = 0
    for _ in range(depth):
        heads.append(varint(number << 3 | 2) + varint(length))
        length += len(heads[-1])
    return b"".join(reversed(heads))


@pytest.mark.slow
@pytest.mark.parametrize("depth", [100, 20_000])
def test_deeply_nested_protocol_buffers(depth: int, tmp_path: Path, judged: Judge) -> None:
    deep = _nested(2, depth)
    nodes = graph_def(("a", "Placeholder", [])).SerializeToString()
    judged(write(tmp_path / "saved", {"saved_model.pb": encode([Field(1, 0, 1)]) + deep}))
    judged(write(tmp_path / "graph", {"graph.pb": nodes + deep}))
    files = handmade.object_bundle(_nested(1, depth), {})
    judged(write(tmp_path / "objects", files))
    text = "meta_graphs {" * depth + "}" * depth
    judged(write(tmp_path / "text", {"saved_model.pbtxt": text.encode()}))


def _archive(config: str) -> bytes:
    weights = ("model.weights.h5", handmade.hdf5(handmade.weights))
    return zipped([("config.json", config.encode()), weights])


def test_numbers_of_a_million_digits_in_json(tmp_path: Path, judged: Judge) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes(_archive('{"config": {"layers": [], "x": ' + "9" * 10**6 + "}}"))
    judged(path)


@pytest.mark.parametrize(("depth", "answer"), [(20, "answer"), (65, "error"), (3000, "error")])
def test_deeply_nested_groups(depth: int, answer: str, tmp_path: Path, judged: Judge) -> None:
    def fill(file: h5py.File) -> None:
        handmade.weights(file)
        group = file
        for _ in range(depth):
            group = group.create_group("g")

    path = tmp_path / "m.weights.h5"
    path.write_bytes(handmade.hdf5(fill))
    assert judged(path).startswith(answer)


def test_groups_in_circles(tmp_path: Path, judged: Judge) -> None:
    def fill(file: h5py.File) -> None:
        handmade.weights(file)
        file["layers/again"] = file["/"]
        file["layers/batch_normalization/self"] = file["layers/batch_normalization"]
        file["soft"] = h5py.SoftLink("/soft")

    path = tmp_path / "m.weights.h5"
    path.write_bytes(handmade.hdf5(fill))
    assert judged(path).startswith("answer")
    assert len(bnstat.load(path)) == 2


# Parts that do not belong together


def test_a_configuration_that_names_missing_variables() -> None:
    config = {"name": "bn", "momentum": 0.9}
    layer = Layer("bn", "BatchNormalization", config, {"moving_mean": "gone"}, "bn")
    model = discover(Contents(bnstat.Source("m", "saved-model"), {}, layers=[layer]))
    assert len(model) == 0
    model.explain()


def test_variables_that_do_not_fit_together_are_not_broadcast(tmp_path: Path) -> None:
    tensors: dict[str, np.ndarray] = {f"bn/{role}": np.ones(6) for role in handmade.ROLES}
    for shape in ((1,), (2, 3), (6, 6)):
        tensors["bn/gamma"] = np.ones(shape)
        (layer,) = bnstat.load(write(tmp_path, handmade.bundle(tensors)))
        with pytest.raises(bnstat.DamagedError, match="different shapes"):
            layer.scale_and_shift(epsilon=1e-3)
        with pytest.raises(bnstat.DamagedError, match="different shapes"):
            layer.normalize(np.ones((2, 6)), epsilon=1e-3)
    tensors["bn/gamma"] = np.ones((6, 1))
    (layer,) = bnstat.load(write(tmp_path, handmade.bundle(tensors)))
    assert [array.shape for array in layer.scale_and_shift(epsilon=1e-3)] == [layer.shape] * 2
