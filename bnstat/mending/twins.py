"""Variables that a file stores under two keys: both get the new array."""

from __future__ import annotations

from collections.abc import Mapping

from bnstat.formats.contents import Contents
from bnstat.formats.tensorflow.object_names import saved_again
from bnstat.mending.fitting import different
from bnstat.model import Array, Variable


def with_twins(contents: Contents, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays, with those of further keys of the same variables.

    The second key of a variable is known by its name and its stored bits. Where several variables
    share both and do not all become the same, the second keys are left: no graph reads them.

    Args:
        contents: the file as it is before the arrays are written.
        arrays: key -> new array.
    """
    result = dict(arrays)
    for key, first in saved_again(contents.objects).items():
        if key not in contents.variables or not any(one in arrays for one in first):
            continue
        twin = contents.variables[key]
        same = [one for one in first if _equal(contents.variables.get(one), twin)]
        new = [arrays[one] for one in same if one in arrays]
        if new and len(new) == len(same) and not any(different(new[0], a).any() for a in new):
            result[key] = new[0]
    return result


def _equal(one: Variable | None, other: Variable) -> bool:
    if one is None or (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return not different(one.read(), other.read()).any()
