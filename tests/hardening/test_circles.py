"""Structures with cycles, deep nesting, or references to missing parts."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

import bnstat
from bnstat.discovery import discover
from bnstat.formats.contents import Contents, Layer
from tests.builders.tables import varint
from tests.fuzz import handmade, wire
from tests.fuzz.handmade import zipped
from tests.fuzz.wire import Field, encode
from tests.hardening.support import Judge, layers, write

# Cycles


def test_object_graphs_in_circles(tmp_path: Path, judged: Judge) -> None:
    message, tensors = handmade.bn_graph()
    turns = {
        "self": [handmade.node({"a": 0, "b": 0, "bn": 1})],
        "pair": [handmade.node({"bn": 1, "a": 0})],
    }
    fields = wire.parse(message)
    for first in turns.values():
        looped = [*first, handmade.node({**_children(fields[1]), "up": 0, "me": 1}), *fields[2:]]
        files = handmade.object_bundle(encode(looped), tensors)
        folder = write(tmp_path, files)
        assert judged(folder).startswith("answer")
        assert [layer.name for layer in bnstat.load(folder)] == ["bn"]


def _children(node: Field) -> dict[str, int]:
    assert isinstance(node.value, bytes)
    children = {}
    for field in wire.parse(node.value):
        assert isinstance(field.value, bytes)
        parts = {part.number: part.value for part in wire.parse(field.value)}
        name = parts[2]
        assert isinstance(name, bytes)
        children[name.decode()] = int(parts.get(1, 0))
    return children


@pytest.mark.parametrize("child", [-1, 7, 2**31 - 1, 2**40])
def test_object_graphs_with_missing_children(child: int, tmp_path: Path, judged: Judge) -> None:
    message, tensors = handmade.bn_graph()
    graph = message + encode([handmade.node({"x": child})])
    judged(write(tmp_path, handmade.object_bundle(graph, tensors)))


@pytest.mark.slow
def test_an_object_graph_where_every_object_holds_every_other(
    tmp_path: Path, judged: Judge
) -> None:
    count = 500
    nodes = [handmade.node({f"c{i}": i for i in range(count)}) for _ in range(count)]
    judged(write(tmp_path, handmade.object_bundle(encode(nodes), {})))


@pytest.mark.slow
def test_a_long_chain_of_objects(tmp_path: Path, judged: Judge) -> None:
    nodes = [handmade.node({"next": i + 1}) for i in range(200_000)] + [handmade.node({})]
    judged(write(tmp_path, handmade.object_bundle(encode(nodes), {})))


def _node(name: str, op: str, inputs: tuple[str, ...] = (), function: str | None = None) -> bytes:
    fields = [Field(1, 2, name.encode()), Field(2, 2, op.encode())]
    fields += [Field(3, 2, each.encode()) for each in inputs]
    if function is not None:
        value = encode([Field(10, 2, encode([Field(1, 2, function.encode())]))])
        fields.append(Field(5, 2, encode([Field(1, 2, b"f"), Field(2, 2, value)])))
    return encode(fields)


def _function(name: str, nodes: list[bytes]) -> bytes:
    signature = [Field(1, 2, name.encode()), Field(2, 2, encode([Field(1, 2, b"x")]))]
    signature.append(Field(3, 2, encode([Field(1, 2, b"y")])))
    result = encode([Field(1, 2, b"y"), Field(2, 2, b"n0:output:0")])
    body = [Field(3, 2, node) for node in nodes]
    return encode([Field(1, 2, encode(signature)), *body, Field(4, 2, result)])


def _graph(nodes: list[bytes], functions: list[bytes]) -> bytes:
    library = encode([Field(1, 2, function) for function in functions])
    return encode([*(Field(1, 2, node) for node in nodes), Field(2, 2, library)])


CALL = "StatefulPartitionedCall"
LIBRARIES = {
    "itself": [_function("f0", [_node("n0", CALL, ("x",), "f0")])],
    "one another": [
        _function("f0", [_node("n0", CALL, ("x",), "f1")]),
        _function("f1", [_node("n0", CALL, ("x",), "f0")]),
    ],
    "itself twice": [
        _function("f0", [_node(f"n{i}", CALL, ("x",), "f0") for i in range(2)]),
    ],
    "two of the next": [
        _function(f"f{i}", [_node(f"n{k}", CALL, ("x",), f"f{i + 1}") for k in range(2)])
        for i in range(100)
    ],
    "many arguments": [
        _function("f0", [_node(f"n{i}", CALL, ("x",), "f1") for i in range(2000)]),
        _function("f1", [_node("n0", "AddN", ("x",) * 50_000)]),
    ],
    "a chain": [_function(f"f{i}", [_node("n0", CALL, ("x",), f"f{i + 1}")]) for i in range(5000)],
    "none": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("functions", LIBRARIES.values(), ids=LIBRARIES)
def test_functions_that_call(functions: list[bytes], tmp_path: Path, judged: Judge) -> None:
    nodes = [_node("a", "Placeholder"), _node("b", CALL, ("a",), "f0"), _node("c", "Relu", ("b",))]
    graph = _graph(nodes, functions)
    frozen = tmp_path / "frozen.pb"
    frozen.write_bytes(graph)
    judged(frozen)
    meta = encode([Field(1, 2, encode([Field(5, 2, b"2.0")])), Field(2, 2, graph)])
    saved = encode([Field(1, 0, 1), Field(2, 2, meta)])
    judged(write(tmp_path / "saved", {"saved_model.pb": saved}))
    files = handmade.bundle(layers())
    assert judged(write(tmp_path / "beside", {**files, "m.meta": meta})).startswith("answer")


@pytest.mark.slow
def test_ops_in_circles(tmp_path: Path, judged: Judge) -> None:
    ops = ("FusedBatchNormV3", "Mul", "AddV2", "Rsqrt", "Identity", "Sub", "Merge", "Switch")
    nodes = [
        _node(f"n{i}", op, tuple(f"n{(i + k) % len(ops)}" for k in range(5)))
        for i, op in enumerate(ops)
    ]
    chain = [_node(f"i{i}", "Identity", (f"i{i + 1}",)) for i in range(100_000)]
    chain.append(_node("bn", "FusedBatchNormV3", tuple(f"i{i}" for i in range(5))))
    for name, graph in (("circle", nodes), ("chain", chain)):
        path = tmp_path / f"{name}.pb"
        path.write_bytes(_graph(graph, []))
        judged(path)


# Nesting


def _nested(number: int, depth: int) -> bytes:
    head, message = [], b""
    for _ in range(depth):
        message_head = varint(number << 3 | 2) + varint(sum(map(len, head)))
        head.append(message_head)
    return b"".join(reversed(head)) + message


@pytest.mark.slow
@pytest.mark.parametrize("depth", [100, 20_000])
def test_deeply_nested_protocol_buffers(depth: int, tmp_path: Path, judged: Judge) -> None:
    deep = _nested(2, depth)
    nodes = encode([Field(1, 2, _node("a", "Placeholder"))])
    judged(write(tmp_path / "saved", {"saved_model.pb": encode([Field(1, 0, 1)]) + deep}))
    judged(write(tmp_path / "graph", {"graph.pb": nodes + deep}))
    files = handmade.object_bundle(_nested(1, depth), {})
    judged(write(tmp_path / "objects", files))
    text = "meta_graphs {" * depth + "}" * depth
    judged(write(tmp_path / "text", {"saved_model.pbtxt": text.encode()}))


@pytest.mark.slow
@pytest.mark.parametrize("depth", [70, 300, 100_000])
def test_deeply_nested_json(depth: int, tmp_path: Path, judged: Judge) -> None:
    model = '{"class_name": "Sequential", "config": {"name": "s", "layers": ['
    inner = '{"class_name": "BatchNormalization", "config": {"name": "bn"}}'
    path = tmp_path / "m.keras"
    for config in (model * depth + inner + "]}}" * depth, "[" * depth + "]" * depth):
        weights = ("model.weights.h5", handmade.hdf5(handmade.weights))
        path.write_bytes(zipped([("config.json", config.encode()), weights]))
        verdict = judged(path)
        assert verdict == "error: DamagedError" or config.startswith("[")


def test_numbers_of_a_million_digits_in_json(tmp_path: Path, judged: Judge) -> None:
    config = b'{"class_name": "Sequential", "config": {"layers": [], "x": %s}}' % (b"9" * 10**6)
    members = [("config.json", config), ("model.weights.h5", handmade.hdf5(handmade.weights))]
    path = tmp_path / "m.keras"
    path.write_bytes(zipped(members))
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


# Nowhere


def test_a_configuration_that_names_missing_variables() -> None:
    config = {"name": "bn", "momentum": 0.9}
    layer = Layer("bn", "BatchNormalization", config, {"moving_mean": "gone"}, "bn")
    model = discover(Contents(bnstat.Source("m", "saved-model"), {}, layers=[layer]))
    assert len(model) == 0
    model.explain()
