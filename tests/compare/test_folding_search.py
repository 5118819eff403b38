"""The search for weights that a layer was folded into, and what it reads and keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from bnstat.compare import diff, folding
from bnstat.compare.folding import reorderings
from bnstat.model import BatchNorm, Model, Variable
from tests.compare.ports import changed, holding, random_kernel, scale_and_shift, trained
from tests.output import models

BN = trained("bn", 6)
SCALE, SHIFT = scale_and_shift(BN)
KERNEL = random_kernel(3, 5, 4, 6)
LAYOUT = (3, 2, 0, 1)
PRODUCT = (KERNEL * SCALE).transpose(LAYOUT)


def folded_into(new: Mapping[str, np.ndarray], of: BatchNorm = BN) -> list[tuple[Any, ...]]:
    """Return for each folded layer its weights, the weights in the other model, and the bias."""
    difference = diff(holding({"k": KERNEL}, of), holding(new))
    return [(each.weights, each.into, each.bias) for each in difference.folded]


def test_weights_that_begin_alike_are_passed_over() -> None:
    other, longer = PRODUCT.copy(), np.concatenate([PRODUCT, 0 * PRODUCT], axis=1)
    other[-1] += 1
    new = {"other": other, "longer": longer, "w": PRODUCT, "b": SHIFT}
    assert folded_into(new) == [("k", "w", "b")]


def test_shuffled_numbers_are_not_a_proof() -> None:
    shuffled = PRODUCT.reshape(6, -1)[:, np.random.default_rng(0).permutation(60)]
    assert folded_into({"w": shuffled.reshape(PRODUCT.shape), "b": SHIFT}) == []


def at_the_origin(**arrays: np.ndarray) -> BatchNorm:
    zeros = np.zeros(6, np.float32)
    return changed(BN, {"beta": zeros, "moving_mean": zeros, **arrays})


def test_a_shift_of_0_needs_no_bias() -> None:
    assert folded_into({"w": PRODUCT}, at_the_origin()) == [("k", "w", None)]
    assert folded_into({"w": PRODUCT}) == []
    # Of large terms that cancel, rounding leaves more than of small ones.
    mean = np.linspace(1000, 2000, 6, dtype=np.float32)
    near = changed(BN, {"moving_mean": mean, "beta": (mean * SCALE).astype(np.float32)})
    assert folded_into({"w": PRODUCT}, near) == [("k", "w", None)]


def test_a_large_shift_is_rounded_as_such() -> None:
    large = changed(BN, {"beta": np.linspace(1e4, 2e4, 6, dtype=np.float32)})
    shift = scale_and_shift(large)[1] * np.float32(1 + 2e-7)
    assert folded_into({"w": PRODUCT, "b": shift}, large) == [("k", "w", "b")]


class TestMultiplication:
    def test_the_scale_is_found_among_others(self) -> None:
        decoy = random_kernel(6, seed=5)
        new = {"add": SHIFT, "decoy": decoy, "mul": SCALE, "k": KERNEL}
        assert folded_into(new) == [(None, "mul", "add")]
        assert folded_into({"add": SHIFT, "decoy": decoy, "k": KERNEL}) == []

    def test_a_scale_without_a_shift_is_not_a_proof(self) -> None:
        assert folded_into({"mul": SCALE, "k": KERNEL}, at_the_origin()) == []

    def test_one_number_for_all_channels_may_be_anything(self) -> None:
        ones = np.ones(6, np.float32)
        layer = changed(BN, {"gamma": ones, "moving_variance": ones})
        scale, shift = scale_and_shift(layer)
        assert folded_into({"mul": scale, "add": shift, "k": KERNEL}, layer) == []

    def test_one_vector_is_not_scale_and_shift_both(self) -> None:
        layer = changed(BN, {"moving_mean": np.zeros(6, np.float32), "beta": SCALE})
        assert folded_into({"both": SCALE, "k": KERNEL}, layer) == []

    def test_a_bias_that_is_scaled_goes_with_weights_alone(self) -> None:
        bias = random_kernel(6, seed=3)
        old = holding({"k": KERNEL, "b": bias}, BN)
        new = holding({"k": KERNEL, "mul": SCALE, "add": SHIFT + bias * SCALE})
        assert diff(old, new).folded == ()


class TestReading:
    @pytest.fixture
    def reads(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The keys that are fetched and read, in order."""
        keys: list[str] = []
        monkeypatch.setattr(folding, "fetch", lambda wanted: keys.extend(v.key for v in wanted))
        return keys

    def watched(self, arrays: Mapping[str, np.ndarray], reads: list[str], *of: BatchNorm) -> Model:
        def variable(key: str, array: np.ndarray) -> Variable:
            def read() -> np.ndarray:
                reads.append(f"read {key}")
                return array

            return Variable(key, key, array.dtype.name, array.shape, read)

        stored = {key: variable(key, array) for key, array in arrays.items()}
        return models.model(*of, stored=stored)

    def test_what_cannot_be_it_is_not_read(self, reads: list[str]) -> None:
        beside = {
            "integers": np.ones(6, np.int32),
            "one": np.float32(1),
            "seven": np.ones(7, np.float32),
            "small": np.ones((4, 5), np.float32),
            "deep": np.ones((2, 2, 2, 2, 2, 6), np.float32),
            "vast": np.broadcast_to(np.float32(1), (1 << 26, 6)),
        }
        old = self.watched({"k": KERNEL, **beside}, reads, BN)
        new = self.watched({"w": PRODUCT, "b": SHIFT, **beside}, reads)
        assert len(diff(old, new).folded) == 1
        assert set(reads) == {"b", "k", "read b", "read k", "read w", "w"}

    def test_deep_weights_may_be_it(self, reads: list[str]) -> None:
        kernel = random_kernel(2, 3, 2, 2, 6)
        old, new = self.watched({"k": kernel}, reads, BN), {"w": kernel * SCALE, "b": SHIFT}
        assert len(diff(old, self.watched(new, reads)).folded) == 1

    def test_nothing_is_read_where_one_model_has_nothing(self, reads: list[str]) -> None:
        bare = models.model()
        assert diff(self.watched({"k": KERNEL}, reads, BN), bare).folded == ()
        assert diff(models.model(BN), self.watched({"w": PRODUCT}, reads)).folded == ()
        assert reads == []

    @pytest.mark.parametrize(
        ("most", "kept"), [(1 << 24, ["k", "l"]), (KERNEL.size, ["k"]), (KERNEL.size - 1, [])]
    )
    def test_weights_are_kept_while_there_is_room(
        self, reads: list[str], monkeypatch: pytest.MonkeyPatch, most: int, kept: list[str]
    ) -> None:
        monkeypatch.setattr(folding, "_MOST_KEPT", most)
        other = trained("other", 6, seed=3)
        scale, shift = scale_and_shift(other)
        kernels = {"k": KERNEL, "l": random_kernel(3, 5, 4, 6, seed=9)}
        products = {"w": kernels["k"] * SCALE, "x": kernels["l"] * scale, "b": SHIFT, "c": shift}
        old, new = self.watched(kernels, reads, BN, other), self.watched(products, reads)
        assert [each.into for each in diff(old, new).folded] == ["w", "x"]
        assert [key for key in kernels if reads.count(f"read {key}") == 1] == kept


