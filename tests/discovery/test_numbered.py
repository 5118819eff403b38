"""Variables that belong together by the numbered names of tch-rs."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

import bnstat
from bnstat.discovery.names import with_scopes
from bnstat.model import ROLES
from tests.builders.oracle import same_bits
from tests.fuzz import ports

Shapes = dict[str, tuple[int, ...]]


class Store:
    """A store of tch-rs, which names variables as `Path::add` does."""

    def __init__(self) -> None:
        self.shapes: Shapes = {}

    def add(self, scope: str, leaf: str, *shape: int) -> str:
        name = scope + leaf
        if name in self.shapes:
            name = f"{name}__{len(self.shapes)}"
        self.shapes[name] = shape
        return name

    def convolution(self, scope: str, inputs: int, outputs: int, bias: bool = True) -> None:
        if bias:
            self.add(scope, "bias", outputs)
        self.add(scope, "weight", outputs, inputs, 3, 3)

    def norm(self, scope: str, size: int, order: str = "wbmv") -> dict[str, str]:
        leaves = {"w": "weight", "b": "bias", "m": "running_mean", "v": "running_var"}
        return {leaves[letter]: self.add(scope, leaves[letter], size) for letter in order}


def layers(shapes: Shapes, seed: int) -> set[frozenset[str]]:
    """Return the variables of each numbered layer, in a file of shuffled variables."""
    names = list(shapes)
    Random(seed).shuffle(names)
    renamed = with_scopes({name: name for name in names}, shapes.__getitem__)
    found: dict[str, set[str]] = {}
    for new, name in renamed.items():
        found.setdefault(new.rpartition(".")[0], set()).add(name)
    return {frozenset(held) for scope, held in found.items() if "__" in scope}


def numbered(expected: set[frozenset[str]]) -> set[frozenset[str]]:
    return {names for names in expected if any("__" in name for name in names)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("order", ["wbmv", "mvwb", "mv"])
@pytest.mark.parametrize("bias", [True, False])
def test_variables_created_together_are_a_layer(order: str, bias: bool, seed: int) -> None:
    store, expected = Store(), set()
    for scope in ("", "a.b.", "", "a.b.", "c."):
        for width in (4, 8, 8):
            store.convolution(scope, 3, width, bias)
            expected.add(frozenset(store.norm(scope, width, order).values()))
    assert numbered(layers(store.shapes, seed)) == numbered(expected)


@pytest.mark.parametrize("order", ["wbmv", "mvwb"])
def test_norms_one_after_the_other(order: str) -> None:
    store = Store()
    expected = {frozenset(store.norm("", 4, order).values()) for _ in range(5)}
    assert numbered(layers(store.shapes, 0)) == numbered(expected)


def test_other_names_stay() -> None:
    names = {name: name for name in ("bn.weight", "a__7", "weight__x", "running_var__", "x.y__3")}
    assert with_scopes(names, lambda key: (1,)) == names
    assert with_scopes({"running_var__9": "k"}, lambda key: (1,)) == {"running_var__9": "k"}


def test_a_kernel_is_never_a_gamma(tmp_path: Path) -> None:
    store = Store()
    store.convolution("", 3, 4)
    store.norm("", 4)
    store.convolution("", 4, 5)
    store.norm("", 5)
    random = np.random.default_rng(1)
    held = {name: random.random(shape).astype("<f4") for name, shape in store.shapes.items()}
    (tmp_path / "m").write_bytes(ports.safetensors_of(held))
    model = bnstat.load(tmp_path / "m")
    assert {layer.name: [layer.variables[role].key for role in ROLES] for layer in model} == {
        "__4": ["weight__2", "bias__3", "running_mean", "running_var"],
        "__10": ["weight__8", "bias__9", "running_mean__10", "running_var__11"],
    }
    for layer in model:
        for role, variable in layer.variables.items():
            assert same_bits(layer.array(role), held[variable.key])


def test_a_bias_of_another_layer_is_not_a_beta(tmp_path: Path) -> None:
    shapes = {"weight": (4, 3, 3, 3), "bias": (4,), "running_mean": (4,), "running_var": (4,)}
    held = {f"a.{name}": np.ones(shape, "<f4") for name, shape in shapes.items()}
    (tmp_path / "m").write_bytes(ports.safetensors_of(held))
    (layer,) = bnstat.load(tmp_path / "m")
    assert set(layer.variables) == {"moving_mean", "moving_variance"}
