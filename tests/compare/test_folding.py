from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bnstat.compare import diff, weights
from bnstat.model import BatchNorm, Model, Variable
from tests.compare.ports import (
    arrays_of,
    changed,
    holding,
    random_kernel,
    rewritten,
    scale_and_shift,
    stored,
    trained,
)
from tests.output import models
from tests.output.models import layer, model

BN = trained("bn", 6)
SCALE, SHIFT = scale_and_shift(BN)

KERNELS = {
    "HWIO": ((3, 5, 4, 6), 3, (0, 1, 2, 3)),
    "HWIO to OIHW": ((3, 5, 4, 6), 3, (3, 2, 0, 1)),
    "HWIO to OHWI": ((3, 5, 4, 6), 3, (3, 0, 1, 2)),
    "square, to OIHW": ((3, 3, 3, 6), 3, (3, 2, 0, 1)),
    "OIHW to HWIO": ((6, 4, 3, 5), 0, (2, 3, 1, 0)),
    "transposed HWOI to IOHW": ((3, 5, 6, 4), 2, (3, 2, 0, 1)),
    "dense IO to OI": ((4, 6), 1, (1, 0)),
    "as many channels in as out": ((3, 3, 6, 6), 3, (3, 2, 0, 1)),
    "in one dimension": ((3, 4, 6), 2, (2, 1, 0)),
    "depthwise": ((3, 5, 6, 1), 2, (2, 3, 0, 1)),
}


