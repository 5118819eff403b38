"""New arrays for a model's variables, checked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnstat.errors import BnstatError
from bnstat.mending.applied import Change
from bnstat.mending.pairing import Assignment
from bnstat.model import ROLES, Array, as_float64


def fit(assigned: Sequence[Assignment]) -> tuple[dict[str, Array], list[Change]]:
    """By key the new array of each variable, of its shape and dtype, and what changes by it.

    Raises:
        DamagedError: values have another shape than the variable.
        UnsupportedError: a value is not exactly one of the stored type.
        BnstatError: layers that share a variable are given different values for it.
    """
    arrays: dict[str, Array] = {}
    owners: dict[str, str] = {}
    changes = []
    for one in assigned:
        variable = one.variable
        stored = variable.read() if one.role not in ROLES else one.layer.array(one.role)
        assert stored is not None
        where = f"{one.layer.name}, {one.role}"
        array = one.given.fitted(variable, stored, where)
        known = arrays.setdefault(variable.key, array)
        owner = owners.setdefault(variable.key, where)
        if different(known, array).any():
            raise BnstatError(
                where,
                f"shares its variable with {owner}, but is given other values",
                "give both the same",
            )
        changes.append(
            Change(
                one.layer.name,
                one.role,
                variable.key,
                array.size,
                int(different(stored, array).sum()),
                _largest(stored, array),
                one.given_as,
                one.match,
            )
        )
    return arrays, changes


def different(old: Array, new: Array) -> Array:
    """Where two arrays of one shape and dtype have different bits."""

    def raw(array: Array) -> Array:
        flat = np.ascontiguousarray(array).reshape(-1)
        return flat.view(np.uint8).reshape(array.size, array.dtype.itemsize)

    return np.asarray((raw(old) != raw(new)).any(axis=1))


def _largest(old: Array, new: Array) -> float:
    """The largest distance of two elements; infinite to or from NaN or infinity."""
    with np.errstate(all="ignore"):
        distances = abs(as_float64(new) - as_float64(old))
    distances = np.where(different(old, new).reshape(old.shape), distances, 0.0)
    return float(np.nan_to_num(distances, nan=np.inf).max(initial=0.0))
