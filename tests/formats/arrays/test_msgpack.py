"""Files of `flax.serialization`, written by Flax and by the msgpack package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import bnstat
from bnstat.errors import DamagedError, UnsupportedError
from tests.builders.oracle import assert_layers, same_bits
from tests.builders.orbax import FLAX

DATA = Path(__file__).parents[2] / "data" / "jax"
RANDOM = np.random.default_rng(2)


def test_a_file_of_flax() -> None:
    truth = np.load(DATA / "truth.npz")
    model = bnstat.load(DATA / "linen.msgpack")
    assert (model.source.format, model.source.writer) == ("msgpack", "Flax")
    assert [layer.name for layer in model] == ["BatchNorm_0", "bn"]
    assert {f"linen/{key}" for key in model.stored} == {
        key for key in truth if key.startswith("linen/")
    }
    for key, variable in model.stored.items():
        assert same_bits(variable.read(), truth[f"linen/{key}"])
        (place,) = variable.extents()
        assert place.read() == truth[f"linen/{key}"].tobytes()


def packed(value: Any) -> bytes:
    """Pack a value like `flax.serialization.msgpack_serialize`."""
    msgpack = pytest.importorskip("msgpack", reason="msgpack writes these files")

    def extension(array: Any) -> Any:
        fields = (array.shape, array.dtype.name, array.tobytes("C"))
        kind = 1 if isinstance(array, np.ndarray) else 3
        return msgpack.ExtType(kind, msgpack.packb(fields, use_bin_type=True))

    return bytes(msgpack.packb(value, default=extension, strict_types=True))


def write(path: Path, value: Any) -> Path:
    path.write_bytes(packed(value))
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("channels", [2, 80, 20_000])
def test_sizes_and_types(tmp_path: Path, channels: int, dtype: str) -> None:
    kind = getattr(ml_dtypes, dtype, dtype)
    held = {path: RANDOM.random(channels).astype(kind) for path in FLAX}
    others = {
        "step": 70_000, "rate": 0.25, "on": True, "none": None, "count": np.int32(3), "list": [],
        "a" * 40: {"name": "x" * 300, "raw": b"y" * 70_000, "low": -1_000_000},
        "opt_state": {"0": {"mu": {"bn": {"scale": np.ones(channels, kind)}}}},
    }  # fmt: skip
    tree: dict[str, Any] = {}
    for (branch, layer, name), array in held.items():
        tree.setdefault(branch, {}).setdefault(layer, {})[name] = array
    model = bnstat.load(write(tmp_path / "m", {**others, **tree}))
    assert_layers(model, {"BatchNorm_0": {role: held[path] for path, role in FLAX.items()}})
    for path, role in FLAX.items():
        assert model[0].variables[role].key == "/".join(path)


def test_many_empty_lists(tmp_path: Path) -> None:
    path = write(tmp_path / "m", {"a": np.ones(3), "b": {"c": [[]] * 70}})
    assert list(bnstat.load(path).stored) == ["a"]


def an_array(start: bytes, data: bytes = b"\xc4\x04abcd") -> bytes:
    """Return an extension of type 1: a list that starts with these bytes, a dtype, and data."""
    content = start + b"\xa7float32" + data
    return b"\xc7" + bytes([len(content), 1]) + content


MANY = (3 << 20).to_bytes(4, "big") + bytes(3 << 20)


@pytest.mark.parametrize(
    ("value", "error", "reason"),
    [
        (b"\x81\x05\0", DamagedError, "a key is not a string"),
        pytest.param(b"\x91" * 100_000, DamagedError, "too deep", id="deep"),
        (b"\xc1", DamagedError, "0xc1 is not a code"),
        (b"\xdb\0\0\1\0", DamagedError, "ends early"),
        (b"\xcb\0", DamagedError, "ends early"),
        (an_array(b"\x93\x91\xa0"), DamagedError, "an array is not"),
        (an_array(b"\x94\x90\x01"), DamagedError, "an array is not"),
        (an_array(b"\x93\x91\x01", b"\x01"), DamagedError, "an array is not"),
        pytest.param(b"\xdd" + MANY, UnsupportedError, "above the limit", id="many",
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_invalid_values(tmp_path: Path, value: bytes, error: Any, reason: str) -> None:
    path = write(tmp_path / "m", {"a": np.ones(3), "b": 0})
    path.write_bytes(path.read_bytes()[:-1] + value)
    with pytest.raises(error, match=reason):
        bnstat.load(path)
