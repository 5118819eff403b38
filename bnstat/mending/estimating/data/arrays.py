"""Data in arrays: `.npz`, `.npy`, and what a Python caller has in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bnstat.errors import BnstatError, DamagedError
from bnstat.mending.estimating.data.batches import UNNAMED, Raw
from bnstat.model import Array

_STARTS = (b"PK", b"\x93NUMPY")


@dataclass(frozen=True)
class Arrays:
    """Arrays whose first axis is that of the samples.

    Attributes:
        where: what they are, for messages.
        arrays: by name.
    """

    where: str
    arrays: Mapping[str, Array]

    def batches(self, size: int) -> Iterator[Raw]:
        """Slices of the arrays."""
        if not self.arrays:
            raise DamagedError(self.where, "holds no arrays")
        lengths = {len(array) for array in self.arrays.values()}
        if len(lengths) != 1:
            listed = ", ".join(f"{name} {len(array)}" for name, array in self.arrays.items())
            raise DamagedError(self.where, f"its arrays are not of one length: {listed}")
        for start in range(0, lengths.pop(), size):
            yield {name: array[start : start + size] for name, array in self.arrays.items()}


def open_numpy(path: str, names: Sequence[str] = ()) -> Arrays:
    """The arrays of an `.npz` or `.npy` file.

    Args:
        path: the file.
        names: the arrays that are needed; where it has all of them the others are not read.

    Raises:
        DamagedError: it cannot be read, or holds Python objects.
        BnstatError: unpacked it is larger than the machine's memory.
    """
    from zipfile import BadZipFile

    with open(path, "rb") as file:
        if not file.read(6).startswith(_STARTS):
            raise DamagedError(path, "is neither .npz nor .npy, whatever its name says")
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r")
        if isinstance(loaded, np.ndarray):
            return Arrays(path, {UNNAMED: _with_samples(loaded, path)})
        with loaded:
            chosen = needed(loaded.files, names)
            members = loaded.zip.infolist()
            sizes = {each.filename.removesuffix(".npy"): each.file_size for each in members}
            _refuse_large(path, sum(sizes[name] for name in chosen))
            arrays = {name: loaded[name] for name in chosen}
    except (OSError, ValueError, EOFError, KeyError, SyntaxError, MemoryError, BadZipFile) as error:
        raise DamagedError(path, f"NumPy cannot read it: {error}") from None
    return Arrays(path, {name: _with_samples(array, path) for name, array in arrays.items()})


def needed(there: Iterable[str], names: Sequence[str]) -> list[str]:
    """Those of some arrays that are needed: all, where one of these names is missing."""
    there = list(there)
    return list(names) if names and set(names) <= set(there) else there


def _refuse_large(path: str, size: int) -> None:
    """Refuse what cannot be unpacked: `zipfile` gives no more than the sizes it is told."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return
    if size > memory > 0:
        raise BnstatError(
            path,
            f"unpacks to {size / 1e9:.3g} GB, more than this machine's memory",
            "give an .npy, which is read piece by piece",
        )


def _with_samples(array: Array, path: str) -> Array:
    if not array.ndim:
        raise BnstatError(path, "an array of a single number is no set of samples")
    return array


def is_numpy(path: str) -> bool:
    """Whether a path is named as NumPy names its files."""
    return os.path.splitext(path)[1].lower() in (".npz", ".npy")
