"""Layers that were folded, rightly or with a cause that is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bnstat.compare import folding
from bnstat.compare.diff import diff
from bnstat.model import BatchNorm, Model, Variable
from tests.compare.ports import (
    Arrays,
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


def off(array: np.ndarray) -> np.ndarray:
    """Return an array with another last number."""
    result = array.copy()
    result.flat[-1] += np.float32(1e-3)
    return result


def at_the_origin(**arrays: np.ndarray) -> BatchNorm:
    zeros = np.zeros(6, np.float32)
    return changed(BN, {"beta": zeros, "moving_mean": zeros, **arrays})


ONES = np.ones(6, np.float32)
BIAS = random_kernel(6, seed=3)
UNEVEN = random_kernel(3, 5, 4, 6)
PRODUCT = (UNEVEN * SCALE).transpose(3, 2, 0, 1)
SEVERAL = random_kernel(3, 3, 2, 3)
NEXT, NEXT_BIAS = random_kernel(6, 4), random_kernel(4, seed=3)
NEXT_PRODUCT = NEXT * SCALE[:, np.newaxis]
PADDED = random_kernel(3, 3, 6, 4)
FLAT = random_kernel(4 * 3 * 5, 6)
FLAT_PRODUCT = (FLAT * SCALE).reshape(4 * 3, 5, 6).transpose(2, 1, 0).reshape(6, 60)
CANCELLING = changed(
    BN,
    {
        "moving_mean": np.linspace(1000, 2000, 6, dtype=np.float32),
        "beta": np.linspace(1000, 2000, 6, dtype=np.float32) * SCALE,
    },
)
LARGE = changed(BN, {"beta": np.linspace(1e4, 2e4, 6, dtype=np.float32)})
LARGE_SHIFT = scale_and_shift(LARGE)[1] * np.float32(1 + 2e-7)

PROVEN = [
    ({"k": SEVERAL}, BN,
     {"w": (SEVERAL.reshape(3, 3, 6) * SCALE).transpose(2, 0, 1)[:, np.newaxis], "b": SHIFT},
     ("k", "w", "b")),
    # a multiplication and an addition, among other vectors
    ({"k": UNEVEN}, BN, {"k": UNEVEN, "add": SHIFT, "decoy": BIAS, "mul": SCALE},
     (None, "mul", "add")),
    # the dense layer after it, also with the bias before it
    ({"k": NEXT, "bias": NEXT_BIAS}, BN, {"w": NEXT_PRODUCT.T, "b": SHIFT @ NEXT + NEXT_BIAS},
     ("k", "w", "b")),
    ({"k": NEXT, "bias": NEXT_BIAS, "before": BIAS}, BN,
     {"w": NEXT_PRODUCT, "b": (BIAS * SCALE + SHIFT) @ NEXT + NEXT_BIAS}, ("k", "w", "b")),
    # inputs of a dense layer that were flattened in the other order
    ({"k": FLAT}, BN, {"w": FLAT_PRODUCT, "b": SHIFT}, ("k", "w", "b")),
    # weights that begin alike are passed over
    ({"k": UNEVEN}, BN,
     {"other": np.concatenate([PRODUCT[:-1], PRODUCT[-1:] + 1]),
      "longer": np.concatenate([PRODUCT, 0 * PRODUCT], axis=1), "w": PRODUCT, "b": SHIFT},
     ("k", "w", "b")),
    # A shift of 0 needs no bias. Of large terms that cancel, rounding leaves more.
    ({"k": UNEVEN}, at_the_origin(), {"w": PRODUCT}, ("k", "w", None)),
    ({"k": UNEVEN}, CANCELLING, {"w": PRODUCT}, ("k", "w", None)),
    # A large shift has larger roundings.
    ({"k": UNEVEN}, LARGE, {"w": PRODUCT, "b": LARGE_SHIFT}, ("k", "w", "b")),
]  # fmt: skip


EQUAL = changed(BN, {"gamma": ONES, "moving_variance": ONES})
NOT_PROVEN = [
    # one wrong number
    ({"k": UNEVEN}, BN, {"w": off(PRODUCT), "b": SHIFT}),
    ({"k": UNEVEN}, BN, {"w": PRODUCT, "b": off(SHIFT)}),
    ({"k": NEXT, "bias": NEXT_BIAS}, BN,
     {"w": NEXT_PRODUCT.T, "b": off(SHIFT @ NEXT + NEXT_BIAS)}),
    # a dropped layer, or no bias for the shift
    ({"k": UNEVEN, "b": BIAS}, BN, {"k": UNEVEN, "b": BIAS}),
    ({"k": UNEVEN}, BN, {"w": PRODUCT}),
    # numbers in another order
    ({"k": UNEVEN}, BN,
     {"w": PRODUCT.reshape(6, -1)[:, np.random.default_rng(0).permutation(60)].reshape(6, 4, 3, 5),
      "b": SHIFT}),
    ({"k": FLAT}, BN,
     {"w": np.concatenate([FLAT_PRODUCT[:, 1:], FLAT_PRODUCT[:, :1]], axis=1), "b": SHIFT}),
    # a shift before a padded convolution
    ({"k": PADDED}, BN,
     {"w": PADDED * along(SCALE, 4, 2), "b": np.einsum("hwio,i->o", PADDED, SHIFT)}),
    # a multiplication without an addition or the reverse, with one number for all channels, with
    # one vector for both, or with a bias that is scaled
    ({"k": UNEVEN}, BN, {"add": SHIFT, "decoy": BIAS, "k": UNEVEN}),
    ({"k": UNEVEN}, at_the_origin(), {"mul": SCALE, "k": UNEVEN}),
    ({"k": UNEVEN}, EQUAL,
     {"mul": scale_and_shift(EQUAL)[0], "add": scale_and_shift(EQUAL)[1], "k": UNEVEN}),
    ({"k": UNEVEN}, changed(BN, {"moving_mean": 0 * ONES, "beta": SCALE}),
     {"both": SCALE, "k": UNEVEN}),
    ({"k": UNEVEN, "b": BIAS}, BN, {"k": UNEVEN, "mul": SCALE, "add": SHIFT + BIAS * SCALE}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("own", "of", "other", "expected"), [*PROVEN, *((*each, None) for each in NOT_PROVEN)]
)
def test_a_proof(own: Arrays, of: BatchNorm, other: Arrays, expected: Any) -> None:
    difference = diff(holding(own, of), holding(other))
    found = [(folded.weights, folded.into, folded.bias) for folded in difference.folded]
    assert found == ([expected] if expected else [])
    assert difference.removed == (() if expected else ("bn",))
    assert difference.equivalent is bool(expected)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1), (6,)])
def test_into_a_multiplication_and_an_addition_alone(shape: tuple[int, ...]) -> None:
    """For example the channel of a spectrogram, without weights before it."""
    one = trained("bn", int(np.prod(shape)))
    scale, shift = (each.reshape(shape) for each in scale_and_shift(one))
    kernel = {"k": random_kernel(3, 3, 1, 5)}
    (folded,) = diff(holding(kernel, one), holding({"mul": scale, "add": shift})).folded
    assert (folded.weights, folded.into, folded.bias) == (None, "mul", "add")
    wrong = holding({"mul": scale, "add": shift * np.float32(1.0001)})
    assert diff(holding(kernel, one), wrong).folded == ()
    # A common number proves nothing.
    ones = np.ones(shape, np.float32)
    scale, shift = ones * np.float32(0.75), ones / 3
    roles = {"gamma": scale, "beta": shift, "moving_mean": ones * 0, "moving_variance": ones}
    common = holding(kernel, layer("bn", roles, epsilon=0.0))
    assert diff(common, holding({"mul": scale, "add": shift})).folded == ()


def test_some_folded_some_kept() -> None:
    kept = trained("kept", 6, seed=4)
    kernel = random_kernel(3, 3, 2, 6)
    new = holding({"w": kernel * SCALE, "b": SHIFT}, rewritten(kept, "node"))
    difference = diff(holding({"k": kernel}, BN, kept), new)
    assert [each.layer for each in difference.folded] == ["bn"]
    assert [each.verdict for each in difference.layers] == ["same-effect"]
    assert difference.equivalent
    # Without an epsilon, nothing is proven.
    unknown = holding({"k": kernel}, trained("bn", 6, epsilon=None), kept)
    assert diff(unknown, new).removed == ("bn",)
    assert len(diff(unknown, new, epsilon=1e-3).folded) == 1


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


# Layers that were folded wrongly

WIDE = trained("bn", 12)
WIDE_KERNEL, WIDE_BIAS = random_kernel(3, 3, 2, 12), random_kernel(12, seed=3)
DENSE = random_kernel(30, 12, seed=5)


FOLDINGS = {
    "convolution": lambda scale, shift: ((WIDE_KERNEL * scale).transpose(3, 2, 0, 1), shift),
    "with bias": lambda scale, shift: (WIDE_KERNEL * scale, WIDE_BIAS * scale + shift),
    "dense": lambda scale, shift: (
        (DENSE * scale).reshape(6, 5, 12).transpose(2, 1, 0).reshape(12, 30), shift,
    ),
    "two operations": lambda scale, shift: (scale, shift),
}  # fmt: skip


GAMMA, VARIANCE = (np.array(WIDE.array(role)) for role in ("gamma", "moving_variance"))
MEAN = np.abs(arrays_of(WIDE)["moving_mean"]) + np.float32(0.1)  # can stand for a variance
ORIGINAL = changed(WIDE, {"moving_mean": MEAN})
ALTERED = {
    "none": ORIGINAL,
    "epsilon": changed(ORIGINAL, {}, epsilon=1e-5),
    "channels": changed(ORIGINAL, {"gamma": GAMMA + np.float32(1e-3) * (np.arange(12) == 2)}),
    "swapped": changed(ORIGINAL, {"moving_mean": VARIANCE, "moving_variance": MEAN}),
    "unbiased-variance": changed(ORIGINAL, {"moving_variance": VARIANCE * np.float32(32 / 31)}),
}
"""The original layer, and known causes of a difference from it."""


def both(fold: str, kind: str) -> list[Model]:
    own = {"k": WIDE_KERNEL, "bias": WIDE_BIAS, "dense": DENSE}
    weights, bias = FOLDINGS[fold](*scale_and_shift(ALTERED[kind]))
    kernel = WIDE_KERNEL if fold == "two operations" else random_kernel(3, 3, 2, 12, seed=8)
    return [holding(own, ORIGINAL), holding({"x": kernel, "w": weights, "b": bias})]


TEXTS = {
    ("epsilon", 1): "the scale results from epsilon 1e-05, not 0.001",
    ("unbiased-variance", 1): ": biased -> unbiased",
    ("unbiased-variance", -1): ": unbiased -> biased",
}


@pytest.mark.parametrize("fold", FOLDINGS)
@pytest.mark.parametrize("kind", ["channels", "epsilon", "swapped", "unbiased-variance"])
@pytest.mark.parametrize("turn", [1, -1])
def test_the_cause_is_named(turn: int, kind: str, fold: str) -> None:
    assert diff(*both(fold, "none")[::turn]).equivalent
    difference = diff(*both(fold, kind)[::turn])
    assert not difference.equivalent
    assert difference.folded == ()
    (wrong,) = difference.misfolded
    assert (wrong.layer, wrong.side) == ("bn", "old" if turn == 1 else "new")
    assert (wrong.into, wrong.bias) == ("w", "b")
    assert [cause.kind for cause in wrong.causes] == [kind]
    # The old value is named before the new one.
    assert TEXTS.get((kind, turn), "") in wrong.causes[0].text
    assert difference.removed + difference.added == ("bn",)


def test_a_folding_without_a_cause_and_a_dropped_layer_are_not_reported() -> None:
    scale, shift = scale_and_shift(trained("other", 12, seed=9))
    own = {"k": WIDE_KERNEL, "bias": WIDE_BIAS}
    for new in ({"w": WIDE_KERNEL * scale, "b": shift}, {"scale": scale, "shift": shift}, own):
        difference = diff(holding(own, ORIGINAL), holding(new))
        assert (difference.misfolded, difference.removed) == ((), ("bn",))


# The search, and what it reads and keeps


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
        bare = models.model()
        assert diff(self.watched({"k": UNEVEN}, reads, BN), bare).folded == ()
        assert diff(models.model(BN), self.watched({"w": PRODUCT}, reads)).folded == ()
        assert reads == []
        beside = {
            "integers": np.ones(6, np.int32),
            "one": np.float32(1),
            "seven": np.ones(7, np.float32),
            "small": np.ones((4, 5), np.float32),
            "deep": np.ones((2, 2, 2, 2, 2, 6), np.float32),
            "vast": np.broadcast_to(np.float32(1), (1 << 26, 6)),
        }
        old = self.watched({"k": UNEVEN, **beside}, reads, BN)
        new = self.watched({"w": PRODUCT, "b": SHIFT, **beside}, reads)
        assert len(diff(old, new).folded) == 1
        assert set(reads) == {"b", "k", "read b", "read k", "read w", "w"}

    @pytest.mark.parametrize(
        ("most", "kept"), [(1 << 24, ["k", "l"]), (UNEVEN.size, ["k"]), (UNEVEN.size - 1, [])]
    )
    def test_weights_are_kept_while_there_is_room(self, reads, monkeypatch, most, kept) -> None:
        monkeypatch.setattr(folding, "_MOST_KEPT", most)
        other = trained("other", 6, seed=3)
        scale, shift = scale_and_shift(other)
        kernels = {"k": UNEVEN, "l": random_kernel(3, 5, 4, 6, seed=9)}
        products = {"w": kernels["k"] * SCALE, "x": kernels["l"] * scale, "b": SHIFT, "c": shift}
        old, new = self.watched(kernels, reads, BN, other), self.watched(products, reads)
        assert [each.into for each in diff(old, new).folded] == ["w", "x"]
        assert [key for key in kernels if reads.count(f"read {key}") == 1] == kept
