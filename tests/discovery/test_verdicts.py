"""Why each variable was, or was not, taken."""

from __future__ import annotations

import pytest

from bnstat.discovery import discover
from tests.discovery.test_names import contents

NAMES = {
    "a/bn/gamma": ("a/bn", "gamma", "found by name"),
    "a/bn/moving_mean": ("a/bn", "moving_mean", "found by name"),
    "a/bn/moving_variance": ("a/bn", "moving_variance", "found by name"),
    "a/bn/renorm_mean": ("a/bn", "renorm_mean", "kept beside the roles"),
    "a/bn/gamma/Adam": (None, None, "slot variable"),
    "a/bn/gamma/ExponentialMovingAverage": (None, None, "shadow copy"),
    "LayerNorm/gamma": (None, None, "no moving statistics beside it"),
    "c/moving_variance": (None, None, "without its counterpart"),
    "b/BatchNorm/beta": ("b/BatchNorm", "beta", "statistics are not in the file"),
    "conv/kernel": (None, None, "no batch-norm variable's"),
    "global_step": (None, None, "bookkeeping"),
}


@pytest.fixture(scope="module")
def verdicts() -> dict[str, tuple[str | None, str | None, str]]:
    model = discover(contents(list(NAMES)))
    return {
        verdict.key: (verdict.layer, verdict.role, verdict.reason) for verdict in model.explain()
    }


def test_there_is_one_for_every_variable_in_the_files_order(verdicts: dict[str, object]) -> None:
    assert list(verdicts) == list(NAMES)


@pytest.mark.parametrize("key", NAMES)
def test_what_it_says(verdicts: dict[str, tuple[str | None, str | None, str]], key: str) -> None:
    layer, role, reason = NAMES[key]
    assert verdicts[key][:2] == (layer, role)
    assert reason in verdicts[key][2]
