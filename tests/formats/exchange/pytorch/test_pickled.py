"""Pickles, sound and hostile."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

import bnstat
from bnstat.formats.exchange.pytorch.pickled import Global, Opaque, PickleError, unpickle
from bnstat.formats.exchange.pytorch.tensors import call, storage_of
from tests.formats.exchange.pytorch.files import (
    FORMS,
    Net,
    assert_is,
    opened,
    save,
    torch,
    zipped,
)


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("form", FORMS)
def test_every_protocol(tmp_path: Path, form: str, protocol: int) -> None:
    net = Net()
    torch.save(
        net.state_dict(), tmp_path / "m", pickle_protocol=protocol,
        _use_new_zipfile_serialization=FORMS[form],
    )  # fmt: skip
    assert_is(bnstat.load(tmp_path / "m"), net)


class _Bomb:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_executed(tmp_path: Path, form: str) -> None:
    net = Net()
    content = {"model": net.state_dict(), "extra": _Bomb(f"touch {tmp_path / 'executed'}")}
    model = bnstat.load(save(tmp_path / "m", content, form))
    assert_is(model, net)
    assert "system" in model.notes[0]
    assert not (tmp_path / "executed").exists()


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