def along(array: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    return array.reshape([-1 if each == axis else 1 for each in range(ndim)])


@pytest.mark.parametrize("layout", KERNELS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_folded_into_weights_in_any_layout(layout: str, has_bias: bool) -> None:
    shape, axis, order = KERNELS[layout]
    kernel, bias = random_kernel(*shape), random_kernel(6, seed=3)
    product = (kernel * along(SCALE, len(shape), axis)).transpose(order)
    shift = SHIFT + bias * SCALE if has_bias else SHIFT
    own = {"conv/kernel": kernel, "other": random_kernel(*shape, seed=9)}
    if has_bias:
        own["conv/bias"] = bias
    old = holding(own, BN)
    new = holding({"x": random_kernel(*product.shape, seed=8), "w": product, "b": shift})
    for difference, side in ((diff(old, new), "old"), (diff(new, old), "new")):
        (folded,) = difference.folded
        assert (folded.layer, folded.side) == ("bn", side)
        assert (folded.weights, folded.into, folded.bias) == ("conv/kernel", "w", "b")
        assert difference.removed == difference.added == ()
        assert difference.equivalent
        assert not difference.equal


def test_a_depthwise_kernel_of_several_for_each_channel() -> None:
    kernel = random_kernel(3, 3, 2, 3)
    product = (kernel.reshape(3, 3, 6) * SCALE).transpose(2, 0, 1)[:, np.newaxis]
    difference = diff(holding({"k": kernel}, BN), holding({"w": product, "b": SHIFT}))
    assert [each.into for each in difference.folded] == ["w"]


def test_folded_into_a_multiplication_and_an_addition() -> None:
    kernel = random_kernel(3, 3, 2, 6)
    new = holding({"kernel": kernel, "mul": SCALE, "add": SHIFT})
    (folded,) = diff(holding({"kernel": kernel}, BN), new).folded
    assert (folded.weights, folded.into, folded.bias) == (None, "mul", "add")


@pytest.mark.parametrize("part", ["w", "b"])
def test_one_number_that_is_off_is_no_proof(part: str) -> None:
    kernel = random_kernel(3, 3, 2, 6)
    folded = {"w": kernel * SCALE, "b": SHIFT.copy()}
    folded[part].flat[-1] += np.float32(1e-3)
    difference = diff(holding({"k": kernel}, BN), holding(folded))
    assert difference.folded == ()
    assert difference.removed == ("bn",)
    assert not difference.equivalent


def test_a_dropped_layer_is_not_folded() -> None:
    kernel, bias = random_kernel(3, 3, 2, 6), random_kernel(6, seed=3)
    weights = {"k": kernel, "b": bias}
    difference = diff(holding(weights, BN), holding(weights))
    assert (difference.folded, difference.removed) == ((), ("bn",))


def test_another_epsilon_is_not_folded() -> None:
    kernel = random_kernel(3, 3, 2, 6)
    scale, shift = scale_and_shift(changed(BN, {}, epsilon=1e-5))
    new = holding({"w": kernel * scale, "b": shift})
    assert diff(holding({"k": kernel}, BN), new).folded == ()


def test_without_an_epsilon_nothing_is_proven() -> None:
    kernel = random_kernel(3, 3, 2, 6)
    new = holding({"w": kernel * SCALE, "b": SHIFT})
    unknown = trained("bn", 6, epsilon=None)
    assert diff(holding({"k": kernel}, unknown), new).removed == ("bn",)
    assert len(diff(holding({"k": kernel}, unknown), new, epsilon=1e-3).folded) == 1


def test_some_folded_some_kept() -> None:
    kept = trained("kept", 6, seed=4)
    kernel = random_kernel(3, 3, 2, 6)
    new = holding({"w": kernel * SCALE, "b": SHIFT}, rewritten(kept, "node"))
    difference = diff(holding({"k": kernel}, BN, kept), new)
    assert [each.layer for each in difference.folded] == ["bn"]
    assert [each.verdict for each in difference.layers] == ["same-effect"]
    assert difference.equivalent


def test_folded_into_the_dense_layer_after_it() -> None:
    kernel, bias = random_kernel(6, 4), random_kernel(4, seed=3)
    next_bias = SHIFT @ kernel + bias
    old = holding({"dense/kernel": kernel, "dense/bias": bias}, BN)
    new = holding({"w": (kernel * SCALE[:, np.newaxis]).T, "b": next_bias})
    (folded,) = diff(old, new).folded
    assert (folded.weights, folded.into, folded.bias) == ("dense/kernel", "w", "b")
    next_bias[-1] += np.float32(1e-3)
    off = holding({"w": (kernel * SCALE[:, np.newaxis]).T, "b": next_bias})
    assert diff(old, off).folded == ()


def test_what_a_shift_adds_at_padded_edges_is_not_taken_for_proven() -> None:
    kernel = random_kernel(3, 3, 6, 4)
    scaled = kernel * along(SCALE, 4, 2)
    added = np.einsum("hwio,i->o", kernel, SHIFT)
    assert diff(holding({"k": kernel}, BN), holding({"w": scaled, "b": added})).folded == ()


def test_inputs_of_a_dense_layer_flattened_in_the_other_order() -> None:
    kernel = random_kernel(4 * 3 * 5, 6)
    turned = (kernel * SCALE).reshape(4 * 3, 5, 6).transpose(2, 1, 0).reshape(6, 60)
    old = holding({"k": kernel}, BN)
    (folded,) = diff(old, holding({"w": turned, "b": SHIFT})).folded
    assert folded.into == "w"
    turned[3, [7, 8]] = turned[3, [8, 7]]
    assert diff(old, holding({"w": turned, "b": SHIFT})).folded == ()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_rounded_weights(dtype: type) -> None:
    kernel = random_kernel(3, 3, 2, 6)
    held = {"w": (kernel * SCALE).astype(dtype), "b": SHIFT.astype(dtype)}
    (folded,) = diff(holding({"k": kernel}, BN), holding(held)).folded
    assert folded.rounding == np.dtype(dtype).name
    held["w"][0, 0, 0, 0] *= 1 + 3 * ml_dtypes.finfo(dtype).eps
    assert diff(holding({"k": kernel}, BN), holding(held)).folded == ()


def quantized(key: str, array: np.ndarray, step: np.ndarray) -> Variable:
    stored = (np.rint(array / step) * step).astype(np.float32)
    return Variable(key, key, "float32", array.shape, lambda: stored, stepper=lambda: step)


def test_quantized_weights() -> None:
    kernel = random_kernel(3, 3, 2, 6)
    product = kernel * SCALE
    step = np.abs(product).max(axis=(0, 1, 2)) / 127
    old = holding({"k": kernel}, BN)
    held = {"w": quantized("w", product, step), **stored({"b": SHIFT})}
    (folded,) = diff(old, model(stored=held)).folded
    assert folded.rounding == "quantized"
    product[0, 0, 0, 0] += np.float32(1.01 * step[0])
    assert diff(old, model(stored={**held, "w": quantized("w", product, step)})).folded == ()
    coarse = quantized("w", kernel * SCALE, step * 60)
    assert diff(old, model(stored={**held, "w": coarse})).folded == ()


def test_twins_are_a_tie() -> None:
    kernel = random_kernel(3, 3, 2, 6)
    twin = layer("twin", arrays_of(BN), epsilon=BN.epsilon)
    own = {"k1": kernel, "k2": kernel, "k3": random_kernel(3, 3, 2, 6, seed=5)}
    product = kernel * SCALE
    two = holding({"w1": product, "w2": product, "b": SHIFT})
    folded = diff(holding(own, BN, twin), two).folded
    assert [(each.layer, each.into, each.tie) for each in folded] == [
        ("bn", "w1", True),
        ("twin", "w2", True),
    ]
    one = diff(holding(own, BN, twin), holding({"w1": product, "b": SHIFT})).folded
    assert [(each.into, each.tie) for each in one] == [("w1", False), ("w1", True)]


KERNEL = random_kernel(3, 5, 4, 6)
LAYOUT = (3, 2, 0, 1)
PRODUCT = (KERNEL * SCALE).transpose(LAYOUT)


def folded_into(new: Mapping[str, np.ndarray], of: BatchNorm = BN) -> list[tuple[Any, ...]]:
    """Weights, what they went into, and the bias, of each folded layer."""
    difference = diff(holding({"k": KERNEL}, of), holding(new))
    return [(each.weights, each.into, each.bias) for each in difference.folded]


def test_weights_that_begin_alike_are_passed_over() -> None:
    other, longer = PRODUCT.copy(), np.concatenate([PRODUCT, 0 * PRODUCT], axis=1)
    other[-1] += 1
    new = {"other": other, "longer": longer, "w": PRODUCT, "b": SHIFT}
    assert folded_into(new) == [("k", "w", "b")]


def test_the_same_numbers_in_no_order_of_the_axes_are_no_proof() -> None:
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

    def test_a_scale_without_a_shift_is_none(self) -> None:
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
        """The keys of what is read, in order; `fetch` is told of the same."""
        told: list[str] = []
        monkeypatch.setattr(weights, "fetch", lambda wanted: told.extend(v.key for v in wanted))
        return told

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

    @pytest.mark.parametrize(("most", "again"), [(1 << 24, 0), (KERNEL.size, 1), (0, 2)])
    def test_weights_are_kept_while_there_is_room(
        self, reads: list[str], monkeypatch: pytest.MonkeyPatch, most: int, again: int
    ) -> None:
        monkeypatch.setattr(weights, "_MOST_KEPT", most)
        other = trained("other", 6, seed=3)
        scale, shift = scale_and_shift(other)
        kernels = {"k": KERNEL, "l": random_kernel(3, 5, 4, 6, seed=9)}
        products = {"w": kernels["k"] * SCALE, "x": kernels["l"] * scale, "b": SHIFT, "c": shift}
        old, new = self.watched(kernels, reads, BN, other), self.watched(products, reads)
        assert [each.into for each in diff(old, new).folded] == ["w", "x"]
        assert reads.count("read k") + reads.count("read l") == 2 + again
