"""Files of PyTorch 0.1: a tar of three runs of pickles.

    storages   how many; for each a pickle (key, device, type), a u64 count, and its bytes;
               then (key, key of the whole, offset, count) of each that is a part of another
    tensors    how many; for each a pickle (key, key of its storage, type), an i32 number of
               dimensions and 4 bytes of nothing, an i64 for each size and each stride, and the
               i64 offset of its first element
    pickle     the object, which names tensors and storages by their keys

Source: torch/serialization.py, `legacy_load`.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from bnstat.errors import DamagedError
from bnstat.formats.dtypes import numpy_dtype
from bnstat.formats.exchange.pytorch.containers import LARGEST_PICKLE, Saved, errors
from bnstat.formats.exchange.pytorch.pickled import Call, CutError, Global, PickleError, unpickle
from bnstat.formats.exchange.pytorch.tensors import Place, Storage, Tensor, storage_type
from bnstat.storage.archive import open_archive
from bnstat.storage.files import File, Folder

_FIRST_PIECE: Final = 1 << 9
_MOST_DIMS: Final = 32


def read_tar(file: File, called: Call) -> Saved:
    """The object in a tar, and where its storages are. Raises as `read_zip` does."""
    folder = open_archive(file)
    if folder is None:
        raise DamagedError(file.path, "is no tar")
    with errors(file):
        storages, places = _storages(_Run(_member(folder, "storages"), called))
        tensors = _tensors(_Run(_member(folder, "tensors"), called), storages)

        def persistent(identity: Any) -> Tensor | Storage | Global:
            match identity:
                case (Global() as kind, *_):  # a class of modules, with its source
                    return kind
            key = str(identity)
            found = tensors.get(key) or storages.get(key)
            if found is None:
                raise PickleError("it names a tensor that is not there")
            return found

        pickled = _member(folder, "pickle")
        root, _ = unpickle(pickled.head(LARGEST_PICKLE), 0, called, persistent)

    def place_of(storage: Storage) -> Place:
        return places[storage.key]

    return Saved(root, place_of)


def _member(folder: Folder, name: str) -> File:
    member = folder.file(name)
    if member is None:
        raise DamagedError(folder.path, f"lacks {name}")
    return member


class _Run:
    """Pickles and other bytes, one after the other."""

    def __init__(self, file: File, called: Call) -> None:
        self.file = file
        self.at = 0
        self._called = called

    def object(self) -> Any:
        """What the next pickle describes."""
        length = _FIRST_PIECE
        while True:
            data = self.file.read(self.at, min(length, self.file.size - self.at))
            try:
                found, end = unpickle(data, 0, self._called, lambda _: None)
            except CutError:
                if length >= min(self.file.size - self.at, LARGEST_PICKLE):
                    raise
                length *= 8
                continue
            self.at += end
            return found

    def count(self) -> int:
        """How many things follow: each takes a byte at least."""
        found = self.object()
        if type(found) is not int or not 0 <= found <= self.file.size:
            raise PickleError("a number of things that cannot be")
        return found

    def numbers(self, form: str) -> tuple[int, ...]:
        """Numbers of a form of `struct`."""
        size = struct.calcsize(form)
        self.at += size
        return struct.unpack(form, self.file.read(self.at - size, size))


def _storages(run: _Run) -> tuple[dict[str, Storage], dict[str, Place]]:
    storages: dict[str, Storage] = {}
    places: dict[str, Place] = {}
    for _ in range(run.count()):
        match run.object():
            case (int() | str() as key, _, kind) if (dtype := storage_type(kind)) is not None:
                (count,) = run.numbers("<Q")
            case _:
                raise PickleError("a storage that is none")
        length = count * numpy_dtype(dtype, run.file.path).itemsize
        run.file.read(run.at + length, 0)
        storages[str(key)] = Storage(str(key), dtype, count)
        places[str(key)] = Place(run.file, run.at, length)
        run.at += length
    views = run.object()
    for view in views if isinstance(views, list) else ():
        match view:
            case (int() | str() as key, int() | str() as whole, int(offset), int(count)):
                root = storages.get(str(whole))
                if root is not None and offset >= 0:
                    storages[str(key)] = Storage(root.key, root.dtype, count, offset)
    return storages, places


def _tensors(run: _Run, storages: dict[str, Storage]) -> dict[str, Tensor]:
    tensors = {}
    for _ in range(run.count()):
        match run.object():
            case (int() | str() as key, int() | str() as of, _) if str(of) in storages:
                storage = storages[str(of)]
            case _:
                raise PickleError("a tensor without a storage")
        dims, _nothing = run.numbers("<ii")
        if not 0 <= dims <= _MOST_DIMS:
            raise PickleError("a tensor of no possible shape")
        sizes, strides = run.numbers(f"<{dims}q"), run.numbers(f"<{dims}q")
        (offset,) = run.numbers("<q")
        if min((*sizes, *strides, offset), default=0) < 0:
            raise PickleError("a tensor of no possible shape")
        tensors[str(key)] = Tensor(storage, storage.dtype, offset, sizes, strides)
    return tensors
