"""Pickles of arrays, in which programs that use NumPy, JAX, Haiku or Flax save parameters.

The reader of PyTorch's pickles reads these files. It builds containers and arrays, and calls no
function that a pickle names. Names omit the index in an outermost tuple or list, such as Haiku's
pair `(params, state)`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Final

from bnstat.errors import UnsupportedError
from bnstat.formats.contents import Contents, name_of_path
from bnstat.formats.dtypes import within_budget
from bnstat.model import Source, Variable
from bnstat.storage.files import File

_HEAD: Final = 1 << 16
_PICKLE: Final = re.compile(rb"\x80[\x02-\x05]")
_ARRAYS: Final = re.compile(rb"_reconstruct|_frombuffer")
"""Substrings of the names of functions that rebuild arrays."""
_JOBLIB: Final = b"joblib.numpy_pickle"
"""The module in which joblib defines its arrays. Their bytes interrupt the pickle."""


def matches(file: File) -> bool:
    """Return True for a pickle with an array near its beginning, unless joblib wrote it."""
    if _PICKLE.match(file.head(2)) is None:
        return False
    head = file.head(_HEAD)
    return _ARRAYS.search(head) is not None and _JOBLIB not in head


def open_contents(file: File, source: Source) -> Contents:
    """Return the arrays, keyed by their paths."""
    from bnstat.formats.pytorch.pickled import unpickle
    from bnstat.formats.pytorch.state import collect
    from bnstat.formats.pytorch.storages import LARGEST_PICKLE, pickle_errors
    from bnstat.formats.pytorch.tensors import Array, call

    if file.size > LARGEST_PICKLE:
        raise UnsupportedError(file.path, f"is a pickle above the limit of {LARGEST_PICKLE} bytes")
    with pickle_errors(file):
        root, _ = unpickle(file.read(), 0, call, lambda persistent_id: None)
        tensors = collect(root).tensors
    arrays = {key: array for key, array in tensors.items() if isinstance(array, Array)}
    variables: dict[str, Variable] = {}
    names: dict[str, str] = {}
    used: set[str] = set()
    for key, array in arrays.items():
        path = key.split("/")
        is_in_pair = isinstance(root, tuple | list) and len(path) > 1
        name = name_of_path(path[1:] if is_in_pair else path)
        names[key] = key if name in used else name
        used.add(name)
        reader = partial(array.read, f"{file.path}: {key}")
        variables[key] = Variable(key, names[key], array.dtype, array.shape, reader)
    sizes = {key: array.nbytes for key, array in arrays.items()}
    return Contents(
        replace(source, format="pickle"),
        within_budget(file, variables, sizes),
        names=names,
        variables_in_order=True,
    )
