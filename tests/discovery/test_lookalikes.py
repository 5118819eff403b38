"""Names that look like those of batch norm, and are others."""

from __future__ import annotations

import pytest

from bnstat.discovery.lookalikes import set_apart


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("bn/gamma/Adam", "slot"), ("bn/gamma/Adam_1", "slot"), ("bn/beta/Momentum", "slot"),
        ("bn/gamma/RMSProp_2", "slot"), ("train/bn/beta/Adagrad", "slot"),
        ("Adam/m/bn/gamma", "slot"), ("RMSprop/velocity/bn/gamma", "slot"),
        ("training/Adam/bn/gamma/m", "slot"), ("beta1_power", "optimizer"),
        ("train/beta2_power", "optimizer"), ("bn/bn/moving_mean/biased", "zero-debias"),
        ("bn/bn/moving_mean/local_step", "zero-debias"),
        ("bn/gamma/ExponentialMovingAverage", "shadow"),
        ("global_step", "bookkeeping"), ("bn/moving_mean/_hidden", "zero-debias"),
    ],
)  # fmt: skip
def test_why_names_are_set_apart(name: str, word: str) -> None:
    reason = set_apart(name, name)
    assert reason is not None
    assert word in reason


@pytest.mark.parametrize(
    "name",
    ["bn/gamma", "adam_block/bn/gamma", "momentum_encoder/bn/beta", "m/bn/gamma", "sgd2/gamma"],
)
def test_names_that_are_not_set_apart(name: str) -> None:
    assert set_apart(name, name) is None
