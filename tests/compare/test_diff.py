from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bnstat.compare.diff import RoleChange, diff
from bnstat.model import ROLES
from tests.compare.ports import compared
from tests.output.models import layer, model, usual

START = {"moving_mean": np.zeros(4, np.float32), "moving_variance": np.ones(4, np.float32)}


def role(old: np.ndarray, new: np.ndarray, **tolerance: float) -> RoleChange:
    """Return the change of a beta."""
    difference = compared(
        layer("bn", {"beta": old, **START}), layer("bn", {"beta": new, **START}), **tolerance
    )
    (change,) = (each for each in difference.layers[0].roles if each.role == "beta")
    return change


def test_a_model_equals_itself_also_under_other_names() -> None:
    same = model(*(usual(f"bn{number}", seed=number) for number in range(3)))
    difference = diff(same, same)
    assert difference.equal
    assert difference.changed == difference.renamed == ()
    assert {each.remark for each in difference.layers} == {None}
    assert diff(model(usual("a")), model(usual("net/a"))).equal


def test_counts_and_measures_what_moved() -> None:
    old = np.array([1, 2, -4, 0], np.float32)
    new = np.array([1, 2.5, -5, 3], np.float32)
    change = role(old, new)
    assert (change.channels, change.moved) == (4, 3)
    assert change.largest == 3
    assert change.relative == 0.25
    assert role(np.array([1.0, np.nan]), np.array([np.nan, 1.0])).largest == np.inf
    assert role(SMALL, SMALL.astype(np.float32)).dtypes == ("bfloat16", "float32")


NEAR = np.array([0.1, np.nextafter(np.float32(0.1), np.float32(1))], np.float32)
NANS = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
SPECIAL = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
SMALL = np.array([1, 0.5, -2, 0.25], ml_dtypes.bfloat16)


@pytest.mark.parametrize(
    ("old", "new", "tolerance", "moved"),
    [
        # One last bit is a difference.
        (NEAR[[0, 0]], NEAR, {}, 1),
        # The tolerance is relative to the old value.
        ([10.0, 100.0], [11.0, 110.0], {"rtol": 0.1}, 0),
        ([10.0, 100.0], [11.0, 110.0], {"rtol": 0.099}, 2),
        ([10.0, 100.0], [11.0, 110.0], {"atol": 1.0}, 1),
        ([10.0, 100.0], [11.0, 110.0], {"rtol": 0.05, "atol": 5.0}, 0),
        ([10.0], [12.0], {"rtol": 1 / 6}, 1),
        ([12.0], [10.0], {"rtol": 0.17}, 0),
        # A NaN equals itself, but not a NaN with other bits, unless the dtypes differ.
        (SPECIAL, SPECIAL.copy(), {}, 0),
        (NANS[[0, 0]], NANS, {}, 1),
        (NANS[[0, 0]], NANS.astype(np.float64), {}, 0),
        ([1.0, np.nan, np.inf, 1.0], [np.nan, 1.0, -np.inf, 1.0], {}, 3),
        ([1.0], [np.inf], {"rtol": 10.0, "atol": 10.0}, 1),
        ([0.0], [-0.0], {}, 0),
        # Dtypes are compared by value.
        (SMALL, SMALL.astype(np.float32), {}, 0),
        (np.array([0.1], np.float32), np.array([0.1], np.float64), {}, 1),
        ([], [], {}, 0),
    ],
)
def test_what_counts_as_moved(old: Any, new: Any, tolerance: dict[str, float], moved: int) -> None:
    change = role(np.asarray(old), np.asarray(new), **tolerance)
    assert change.moved == moved
    assert change.equal == (moved == 0)


def test_roles_that_cannot_be_compared() -> None:
    change = role(np.ones(4), np.ones(3))
    assert not change.comparable
    assert not change.equal
    assert change.shapes == ((4,), (3,))
    assert role(np.ones(4), np.ones((1, 1, 1, 4))).equal
    old, new = layer("bn", START), layer("bn", {"gamma": np.ones(4), **START})
    (gained, *_) = compared(old, new).layers[0].roles
    (lost, *_) = compared(new, old).layers[0].roles
    assert (gained.presence, lost.presence) == ("new", "old")
    assert not compared(old, new).equal


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ({"epsilon": 1e-3}, {"epsilon": 1e-5}, ["epsilon"]),
        ({"epsilon": 1e-3}, {"epsilon": float(np.float32(1e-3))}, []),
        ({"epsilon": 1e-3, "momentum": 0.99}, {}, []),
        ({"momentum": 0.99}, {"momentum": 0.9}, ["momentum"]),
        ({"axis": -1}, {"axis": 3}, []),
    ],
)
def test_settings_that_both_files_store(old: Any, new: Any, changes: list[str]) -> None:
    difference = compared(layer("bn", START, **old), layer("bn", START, **new))
    assert [each.setting for each in difference.layers[0].settings] == changes
    assert difference.equal == (not changes)


STATISTICS = ("moving_mean", "moving_variance")


@pytest.mark.parametrize(
    ("moved", "roles", "remark"),
    [
        ((), ROLES, "frozen"),
        (("gamma",), ROLES, "frozen-statistics"),
        (("gamma", "beta"), ROLES, "frozen-statistics"),
        (("gamma", "moving_mean"), ROLES, None),
        (("moving_variance",), ROLES, "frozen-weights"),
        (STATISTICS, ROLES, "frozen-weights"),
        (("moving_variance", "beta"), ROLES, None),
        ((), STATISTICS, "frozen"),
        (("moving_mean",), STATISTICS, None),
    ],
)
def test_the_remark_follows_from_the_roles_that_moved(moved, roles, remark) -> None:
    before, after = usual("bn", seed=1), usual("bn", seed=2)
    old = layer("bn", {role: before.array(role) for role in roles})
    # Within the tolerance, nothing moved.
    near = {role: before.array(role) + np.float32(1e-6) for role in roles}
    new = layer("bn", near | {role: after.array(role) for role in moved})
    models = model(old, usual("other", seed=3)), model(new, usual("other", seed=4))
    assert [each.remark for each in diff(*models, atol=1e-5).layers] == [remark, None]
