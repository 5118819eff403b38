from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from bnstat.compare import diff
from bnstat.model import Variable
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


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1)])
def test_of_one_channel_into_a_multiplication_and_an_addition(shape: tuple[int, ...]) -> None:
    """For example the channel of a spectrogram, without weights before it."""
    one = trained("bn", 1)
    scale, shift = (each.reshape(shape) for each in scale_and_shift(one))
    old = holding({"k": random_kernel(3, 3, 1, 6)}, one)
    (folded,) = diff(old, holding({"mul": scale, "add": shift})).folded
    assert (folded.weights, folded.into, folded.bias) == (None, "mul", "add")
    off = holding({"mul": scale, "add": shift * np.float32(1.0001)})
    assert diff(old, off).folded == ()


@pytest.mark.parametrize("channels", [1, 6])
def test_a_common_number_proves_nothing(channels: int) -> None:
    ones = np.ones(channels, np.float32)
    scale, shift = ones * np.float32(0.75), ones / 3
    roles = {"gamma": scale, "beta": shift, "moving_mean": ones * 0, "moving_variance": ones}
    old = holding({"k": random_kernel(3, 3, 2, 6)}, layer("bn", roles, epsilon=0.0))
    assert diff(old, holding({"mul": scale, "add": shift})).folded == ()


@pytest.mark.parametrize("part", ["w", "b"])
def test_one_wrong_number_is_not_a_proof(part: str) -> None:
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


def test_a_shift_before_a_padded_convolution_is_not_proven() -> None:
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


def test_folded_with_the_bias_before_it_into_the_dense_layer_after_it() -> None:
    kernel, bias, before = random_kernel(6, 4), random_kernel(4, seed=3), random_kernel(6, seed=4)
    old = holding({"kernel": kernel, "bias": bias, "before": before}, BN)
    added = (before * SCALE + SHIFT) @ kernel + bias
    new = holding({"w": kernel * SCALE[:, np.newaxis], "b": added})
    (folded,) = diff(old, new).folded
    assert (folded.weights, folded.into, folded.bias) == ("kernel", "w", "b")


def test_a_proof_overrules_pairs_by_nearness_and_by_number() -> None:
    """One layer is folded; another one, which resembles it, is left."""
    kernel = random_kernel(3, 3, 2, 6)
    near = {role: array * np.float32(1.01) for role, array in arrays_of(BN).items()}
    folded = {"w": kernel * SCALE, "b": SHIFT}
    for name in ("1", "norm"):
        left = layer(name, near, epsilon=BN.epsilon)
        first = layer("1" if name == "1" else "bn", arrays_of(BN), epsilon=BN.epsilon)
        gone = trained("gone", 4, seed=7)
        difference = diff(holding({"k": kernel}, first, gone), holding(folded, left))
        assert [each.layer for each in difference.folded] == [first.name]
        assert (difference.layers, difference.removed) == ((), ("gone",))
        assert difference.added == (name,)
