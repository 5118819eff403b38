"""Pickles of arrays: one that Haiku's parameters are saved as, and others by NumPy."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, DamagedError
from tests.formats.keras.files import same_bits

DATA = Path(__file__).parents[2] / "data" / "jax"
RANDOM = np.random.default_rng(2)


def test_parameters_and_state_of_haiku() -> None:
    truth = np.load(DATA / "truth.npz")
    model = bnstat.load(DATA / "haiku.pkl")
    assert model.source.format == "pickle"
    (layer,) = model
    assert layer.name == "bn"
    assert same_bits(layer.gamma, truth["haiku/bn/scale"])
    assert same_bits(layer.beta, truth["haiku/bn/offset"])
    assert same_bits(layer.moving_mean, truth["haiku/bn/~/mean_ema/average"])
    assert same_bits(layer.moving_variance, truth["haiku/bn/~/var_ema/average"])
    for key, variable in model.stored.items():
        assert same_bits(variable.read(), truth[f"haiku/{key.partition('/')[2]}"])


def arrays() -> dict[str, Any]:
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    return {name: RANDOM.random(4).astype(np.float32) for name in names}


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("nesting", ["flat", "nested", "listed"])
def test_every_protocol(tmp_path: Path, nesting: str, protocol: int) -> None:
    held = arrays()
    flat = {f"net/bn/{name}": array for name, array in held.items()}
    content = {"flat": flat, "nested": {"net": {"bn": held}}, "listed": [flat, {"epoch": 3}]}
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(content[nesting], protocol))
    (layer,) = bnstat.load(path)
    assert layer.name == "net/bn"
    for role, array in held.items():
        assert same_bits(layer.array(role), array)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def test_nothing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps({"bn": arrays(), "evil": _Evil()}))
    (layer,) = bnstat.load(path)
    layer.read()
    assert capsys.readouterr().out == ""


def test_beside_a_model_it_is_data(tmp_path: Path) -> None:
    (tmp_path / "data.pkl").write_bytes(pickle.dumps({"bn": arrays()}))
    assert bnstat.load(tmp_path).source.format == "pickle"
    np.savez(tmp_path / "other.npz", **{f"a/{name}": array for name, array in arrays().items()})
    (tmp_path / "linen.msgpack").write_bytes((DATA / "linen.msgpack").read_bytes())
    assert bnstat.load(tmp_path).source.format == "msgpack"


def test_damage(tmp_path: Path) -> None:
    content, path = (DATA / "haiku.pkl").read_bytes(), tmp_path / "m.pkl"
    path.write_bytes(content[:-20])
    with pytest.raises(DamagedError):
        bnstat.load(path)
    for at in range(2, len(content), 5):
        for value in (0x00, 0x52, 0xFF):
            data = bytearray(content)
            data[at] = value
            path.write_bytes(data)
            try:
                for variable in bnstat.load(path).stored.values():
                    variable.read()
            except BnstatError:
                pass
