"""Element types: nothing but the table's dtypes comes of any name in a file."""

from __future__ import annotations

import json
import struct
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat import formats
from bnstat.errors import BnstatError, NotFoundError
from bnstat.formats import dtypes
from tests.fuzz import ports
from tests.fuzz.handmade import zipped

HOSTILE = ["float32,O", "O", "|O", "object", "f4,f4", "(2,)f4", "V8", "<U4", "str", "M8", "", "f4 ",
           "datetime64", "generic", "__class__", "bfloat16,O"]  # fmt: skip
KINDS = ["?", "b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]
NOT_NUMERIC = {"string", "resource", "variant", "quint4x2", "quint2x4"}
NAMES = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")


@pytest.mark.parametrize("name", HOSTILE)
def test_other_names_give_no_dtype(name: str) -> None:
    assert dtypes.find_dtype(name) is None
    assert dtypes.dtype_of_descr(name) is None


def test_every_numeric_type_is_plain() -> None:
    for name in dtypes.NUMERIC:
        dtype = dtypes.find_dtype(name)
        assert dtype is not None
        assert not dtype.hasobject
        assert dtype.names is dtype.subdtype is None
        assert dtype.name == name.replace("qint", "int").replace("quint", "uint")


def test_every_format_names_types_of_the_table() -> None:
    """A module's `DTYPES` maps the codes of its format to names of the table."""
    names = [found.name for found in walk_packages(formats.__path__, "bnstat.formats.")]
    tables = {name: vars(import_module(name)).get("DTYPES", {}) for name in names}
    assert sum(map(bool, tables.values())) >= 4
    tables["dtypes"] = dtypes.TENSORFLOW
    unknown = {
        name: sorted(set(table.values()) - dtypes.NUMERIC - NOT_NUMERIC)
        for name, table in tables.items()
    }
    assert {name: names for name, names in unknown.items() if names} == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["", "<", ">", "|", "="])
def test_descriptions_mean_what_numpy_means(order: str, kind: str) -> None:
    assert dtypes.dtype_of_descr(order + kind) == np.dtype(order + kind)


def pytorch(dtype: str, count: int = 3) -> bytes:
    build, hooks = "torch._utils:_rebuild_tensor_v3", ports.Call("collections:OrderedDict", ())
    element = ports.Name(f"torch:{dtype}")
    storage = ports.Storage("0", 12)
    tensor = ports.Call(build, (storage, 0, (count,), (1,), False, hooks, element))
    return ports.pytorch_zip(ports.pickled(dict.fromkeys(NAMES, tensor)), {"0": b"A" * 48})


def safetensors(dtype: str, count: int = 3) -> bytes:
    entries = {
        name: {"dtype": dtype, "shape": [count], "data_offsets": [36 * at, 36 * at + 36]}
        for at, name in enumerate(NAMES)
    }
    return ports.with_length(json.dumps(entries).encode()) + b"A" * 144


def msgpack(dtype: str, count: int = 3) -> bytes:
    def text(content: str) -> bytes:
        return bytes([0xD9, len(content)]) + content.encode()

    array = bytes([0x93, 0x91, count]) + text(dtype) + bytes([0xC4, 36]) + b"A" * 36
    packed = bytes([0xC7, len(array), 1]) + array
    return b"\x84" + b"".join(text(name) + packed for name in NAMES)


def npz(dtype: str, count: int = 3) -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': ({count},)}}".encode()
    member = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + b"A" * 36
    return zipped([(f"{name}.npy", member) for name in NAMES])


def pickled(dtype: str, count: int = 3) -> bytes:
    kind = ports.Call("numpy:dtype", (dtype, False, True))
    state = (1, (count,), kind, False, "A" * 36)
    array = ports.Call("numpy._core.multiarray:_reconstruct", (), state)
    return ports.pickled(dict.fromkeys(NAMES, array))


def read_all(path: Path) -> None:
    variables = bnstat.load(path).stored
    if not variables:
        raise NotFoundError(str(path), "nothing of this type is in it")
    for variable in variables.values():
        variable.read()


WRITERS = {pytorch: "float32", safetensors: "F32", msgpack: "float32", npz: "<f4", pickled: "f4"}


@pytest.mark.parametrize("dtype", ["float32,O", "O", "f4,f4,f4", "(3,)f4", "V12"])
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_no_format_hands_a_name_to_numpy(tmp_path: Path, write: Any, dtype: str) -> None:
    path = tmp_path / "m"
    path.write_bytes(write(WRITERS[write], 9))
    (layer,) = bnstat.load(path)
    assert layer.moving_mean is not None
    assert layer.moving_mean.tolist() == [struct.unpack("<f", b"AAAA")[0]] * 9
    path.write_bytes(write(dtype))
    with pytest.raises(BnstatError) as caught:
        read_all(path)
    assert "\n" not in str(caught.value)