Shape = tuple[int, ...]


def turned(shape: Shape, wanted: Shape) -> list[list[float]]:
    """Return all reorderings of an array of consecutive numbers."""
    array = np.arange(float(np.prod(shape))).reshape(shape)
    found = [reorder(array) for reorder in reorderings(shape, wanted)]
    assert {each.shape for each in found} <= {wanted}
    return [each.ravel().tolist() for each in found]


@pytest.mark.parametrize(
    ("shape", "wanted", "orders"),
    [
        ((2, 3, 4), (2, 4, 3), [(0, 2, 1)]),
        ((2, 3, 4), (2, 3, 4), [(0, 1, 2)]),
        ((2, 3, 3), (2, 3, 3), [(0, 1, 2), (0, 2, 1)]),
        ((2, 3, 4, 5), (2, 5, 3, 4), [(0, 3, 1, 2)]),
        ((2, 3, 4), (3, 2, 4), []),
        ((2, 3, 4), (2, 12), []),
        ((2, 5), (2, 7), []),
        ((2, 7), (2, 7), [(0, 1)]),
    ],
)
def test_orders_of_the_axes(shape: Shape, wanted: Shape, orders: list[Shape]) -> None:
    array = np.arange(float(np.prod(shape))).reshape(shape)
    assert turned(shape, wanted) == [array.transpose(order).ravel().tolist() for order in orders]


@pytest.mark.parametrize(("size", "splits"), [(6, (2, 3)), (4, (2,)), (12, (2, 6, 3, 4))])
def test_an_axis_that_a_flatten_made_of_two(size: int, splits: Shape) -> None:
    array = np.arange(3.0 * size).reshape(3, size)
    expected = [array, *(array.reshape(3, each, -1).swapaxes(1, 2) for each in splits)]
    found = turned((3, size), (3, size))
    assert {tuple(each) for each in found} == {tuple(each.ravel()) for each in expected}
