"""Files made to harm: refused by name, or read without what they ask for, within 5 s and 1 GB."""

from __future__ import annotations

import gzip
import io
import json
import marshal
import os
import tarfile
import zipfile
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import bnstat
from bnstat.discovery import discover
from bnstat.formats.contents import Contents, Layer
from tests.fuzz import handmade, wire
from tests.fuzz.recipes import tar, zipped
from tests.fuzz.wire import Field, encode
from tests.fuzz.worker import Worker
from tests.hardening.support import command, shown, write
from tests.hardening.test_pipe import at_terminal


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


Judge = Callable[[Path], str]


@pytest.fixture
def judged(worker: Worker) -> Judge:
    """Judges a path within the limits of the fuzzer; gives `answer...` or `error: KIND`."""

    def judge(path: Path) -> str:
        verdict = worker.judge(path)
        assert not verdict.is_finding, f"{verdict.text}\n{verdict.details}"
        return verdict.text

    return judge


# Numbers that overflow or claim terabytes

VAST = (2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def _bundle_with(**changes: Any) -> dict[str, bytes]:
    """A batch norm whose gamma's entry says something else."""
    tensors = {f"bn/{role}": array for role, array in handmade.values().items()}
    files = handmade.bundle(tensors)
    numbers = {"dtype": 1, "shard": 3, "offset": 4, "size": 5}
    more = b"".join(encode([Field(numbers[k], 0, v)]) for k, v in changes.items() if k in numbers)
    for size in changes.get("shape", ()):
        more += encode([Field(2, 2, encode([Field(2, 2, encode([Field(1, 0, size)]))]))])
    entries = [
        (key, value + more * (key == b"bn/gamma"))
        for key, value in wire.read_table(files["m.index"])
    ]
    return {**files, "m.index": wire.write_table(entries)}


@pytest.mark.parametrize("number", VAST)
@pytest.mark.parametrize("what", ["shard", "offset", "size"])
def test_an_entry_that_points_out_of_its_file(
    what: str, number: int, tmp_path: Path, judged: Judge
) -> None:
    assert judged(write(tmp_path, _bundle_with(**{what: number}))).startswith("error")


@pytest.mark.parametrize(
    "shape",
    [(n,) for n in VAST] + [(2**32, 2**32), (2**21,) * 3, (2,) * 64, (2**63 - 1, 0)],
    ids=str,
)
def test_an_entry_of_an_impossible_shape(
    shape: tuple[int, ...], tmp_path: Path, judged: Judge
) -> None:
    files = _bundle_with(shape=shape)
    assert judged(write(tmp_path, files)).startswith("error") or 0 in shape


@pytest.mark.parametrize("size", [0, 4])
def test_tensors_that_share_their_bytes_do_not_multiply(
    size: int, tmp_path: Path, judged: Judge
) -> None:
    """50,000 tensors of the same 4 MB would be 200 GB."""
    data = b"\0" * (4 << 20 if size else 0)
    entry = handmade.entry(1, (len(data) // 4,), 0, data)
    names = [f"bn{i}/{role}" for i in range(12_500) for role in handmade.ROLES]
    entries = {b"": handmade.header(), **{name.encode(): entry for name in names}}
    files = {
        "m.index": wire.write_table(sorted(entries.items())),
        "m.data-00000-of-00001": data,
    }
    assert judged(write(tmp_path, files)).startswith("error" if size else "answer")


@pytest.mark.parametrize("number", VAST)
def test_a_header_that_claims_any_number_of_shards(
    number: int, tmp_path: Path, judged: Judge
) -> None:
    files = handmade.bundle({f"bn/{role}": array for role, array in handmade.values().items()})
    entries = dict(wire.read_table(files["m.index"]))
    entries[b""] = handmade.header(number)
    files["m.index"] = wire.write_table(sorted(entries.items()))
    judged(write(tmp_path, files))


@pytest.mark.parametrize("shards", ["00001-of-99999", "99999-of-99999"])
def test_a_v1_name_that_claims_any_number_of_shards(
    shards: str, tmp_path: Path, judged: Judge
) -> None:
    path = tmp_path / f"m.ckpt-{shards}"
    path.write_bytes(handmade.v1())
    assert judged(path).startswith("error")


@pytest.mark.parametrize("number", VAST)
def test_block_handles_that_point_anywhere(number: int, tmp_path: Path, judged: Judge) -> None:
    files = handmade.bundle({f"bn/{role}": array for role, array in handmade.values().items()})
    index = files["m.index"]
    for handles in (
        wire.varint(0) * 2 + wire.varint(number) + wire.varint(10),
        wire.varint(0) * 2 + wire.varint(10) + wire.varint(number),
    ):
        footer = handles[:40].ljust(40, b"\0") + wire.MAGIC
        files["m.index"] = index[: -wire.FOOTER] + footer
        assert judged(write(tmp_path, files)).startswith("error")


def test_an_index_of_one_block_named_again_and_again(tmp_path: Path, judged: Judge) -> None:
    contents = wire.block_contents([(b"key%d" % i, b"x" * 100) for i in range(10_000)])
    data = wire.block(contents)
    handle = wire.varint(0) + wire.varint(len(contents))
    index = wire.block_contents([(b"%08d" % i, handle) for i in range(100_000)], 1)
    footer = wire.varint(0) * 2 + wire.varint(len(data)) + wire.varint(len(index))
    table = data + wire.block(index) + footer.ljust(40, b"\0") + wire.MAGIC
    assert judged(write(tmp_path, {"m.index": table})).startswith("error")


def test_keys_that_grow_by_sharing(tmp_path: Path, judged: Judge) -> None:
    """Each key is the one before and a byte: 4 MB of entries would be terabytes of keys."""
    contents = bytearray()
    for length in range(1_000_000):
        contents += wire.varint(length) + wire.varint(1) + wire.varint(0) + b"a"
    contents += bytes(4) + (1).to_bytes(4, "little")
    table = wire.table([(b"b", bytes(contents))])
    assert judged(write(tmp_path, {"m.index": table})).startswith("error")


@pytest.mark.parametrize("claim", [2**20, 2**32, 2**63])
def test_a_snappy_block_that_claims_more_than_it_makes(
    claim: int, tmp_path: Path, judged: Judge
) -> None:
    block = wire.varint(claim) + b"\0a" + b"\xfe\1\0" * 1000
    whole = wire.table([(b"\xff", block)])
    table = wire.block(block, 1) + whole[len(block) + 5 :]
    assert judged(write(tmp_path, {"m.index": table})).startswith("error")


def test_a_v1_tensor_that_claims_terabytes(tmp_path: Path, judged: Judge) -> None:
    for size in VAST:
        shape = encode([Field(2, 2, encode([Field(1, 0, size)]))])
        meta = [Field(1, 2, b"bn/moving_mean"), Field(2, 2, shape), Field(3, 0, 1)]
        meta += [Field(4, 2, encode([Field(1, 2, b"")]))] * 1000
        header = encode([Field(1, 2, encode([Field(1, 2, encode(meta))]))])
        path = tmp_path / "m.ckpt"
        path.write_bytes(wire.write_table([(b"", header)]))
        judged(path)


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
        told = {part.number: part.value for part in wire.parse(field.value)}
        name = told[2]
        assert isinstance(name, bytes)
        children[name.decode()] = int(told.get(1, 0))
    return children


@pytest.mark.parametrize("child", [-1, 7, 2**31 - 1, 2**40])
def test_object_graphs_that_name_what_is_not_there(
    child: int, tmp_path: Path, judged: Judge
) -> None:
    message, tensors = handmade.bn_graph()
    graph = message + encode([handmade.node({"x": child})])
    judged(write(tmp_path, handmade.object_bundle(graph, tensors)))


def test_an_object_graph_where_every_object_holds_every_other(
    tmp_path: Path, judged: Judge
) -> None:
    count = 500
    nodes = [handmade.node({f"c{i}": i for i in range(count)}) for _ in range(count)]
    judged(write(tmp_path, handmade.object_bundle(encode(nodes), {})))


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
    "a chain": [_function(f"f{i}", [_node("n0", CALL, ("x",), f"f{i + 1}")]) for i in range(5000)],
    "none": [],
}


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
    files = handmade.bundle({f"bn/{role}": a for role, a in handmade.values().items()})
    assert judged(write(tmp_path / "beside", {**files, "m.meta": meta})).startswith("answer")


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
        message_head = wire.varint(number << 3 | 2) + wire.varint(sum(map(len, head)))
        head.append(message_head)
    return b"".join(reversed(head)) + message


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


# Bombs

MOST = 64 << 20
"""Zeros to compress: what is refused at this size is refused at any."""


def test_a_zip_bomb(tmp_path: Path, judged: Judge) -> None:
    zeros = bytes(MOST)
    for name in ("config.json", "model.weights.h5", "saved_model.pb", "metadata.json"):
        members = {"metadata.json": b"{}", "config.json": b"{}", name: zeros}
        path = tmp_path / f"{name}.keras"
        path.write_bytes(zipped(list(members.items()), zipfile.ZIP_DEFLATED))
        assert path.stat().st_size < 100_000
        assert judged(path).startswith("error")


def test_a_zip_whose_members_all_lie_over_one_another(tmp_path: Path, judged: Judge) -> None:
    """One compressed megabyte that a thousand entries name: each is all there is to see."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = packed.compress(bytes(MOST)) + packed.flush()
    name = b"x.h5"
    local = b"PK\3\4" + bytes(22) + len(name).to_bytes(2, "little") + bytes(2) + name
    local = local[:8] + b"\x08\0" + local[10:]
    central = b""
    for number in range(1000):
        each = b"%d.h5" % number
        entry = bytearray(b"PK\1\2" + bytes(42))
        entry[10:12] = b"\x08\0"
        entry[20:24] = len(raw).to_bytes(4, "little")
        entry[24:28] = MOST.to_bytes(4, "little")
        entry[28:30] = len(each).to_bytes(2, "little")
        central += bytes(entry) + each
    start = len(local) + len(raw)
    end = b"PK\5\6" + bytes(4) + (1000).to_bytes(2, "little") * 2
    end += len(central).to_bytes(4, "little") + start.to_bytes(4, "little") + bytes(2)
    path = tmp_path / "m.zip"
    path.write_bytes(local + raw + central + end)
    assert len(zipfile.ZipFile(path).infolist()) == 1000
    assert judged(path).startswith("error")


def test_a_gzip_bomb(tmp_path: Path, judged: Judge) -> None:
    path = tmp_path / "m.tar.gz"
    with gzip.open(path, "wb") as stream:
        for _ in range(16):
            stream.write(bytes(MOST))
    assert judged(path) == "error: BnstatError"


def test_a_tar_of_a_sparse_terabyte(tmp_path: Path, judged: Judge) -> None:
    image = io.BytesIO()
    with tarfile.open(fileobj=image, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for major in ("0", "1"):
            info = tarfile.TarInfo("saved_model.pb")
            info.pax_headers = {
                "GNU.sparse.major": major,
                "GNU.sparse.minor": "0",
                "GNU.sparse.realsize": str(2**40),
                "GNU.sparse.size": str(2**40),
                "GNU.sparse.map": f"0,{2**40}",
            }
            info.size = 512
            archive.addfile(info, io.BytesIO(b"1\n0\n1\n".ljust(512, b"\0")))
    path = tmp_path / "m.tar"
    path.write_bytes(image.getvalue())
    assert judged(path).startswith("error")


def _tar_header(name: str, size: bytes) -> bytes:
    """The header of a regular file whose size is written so."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("size", [-512, -1024, -1, 2**62, 2**63 - 1, 2**70])
def test_a_tar_whose_sizes_lead_anywhere(size: int, tmp_path: Path, judged: Judge) -> None:
    """A negative size has sent Python's tarfile in circles (CVE-2025-8194)."""
    sign = b"\xff" if size < 0 else b"\x80"
    number = sign + (size % (1 << 88)).to_bytes(11, "big")
    first = _tar_header("a", b"%011o\0" % 512) + bytes(512)
    path = tmp_path / "m.tar"
    path.write_bytes(first + _tar_header("b", number) + bytes(1024))
    assert judged(path).startswith("error")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_ways_of_compressing_that_take_memory_at_will(
    method: int, tmp_path: Path, judged: Judge
) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes(zipped([("config.json", b"{}"), ("model.weights.h5", b"x" * 99)], method))
    assert judged(path) == "error: UnsupportedError"


@pytest.mark.parametrize(
    "dataset",
    [
        {"shape": (2**28,), "dtype": "f4"},
        {"shape": (2**28,), "dtype": "f4", "chunks": (2**16,), "compression": "gzip"},
        {"shape": (2**50,), "dtype": "f4", "chunks": (2**16,)},
        {"shape": (2**27,), "dtype": "f8", "chunks": (2**10,)},
    ],
    ids=["unwritten", "compressed", "a petabyte", "never written chunks"],
)
def test_a_dataset_that_claims_more_than_the_file_has(
    dataset: dict[str, Any], tmp_path: Path, judged: Judge
) -> None:
    def fill(file: h5py.File) -> None:
        for index in range(4):
            file.create_dataset(f"layers/batch_normalization/vars/{index}", **dataset)

    path = tmp_path / "m.weights.h5"
    path.write_bytes(handmade.hdf5(fill))
    assert judged(path) == "error: DamagedError"


def test_many_datasets_that_claim_a_little_too_much_each(tmp_path: Path, judged: Judge) -> None:
    """A thousand times 10 MB that were never written: each alone would do."""

    def fill(file: h5py.File) -> None:
        for number in range(250):
            for index in range(4):
                path = f"layers/batch_normalization_{number}/vars/{index}"
                file.create_dataset(path, shape=(2_500_000,), dtype="f4")

    path = tmp_path / "m.weights.h5"
    path.write_bytes(handmade.hdf5(fill))
    assert judged(path) == "error: DamagedError"


def test_written_gigabytes_of_compressed_zeros(tmp_path: Path, judged: Judge) -> None:
    def fill(file: h5py.File) -> None:
        for index in range(4):
            file.create_dataset(
                f"layers/batch_normalization/vars/{index}",
                data=np.zeros(2**25, "f4"),
                chunks=(2**17,),
                compression="gzip",
                compression_opts=9,
            )

    path = tmp_path / "m.weights.h5"
    path.write_bytes(handmade.hdf5(fill))
    assert path.stat().st_size < 2 << 20
    assert judged(path) == "error: DamagedError"


# What leads out of a file

SECRET = "a secret of this machine"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that no model may reach."""
    folder = write(tmp_path / "outside", {"secret.txt": SECRET.encode()})
    with h5py.File(folder / "secret.h5", "w") as file:
        for index in range(4):
            file[f"vars/{index}"] = np.full(3, 31337, "f4")
    (folder / "raw").write_bytes(np.full(3, 31337, "<f4").tobytes())
    return folder


@pytest.mark.parametrize(
    "name", ["../outside/secret.txt", "/{0}/secret.txt", "a/../../outside/secret.txt", "..\\x"]
)
def test_archive_members_that_climb_out(name: str, outside: Path, tmp_path: Path) -> None:
    name = name.format(str(outside).lstrip("/"))
    tensors = {f"bn/{role}": array for role, array in handmade.values().items()}
    files = {**handmade.bundle(tensors), name: b"overwritten"}
    before = sorted(path for path in tmp_path.rglob("*"))
    for suffix, content in (
        ("zip", zipped(list(files.items()))),
        ("tar", tar(files, "w")),
        ("tar.gz", tar(files, "w:gz")),
    ):
        path = tmp_path / f"m.{suffix}"
        path.write_bytes(content)
        assert [layer.name for layer in bnstat.load(path)] == ["bn"]
        path.unlink()
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert (outside / "secret.txt").read_text() == SECRET


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_in_a_tar(
    kind: bytes, outside: Path, tmp_path: Path, judged: Judge
) -> None:
    tensors = {f"bn/{role}": array for role, array in handmade.values().items()}
    image = io.BytesIO()
    with tarfile.open(fileobj=image, mode="w") as archive:
        for name, content in handmade.bundle(tensors).items():
            info = tarfile.TarInfo(name)
            if ".data" in name:
                info.type, info.linkname = kind, str(outside / "raw")
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    path = tmp_path / "m.tar"
    path.write_bytes(image.getvalue())
    assert judged(path) == "error: NotFoundError"


def _leading_out(outside: Path) -> dict[str, Callable[[h5py.File, str], None]]:
    def external_link(file: h5py.File, path: str) -> None:
        file[path] = h5py.ExternalLink(str(outside / "secret.h5"), "/vars/0")

    def virtual(file: h5py.File, path: str) -> None:
        layout = h5py.VirtualLayout((3,), "f4")
        layout[:] = h5py.VirtualSource(str(outside / "secret.h5"), "vars/0", (3,))
        file.create_virtual_dataset(path, layout)

    def external_storage(file: h5py.File, path: str) -> None:
        file.create_dataset(path, (3,), "f4", external=[(str(outside / "raw"), 0, 12)])

    return {
        "an external link": external_link,
        "a virtual dataset": virtual,
        "external storage": external_storage,
    }


@pytest.mark.parametrize("kind", ["an external link", "a virtual dataset", "external storage"])
@pytest.mark.parametrize("ending", ["weights.h5", "keras"])
def test_hdf5_that_leads_out_of_its_file(
    kind: str, ending: str, outside: Path, tmp_path: Path
) -> None:
    lead_out = _leading_out(outside)[kind]

    def fill(file: h5py.File) -> None:
        handmade.weights(file)
        for index in range(4):
            path = f"layers/batch_normalization/vars/{index}"
            del file[path]
            lead_out(file, path)

    path = tmp_path / f"m.{ending}"
    is_archive = ending == "keras"
    path.write_bytes(handmade.keras_archive(fill=fill) if is_archive else handmade.hdf5(fill))
    try:
        text = shown(path)
    except bnstat.BnstatError:
        return
    assert "31337" not in text


@pytest.mark.parametrize("name", ["../outside/secret.h5", "/{0}/secret.h5", "..", ".", ""])
def test_sharded_weights_that_name_files_elsewhere(
    name: str, outside: Path, tmp_path: Path, judged: Judge
) -> None:
    index = {"weight_map": {"/vars": name.format(str(outside).lstrip("/")), "/x": "a.h5"}}
    folder = write(tmp_path / "m", {"m.weights.json": json.dumps(index).encode()})
    assert judged(folder / "m.weights.json").startswith("error")


def test_a_state_file_that_names_checkpoints_elsewhere(outside: Path, tmp_path: Path) -> None:
    tensors = {f"bn/{role}": np.full(3, 31337.0) for role in handmade.ROLES}
    write(outside, handmade.bundle(tensors))
    own = {f"bn/{role}": array for role, array in handmade.values().items()}
    state = f'model_checkpoint_path: "{outside}/m"\nall_model_checkpoint_paths: "../outside/m"\n'
    folder = write(
        tmp_path / "run", {**handmade.bundle(own, prefix="n"), "checkpoint": state.encode()}
    )
    assert "31337" not in shown(folder)


# Code


def test_lambda_layers_are_never_run(tmp_path: Path) -> None:
    flag = tmp_path / "was-run"
    code = marshal.dumps(compile(f"open({str(flag)!r}, 'w').close()", "x", "exec"))
    lambdas = [
        {"class_name": "Lambda", "config": {"name": "l", "function": function}}
        for function in (
            {"class_name": "__lambda__", "config": {"code": b64encode(code).decode()}},
            [b64encode(code).decode(), None, None],
            f"open({str(flag)!r}, 'w').close()",
        )
    ]
    for layer in lambdas:
        model = handmade.config()
        model["config"]["layers"].insert(0, layer)
        archive = tmp_path / "m.keras"
        archive.write_bytes(handmade.keras_archive(model))
        assert [layer.name for layer in bnstat.load(archive)] == ["bn0", "bn1"]

        def fill(file: h5py.File, model: dict[str, Any] = model) -> None:
            handmade.legacy(file)
            file.attrs["model_config"] = json.dumps(model)

        legacy = tmp_path / "m.h5"
        legacy.write_bytes(handmade.hdf5(fill))
        assert [layer.name for layer in bnstat.load(legacy)] == ["bn0", "bn1"]
    assert not flag.exists()


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    flag = tmp_path / "was-run"
    payload = f"cbuiltins\nexec\n(Vopen({str(flag)!r}, 'w').close()\ntR.".encode()
    members = [("config.json", b"{}"), ("metadata.json", b"{}"), ("model.weights.npz", payload)]
    path = tmp_path / "m.keras"
    path.write_bytes(zipped(members))
    with pytest.raises(bnstat.UnsupportedError, match="pickle"):
        bnstat.load(path)
    assert not flag.exists()


# Names

HOSTILE = {
    "an escape": "\x1b[2J\x1b]0;owned\x07\x9b31m",
    "markup": "[bold red]x[/bold red][link=file:///etc/passwd]y[/link]",
    "a right-to-left override": "safe\u202egnp.exe\u2066\u200f",
    "lines": "a\r\nb\nc\u2028d\x85e\x0bf",
    "a formula": '=HYPERLINK("http://x","y")',
    "another formula": "@SUM(1+1)*cmd|' /C calc'!A0",
    "a tab": "\t=1+1",
    "a backspace": "abc\x08\x08\x08xyz\x7f",
    "bytes that are no text": "\udcff\udcfe",
    "a zero": "a\x00b",
    "quotes": "\"'`$(touch x);|&<script>alert(1)</script>",
    "combining": "Z" + "\u0301" * 300,
    "wide": "🏴‍☠️漢字" * 40,
    "percent": "%s%n%d{0}{x}",
    "dots": "../../etc/passwd",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two checkpoints with a layer of each such name, and something wrong with all."""
    folder = tmp_path_factory.mktemp("run")
    for step in range(2):
        tensors = {
            f"{name}/{role}": array + step
            for name in HOSTILE.values()
            for role, array in handmade.values().items()
        }
        for name in HOSTILE.values():
            tensors[f"{name}/moving_variance"] = np.array([-1.0, 0.0, np.nan]) * (step + 1)
        write(folder, handmade.bundle(tensors, prefix=f"m-{step}"))
    assert len(bnstat.load(folder)) == len(HOSTILE)
    return folder


TEXTS = (
    "inspect {0}",
    "inspect {0} --values",
    "inspect {0} --no-values -v",
    "inspect {0} --layer nothing",
    "check {0}",
    "check {0} --github",
    "diff {0}/m-0 {0}/m-1 --all",
    "diff {0}/m-0 {0}/m-1 --md",
    "history {0}",
    "history {0} --csv",
    "export {0} --csv",
)


@pytest.mark.parametrize("line", TEXTS)
def test_hostile_names_in_text(line: str, hostile: Path) -> None:
    result = command(*line.format(hostile).split())
    assert b"Traceback" not in result.stderr
    for output in (result.stdout, result.stderr):
        for shown_line in output.decode().split("\n"):
            assert shown_line.isprintable(), repr(shown_line)


@pytest.mark.parametrize("line", ["inspect {0}", "check {0}", "history {0}"])
def test_hostile_names_at_a_terminal(line: str, hostile: Path) -> None:
    for shown_line in at_terminal(line.format(hostile).split(), 80):
        assert shown_line.isprintable(), repr(shown_line)
    os.environ["FORCE_COLOR"] = "1"
    try:
        output = command(*line.format(hostile).split()).stdout.decode()
    finally:
        del os.environ["FORCE_COLOR"]
    assert "\x1b[2J" not in output
    assert "\x1b]" not in output


@pytest.mark.parametrize(
    "line", ["export {0}", "check {0} --json", "check {0} --sarif", "history {0} --json",
             "diff {0}/m-0 {0}/m-1 --json"],
)  # fmt: skip
def test_hostile_names_in_json(line: str, hostile: Path) -> None:
    result = command(*line.format(hostile).split())
    text = result.stdout.decode()
    json.loads(text)
    for shown_line in text.split("\n"):
        assert shown_line.isprintable(), repr(shown_line)


def test_hostile_names_are_exact_in_json_and_npz(hostile: Path, tmp_path: Path) -> None:
    model = bnstat.load(hostile)
    assert set(model.keys()) == set(HOSTILE.values())
    exported = json.loads(command("export", hostile).stdout)
    assert [each["name"] for each in exported["layers"]] == model.keys()
    target = tmp_path / "x.npz"
    assert command("export", hostile, "-o", target).returncode == 0
    with np.load(target, allow_pickle=False) as arrays:
        assert len(arrays.files) == 4 * len(model)
        for layer in model:
            for role in handmade.ROLES:
                # A ZIP's names hold neither a zero byte nor what is no text.
                if layer.name not in (HOSTILE["a zero"], HOSTILE["bytes that are no text"]):
                    found = arrays[f"{layer.name}/{role}"]
                    np.testing.assert_array_equal(found, layer.array(role))


def test_cells_that_a_spreadsheet_would_run(hostile: Path) -> None:
    import csv

    for line in ("export {0} --csv", "history {0} --csv"):
        text = command(*line.format(hostile).split()).stdout.decode()
        rows = list(csv.reader(io.StringIO(text)))
        assert len({len(row) for row in rows}) == 1
        for row in rows[1:]:
            for cell in row:
                is_number = cell.replace("-", "").replace("+", "").replace(".", "").isalnum()
                assert is_number or not cell.startswith(("=", "+", "-", "@", "\t", "\r"))


def test_a_notebooks_table_holds_no_foreign_html(hostile: Path) -> None:
    page = bnstat.load(hostile)._repr_html_()
    assert "<script" not in page
    assert page.replace("\n", "").isprintable()


@pytest.mark.parametrize("where", ["bundle", "hdf5", "config"])
def test_a_name_of_ten_megabytes(where: str, tmp_path: Path) -> None:
    name = "n" * (10 << 20)
    if where == "bundle":
        tensors = {f"{name}/{role}": array for role, array in handmade.values().items()}
        path = write(tmp_path, handmade.bundle(tensors))
    else:
        path = tmp_path / ("m.keras" if where == "config" else "m.weights.h5")
        config = handmade.config()
        config["config"]["layers"][0]["config"]["name"] = name

        def fill(file: h5py.File) -> None:
            for index, array in enumerate(handmade.values().values()):
                file[f"layers/batch_normalization/vars/{index}"] = array
            if where == "hdf5":
                file.move("layers/batch_normalization", f"layers/{name}")

        content = handmade.keras_archive(config) if where == "config" else handmade.hdf5(fill)
        path.write_bytes(content)
    limit = ["prlimit", "--as=1500000000", "--cpu=8"]
    for line in ("inspect", "inspect --values", "inspect --no-values -v", "check", "export --csv",
                 "export --npz", "export --json", "history"):  # fmt: skip
        result = command(*line.split(), path, prefix=limit)
        assert b"Traceback" not in result.stderr, result.stderr[-2000:]
        assert result.returncode in (0, 1, 2), line
        assert len(result.stderr) < 10_000
        assert result.stdout or result.stderr.startswith(b"error: ")
        if line.partition(" ")[0] != "export":
            assert len(result.stdout) < 100_000, line
        elif line.endswith("json") and result.returncode == 0:
            assert json.loads(result.stdout)["schema"] == 1


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


def test_a_configuration_that_names_variables_which_are_not_there() -> None:
    config = {"name": "bn", "momentum": 0.9}
    layer = Layer("bn", "BatchNormalization", config, {"moving_mean": "gone"}, "bn")
    model = discover(Contents(bnstat.Source("m", "saved-model"), {}, layers=[layer]))
    assert len(model) == 0
    model.explain()
