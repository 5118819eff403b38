"""NPZ archives, compared with what NumPy reads."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, DamagedError, UnsupportedError
from bnstat.model import ROLES, Array
from tests.builders.oracle import assert_layers, same_bits
from tests.mending.exported import exported
from tests.output import models


def arrays(seed: int = 0, channels: int = 5) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {role: random.random(channels).astype(np.float32) for role in ROLES}


both_ways = pytest.mark.parametrize("save", [np.savez, np.savez_compressed])


@both_ways
def test_layers_by_name_in_stored_order(tmp_path: Path, save: Any) -> None:
    held = {f"{scope}/{role}": array for seed, scope in enumerate(("stem/bn", "b/bn10", "b/bn9"))
            for role, array in arrays(seed).items()}  # fmt: skip
    held |= {"dense/kernel": np.ones((3, 3)), "norm/gamma": np.ones(3), "norm/beta": np.ones(3)}
    save(tmp_path / "m.npz", **held)
    model = bnstat.load(tmp_path / "m.npz")
    assert model.source.format == "npz"
    names = ["stem/bn", "b/bn10", "b/bn9"]
    assert model.keys() == names
    assert_layers(model, {name: arrays(seed) for seed, name in enumerate(names)})
    assert [layer.variables["gamma"].key for layer in model] == [f"{name}/gamma" for name in names]


SHUFFLED = {
    "by a set of layers": [("bn9", "bn10", "bn2"), ("beta", "gamma", "avg_var", "avg_mean")],
    "by name": [("bn10", "bn2", "bn9"), sorted(ROLES)],
}


@pytest.mark.parametrize("how", [*SHUFFLED, "by a dict of Python 2"])
def test_arbitrary_orders_are_not_network_order(tmp_path: Path, how: str) -> None:
    scopes, labels = SHUFFLED.get(how, (("bn9", "bn2", "bn10"), ROLES))
    names = [f"{scope}/{label}" for scope in scopes for label in labels]
    if how == "by a dict of Python 2":
        names = [*names[1::2], *reversed(names[::2])]
    np.savez(tmp_path / "m.npz", **dict.fromkeys(names, np.ones(3, np.float32)))
    assert bnstat.load(tmp_path / "m.npz").keys() == ["bn2", "bn9", "bn10"]


@pytest.mark.parametrize("key", ["{}/{}:0", "{}_{}", "{}/{}"])
def test_ways_to_write_a_name(tmp_path: Path, key: str) -> None:
    np.savez(tmp_path / "m.npz", **{key.format("bn1", r): a for r, a in arrays().items()})
    assert_layers(bnstat.load(tmp_path / "m.npz"), {"bn1": arrays()})


NAMES = ["bn", "a/b/bn", "x//y", "./bn", "ü/bn", "a b", "deep/moving_mean", "bn:0", "0", "a/0",
         "C:\\bn", "bn/ExponentialMovingAverage"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_exports_are_read_back(tmp_path: Path, name: str) -> None:
    layers = [models.usual(name, 7), models.usual("other", 3, seed=1)]
    layers.append(models.layer("bare", {role: layers[0].array(role) for role in ROLES[2:]}))
    model = bnstat.load(exported(models.model(*layers), "npz", tmp_path))
    assert model.keys() == [layer.name for layer in layers]
    expected = {each.name: {r: each.array(r) for r in each.variables} for each in layers}
    assert_layers(model, expected)


@pytest.mark.parametrize(
    "array",
    [
        *(np.arange(6, dtype=">f4"), np.arange(4, dtype=np.float16), np.array([True, False])),
        *(np.array(3.5), np.zeros((0, 2)), np.array([1 + 2j]), np.full((5000, 100), 7.0)),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ],
)
@both_ways
def test_arrays_of_any_numbers(tmp_path: Path, array: Array, save: Any) -> None:
    save(tmp_path / "m.npz", x=array)
    read = bnstat.load(tmp_path / "m.npz").stored["x"].read()
    assert (read.dtype, read.shape) == (array.dtype.newbyteorder("="), array.shape)
    assert read.tolist() == array.tolist()


def test_objects_and_texts_are_never_loaded(tmp_path: Path) -> None:
    objects = np.empty(2, object)
    np.savez(tmp_path / "m.npz", objects=objects, text=np.array(["a"]), fields=np.zeros(2, "i4,f4"))
    stored = bnstat.load(tmp_path / "m.npz").stored
    assert list(stored) == ["objects", "text", "fields"]
    for variable in stored.values():
        with pytest.raises(UnsupportedError, match="not numbers"):
            variable.read()


def npy(header: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data


def load_member(tmp_path: Path, content: bytes, method: int = zipfile.ZIP_STORED) -> Array:
    with zipfile.ZipFile(tmp_path / "m.npz", "w", method) as archive:
        archive.writestr("x.npy", content)
    return bnstat.load(tmp_path / "m.npz").stored["x"].read()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\x93NUMPY", b"nothing of the kind"),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999,)}"),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", b"1234"),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", b"1234"),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", b"12345678"),
        npy(b"{'descr': 'zzz', 'fortran_order': False, 'shape': (1,)}", b"1234"),
        *map(npy, (b"__import__('os').system('true')", b"{" * 5000, b"[" * 50_000)),
        npy(b"{}", version=b"\x09\x00"),
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_hostile_members(tmp_path: Path, content: bytes, method: int) -> None:
    with pytest.raises(BnstatError) as caught:
        load_member(tmp_path, content, method)
    assert "\n" not in str(caught.value)


def test_a_bomb(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (100000000,)}"
    with pytest.raises(DamagedError, match="to 100000073 bytes"):
        load_member(tmp_path, npy(header, bytes(100_000_000)), zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(tmp_path: Path, method: int) -> None:
    with pytest.raises(UnsupportedError, match="deflate"):
        load_member(tmp_path, b"never read", method)


@both_ways
def test_every_bit_is_checked(tmp_path: Path, save: Any) -> None:
    expected = arrays(channels=200)
    save(tmp_path / "m.npz", **{f"bn/{role}": array for role, array in expected.items()})
    whole = (tmp_path / "m.npz").read_bytes()
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        changed = bytearray(whole)
        changed[random.integers(len(whole))] ^= 1 << int(random.integers(8))
        (tmp_path / "m.npz").write_bytes(changed)
        try:
            (layer,) = bnstat.load(tmp_path / "m.npz")
            assert all(same_bits(layer.array(role), expected[role]) for role in layer.variables)
        except (BnstatError, ValueError):
            refused += 1
    assert refused > 200


def test_members_do_not_overlap(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=np.zeros(1000, "f4"), b=np.zeros(1000, "f4"))
    with zipfile.ZipFile(tmp_path / "m.npz", "a") as archive:
        first = archive.infolist()[0]
        archive.filelist += [first] * 3
        archive._didModify = True
    with pytest.raises(DamagedError, match="overlap"):
        bnstat.load(tmp_path / "m.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "m.npz", "a") as archive:
        archive.writestr("a.npy", archive.read("a.npy"))
    with pytest.raises(DamagedError, match=r"contains a\.npy twice"):
        bnstat.load(tmp_path / "m.npz")


def test_headers_of_python_2(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 1L), }"
    array = np.arange(3, dtype="<f4")
    assert load_member(tmp_path, npy(header, array.tobytes())).tolist() == [[0], [1], [2]]
