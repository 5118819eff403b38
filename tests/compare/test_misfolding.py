"""Layers that were folded, but not as they should have been: each cause is named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bnstat.compare import diff
from bnstat.model import BatchNorm, Model
from tests.compare.ports import (
    arrays_of,
    changed,
    holding,
    random_kernel,
    scale_and_shift,
    trained,
)

BN = trained("bn", 12)
KERNEL, BIAS = random_kernel(3, 3, 2, 12), random_kernel(12, seed=3)
DENSE = random_kernel(30, 12, seed=5)


def _in_convolution(of: BatchNorm) -> dict[str, np.ndarray]:
    scale, shift = scale_and_shift(of)
    return {"w": (KERNEL * scale).transpose(3, 2, 0, 1), "b": shift}


def _in_convolution_with_bias(of: BatchNorm) -> dict[str, np.ndarray]:
    scale, shift = scale_and_shift(of)
    return {"w": KERNEL * scale, "b": BIAS * scale + shift}


def _in_dense_layer(of: BatchNorm) -> dict[str, np.ndarray]:
    scale, shift = scale_and_shift(of)
    turned = (DENSE * scale).reshape(6, 5, 12).transpose(2, 1, 0).reshape(12, 30)
    return {"w": turned, "b": shift}


def _in_two_operations(of: BatchNorm) -> dict[str, np.ndarray]:
    scale, shift = scale_and_shift(of)
    return {"kernel": KERNEL, "w": scale, "b": shift}


FOLDINGS = [_in_convolution, _in_convolution_with_bias, _in_dense_layer, _in_two_operations]


def _one_channel(of: BatchNorm) -> BatchNorm:
    gamma = arrays_of(of)["gamma"]
    gamma[2] += np.float32(1e-3)
    return changed(of, {"gamma": gamma})


def _epsilon(of: BatchNorm) -> BatchNorm:
    return changed(of, {}, epsilon=1e-5)


def _swapped(of: BatchNorm) -> BatchNorm:
    mean, variance = (arrays_of(of)[role] for role in ("moving_mean", "moving_variance"))
    return changed(of, {"moving_mean": variance, "moving_variance": mean})


def _unbiased(of: BatchNorm) -> BatchNorm:
    variance = arrays_of(of)["moving_variance"]
    return changed(of, {"moving_variance": variance * np.float32(32 / 31)})


CHANGES = {
    "channels": _one_channel,
    "epsilon": _epsilon,
    "swapped": _swapped,
    "unbiased-variance": _unbiased,
}


def original() -> BatchNorm:
    """A layer whose mean can stand for a variance."""
    mean = np.abs(arrays_of(BN)["moving_mean"]) + np.float32(0.1)
    return changed(BN, {"moving_mean": mean})


def models(fold: Callable[[BatchNorm], dict[str, np.ndarray]], of: BatchNorm) -> list[Model]:
    own = {"k": KERNEL, "bias": BIAS, "dense": DENSE}
    return [
        holding(own, original()),
        holding({"x": random_kernel(3, 3, 2, 12, seed=8), **fold(of)}),
    ]


@pytest.mark.parametrize("fold", FOLDINGS)
@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("turn", [1, -1])
def test_the_cause_is_named(
    turn: int, kind: str, fold: Callable[[BatchNorm], dict[str, np.ndarray]]
) -> None:
    assert diff(*models(fold, original())[::turn]).equivalent
    difference = diff(*models(fold, CHANGES[kind](original()))[::turn])
    assert not difference.equivalent
    assert difference.folded == ()
    (wrong,) = difference.misfolded
    assert (wrong.layer, wrong.side) == ("bn", "old" if turn == 1 else "new")
    assert (wrong.into, wrong.bias) == ("w", "b")
    assert [cause.kind for cause in wrong.causes] == [kind]
    assert difference.removed + difference.added == ("bn",)


def test_the_old_value_is_named_before_the_new() -> None:
    pair = models(_in_convolution, _epsilon(original()))
    (wrong,) = diff(*pair).misfolded
    assert wrong.causes[0].text == "the scale results from epsilon 1e-05, not 0.001"
    pair = models(_in_convolution, _unbiased(original()))
    for ordered, turned in ((pair, "biased -> unbiased"), (pair[::-1], "unbiased -> biased")):
        (wrong,) = diff(*ordered).misfolded
        assert turned in wrong.causes[0].text.split(": ")


def test_a_folding_without_a_cause_is_not_reported() -> None:
    scale, shift = scale_and_shift(trained("other", 12, seed=9))
    for new in ({"w": KERNEL * scale, "b": shift}, {"scale": scale, "shift": shift}):
        difference = diff(holding({"k": KERNEL}, original()), holding(new))
        assert (difference.misfolded, difference.removed) == ((), ("bn",))


def test_a_dropped_layer_is_not_reported_as_misfolded() -> None:
    new = holding({"k": KERNEL, "bias": BIAS})
    difference = diff(holding({"k": KERNEL, "bias": BIAS}, original()), new)
    assert (difference.misfolded, difference.removed) == ((), ("bn",))
