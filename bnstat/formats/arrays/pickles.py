"""Pickles of arrays, as programs of NumPy, JAX, Haiku and Flax save their parameters.

They are followed by the reader of PyTorch's pickles: it builds containers and arrays, and calls
nothing that a pickle names. Of a pair, such as Haiku's `(params, state)`, the numbers are no part
of the names.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any, Final

from bnstat.errors import UnsupportedError
from bnstat.formats.arrays import plain_name
from bnstat.formats.contents import Contents
from bnstat.formats.dtypes import beyond_budget, refuse
from bnstat.model import Source, Variable
from bnstat.storage.files import File

_HEAD: Final = 1 << 16
_PICKLE: Final = re.compile(rb"\x80[\x02-\x05]")
_ARRAYS: Final = re.compile(rb"_reconstruct|_frombuffer")
"""What the names of the functions hold that rebuild arrays."""


def matches(file: File) -> bool:
    """Whether the file is a pickle, and not PyTorch's, with an array near its beginning."""
    head = file.head(2)
    return _PICKLE.match(head) is not None and _ARRAYS.search(file.head(_HEAD)) is not None


def open_contents(file: File, source: Source) -> Contents:
    """The arrays of a file that `matches`, by the way to them.

    Raises:
        DamagedError: the pickle is damaged, or of a kind that is not read.
        UnsupportedError: it is too large.
    """
    from bnstat.formats.pytorch.contents import LARGEST_PICKLE, pickle_errors
    from bnstat.formats.pytorch.pickled import unpickle
    from bnstat.formats.pytorch.state import collect
    from bnstat.formats.pytorch.tensors import Array, call

    if file.size > LARGEST_PICKLE:
        raise UnsupportedError(file.path, f"a pickle of {file.size} bytes is not read")
    with pickle_errors(file):
        root, _ = unpickle(file.read(), 0, call, _nothing)
        found = collect(root)
    sizes = {key: array.nbytes for key, array in found.tensors.items() if isinstance(array, Array)}
    refused = beyond_budget(sizes, file.size)
    is_pair = isinstance(root, tuple | list)
    variables: dict[str, Variable] = {}
    names: dict[str, str] = {}
    taken: set[str] = set()
    for key, array in found.tensors.items():
        if not isinstance(array, Array):
            continue
        path = key.split("/")
        name = plain_name(path[1:] if is_pair and len(path) > 1 else path)
        names[key] = key if name in taken else name
        taken.add(name)
        reader = partial(refuse if key in refused else array.read, f"{file.path}: {key}")
        variables[key] = Variable(key, names[key], array.dtype, array.shape, reader)
    return Contents(
        replace(source, format="pickle"), variables, names=names, variables_in_order=True
    )


def _nothing(_: Any) -> None:
    """What a persistent id stands for, which such pickles do not have."""
