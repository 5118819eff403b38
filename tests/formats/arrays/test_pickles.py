"""Pickles of arrays, written by Haiku and by NumPy."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.errors import UnknownFormatError
from bnstat.model import ROLES
from tests.builders.oracle import assert_layers, same_bits
from tests.formats.pytorch.reading import assert_within_budget, zipped

DATA = Path(__file__).parents[2] / "data" / "jax"
RANDOM = np.random.default_rng(2)


def test_parameters_and_state_of_haiku() -> None:
    truth = np.load(DATA / "truth.npz")
    model = bnstat.load(DATA / "haiku.pkl")
    assert model.source.format == "pickle"
    paths = ("bn/scale", "bn/offset", "bn/~/mean_ema/average", "bn/~/var_ema/average")
    names = dict(zip(ROLES, paths, strict=True))
    assert_layers(model, {"bn": {role: truth[f"haiku/{name}"] for role, name in names.items()}})
    for key, variable in model.stored.items():
        assert same_bits(variable.read(), truth[f"haiku/{key.partition('/')[2]}"])


def arrays() -> dict[str, Any]:
    return {name: RANDOM.random(4).astype(np.float32) for name in ROLES}


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("nesting", ["flat", "nested", "listed", "bytes"])
def test_every_protocol(tmp_path: Path, nesting: str, protocol: int) -> None:
    held = arrays()
    flat = {f"net/bn/{name}": array for name, array in held.items()}
    content = {
        "flat": flat,
        "nested": {"net": {"bn": held}},
        "listed": [flat, {"epoch": 3}],
        "bytes": {name.encode(): array for name, array in flat.items()},
    }
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(content[nesting], protocol))
    assert_layers(bnstat.load(path), {"net/bn": held})


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def test_nothing_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = arrays()
    content = pickle.dumps({"bn": held, "evil": _Evil()}, 2)
    (tmp_path / "m.pkl").write_bytes(content)
    for path in (tmp_path / "m.pkl", zipped(tmp_path / "m.pt", content)):
        assert_layers(bnstat.load(path), {"bn": held})
    assert "print" in bnstat.load(path).notes[0]
    assert capsys.readouterr().out == ""


def old_text(content: bytes) -> bytes:
    """Pickle a `str` of Python 2, which may be text or bytes."""
    if len(content) < 256:
        return b"U" + bytes([len(content)]) + content
    return b"T" + len(content).to_bytes(4, "little") + content


def of_python_2(array: Any, order: bytes = b"<") -> bytes:
    """Pickle an array like Python 2.7 and NumPy 1.16 by protocol 2."""
    kind = array.dtype.str[1:].encode()
    program = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
    program += old_text(b"b") + b"\x87R(K\x01K" + bytes([len(array)]) + b"\x85cnumpy\ndtype\n"
    program += old_text(kind) + b"K\x00K\x01\x87R(K\x03" + old_text(order)
    program += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    return program + old_text(array.tobytes()) + b"tb"


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_pickles_of_python_2(tmp_path: Path, dtype: str, size: int) -> None:
    held = {name: RANDOM.random(size).astype(dtype) for name in arrays()}
    program = b"\x80\x02}q\x01("
    for name, array in held.items():
        program += old_text(f"net/bn/{name}".encode()) + of_python_2(array, dtype[:1].encode())
    path = tmp_path / "m.pkl"
    path.write_bytes(program + b"u.")
    native = {role: array.astype(array.dtype.newbyteorder("=")) for role, array in held.items()}
    assert_layers(bnstat.load(path), {"net/bn": native})


def test_bytes_that_are_also_text(tmp_path: Path) -> None:
    """The bytes are valid UTF-8, partly valid and invalid; all keep their bits."""
    for raw in ("é€ü€0\0".encode(), b"\xc3\xa9\xff\x80", bytes(range(256))):
        array = np.frombuffer(raw, "<f4")
        path = tmp_path / "m.pkl"
        path.write_bytes(b"\x80\x02}" + old_text(b"\xff\xe9/x") + of_python_2(array) + b"s.")
        (variable,) = bnstat.load(path).stored.values()
        assert variable.read().tobytes() == raw
        assert variable.key.encode()


def test_one_array_under_many_names(tmp_path: Path) -> None:
    array = np.zeros(1 << 20, np.float32)
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps({str(at): array for at in range(200)}))
    assert len(bnstat.load(path).stored) == 200
    assert_within_budget(path)


def test_files_of_joblib_are_not_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """joblib writes an array as a wrapper, followed by the array's bytes or a second pickle."""
    module = ModuleType("joblib_numpy_pickle")
    wrapper = type("NumpyArrayWrapper", (), {"__module__": module.__name__})
    monkeypatch.setattr(module, wrapper.__name__, wrapper, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    array = wrapper()
    vars(array).update(shape=(2,))
    data = pickle.dumps({"classes_": array}).replace(b"joblib_", b"joblib.")
    # The instruction `b` sets the wrapper's attributes.
    before, after = data.rsplit(b"b", 1)
    names = np.array(["cat", "dog"], object)
    path = tmp_path / "label_encoder.pkl"
    path.write_bytes(before + b"b" + pickle.dumps(names, protocol=2) + after)
    with pytest.raises(UnknownFormatError):
        bnstat.load(path)
