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


def tree(arrays: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for path, array in arrays.items():
        inner = root
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = array
    return root


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
    model = bnstat.load(write(tmp_path / "m", {**others, **tree(held)}))
    assert_layers(model, {"BatchNorm_0": {role: held[path] for path, role in FLAX.items()}})
    for path, role in FLAX.items():
        assert model[0].variables[role].key == "/".join(path)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": np.ones(3), "b": {"c": [[]] * 70}}, None),
        ({"a": np.ones(3), 5: 1}, "a key is not a string"),
    ],
)
def test_other_documents(tmp_path: Path, value: Any, reason: str | None) -> None:
    path = write(tmp_path / "m", value)
    if reason is None:
        assert list(bnstat.load(path).stored) == ["a"]
        return
    with pytest.raises(DamagedError, match=reason):
        bnstat.load(path)


def test_deep_nesting(tmp_path: Path) -> None:
    path = write(tmp_path / "m", {"a": np.ones(3), "b": 0})
    path.write_bytes(path.read_bytes()[:-1] + b"\x91" * 100_000)
    with pytest.raises(DamagedError, match="too deep"):
        bnstat.load(path)


@pytest.mark.slow
def test_values_have_a_budget(tmp_path: Path) -> None:
    path = write(tmp_path / "m", {"a": np.ones(3), "b": 0})
    many = 3 << 20
    path.write_bytes(path.read_bytes()[:-1] + b"\xdd" + many.to_bytes(4, "big") + bytes(many))
    with pytest.raises(UnsupportedError, match="more values"):
        bnstat.load(path)
