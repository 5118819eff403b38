"""Pickles, sound and hostile."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from bnstat.formats.exchange.pytorch.pickled import Global, Opaque, PickleError, unpickle
from bnstat.formats.exchange.pytorch.tensors import call, storage_of
from tests.formats.exchange.pytorch.reading import opened, zipped


def test_containers_that_contain_themselves(tmp_path: Path) -> None:
    content: dict[str, Any] = {"list": []}
    content["list"].append(content)
    content["self"] = content
    assert dict(opened(zipped(tmp_path / "m", pickle.dumps(content, 2))).variables) == {}


@pytest.mark.parametrize("opening", [b"(t", b"]", b"}"])
def test_nesting_without_end(tmp_path: Path, opening: bytes) -> None:
    deep = {b"(t": b")" + b"\x85" * 300_000, b"]": b"]" * 100_000 + b"a" * 99_999,
            b"}": b"}" + b"X\x01\0\0\0k}" * 100_000 + b"s" * 100_000}  # fmt: skip
    path = zipped(tmp_path / "m", b"\x80\x02" + deep[opening] + b".")
    assert dict(opened(path).variables) == {}


@pytest.mark.parametrize(
    "program",
    [
        b"r\xff\xff\xff\xffN.",  # keeps nothing under a number
        b"N r\xff\xff\xff\xff",
        b".",
        b"j\x01\0\0\0.",
        b"h\x05.",
        b"(((",
        b"t.",
        b"R.",
        b"NNR.",
        b"cos\nsystem\nNR.",
        b"cos\nsystem\n)R",
        b"X\xff\xff\xff\xff.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x8b\xff\xff\xff\xff.",
        b"\x82\x01.",
        b"\x97.",
        b"NNs.",
        b"(NNu.",
        b"Na.",
        b"K\x01Q.",
        b"I" + b"9" * 5000 + b"\n.",
        b"Fabc\n.",
        b"Iabc\n.",
        b"(K\x011N.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.",
    ],
)
def test_pickles_that_are_none(program: bytes) -> None:
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
