"""HDF5 files, read without following anything out of them.

HDF5 is a tree of groups and datasets, both with attributes. Beside its own objects a file may
point elsewhere: by soft and external links, by virtual datasets, by datasets whose bytes are
kept in other files. None of that occurs in a model file, so none of it is followed. The tree is
walked over hard links alone, each group once, so that a group linked below itself ends the walk
rather than making it endless.

Source: HDF5 File Format Specification 3.0, https://docs.hdfgroup.org/hdf5/develop/_f_m_t3.html
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.hdf5_attributes import Attributes
from bnstat.formats.in_place import as_stream
from bnstat.formats.storage import File
from bnstat.model import Array, Variable

if TYPE_CHECKING:
    import h5py

SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"

_MAX_DEPTH: Final = 64
_MAX_OBJECTS: Final = 250_000
_BOMB_FLOOR: Final = 64 << 20
"""So many bytes are read from a file, however few of them it holds."""
_BOMB_RATIO: Final = 50
"""Beyond that, all arrays together must not exceed the file's size by more than this factor."""
_MAX_FILTERED_CHUNK: Final = 512 << 10
"""HDF5 inflates a chunk without a bound, by up to 1032 times: this keeps it near 512 MB."""


def is_hdf5(file: File) -> bool:
    """Whether a file is HDF5, going by its signature."""
    return _signature_offset(file) is not None


class Hdf5:
    """An HDF5 file, open for as long as this object or a variable of it lives.

    Attributes:
        path: the file, for messages.
        variables: path -> variable, for every dataset that has a shape.
    """

    def __init__(self, file: File) -> None:
        """Open the file and walk its tree; no dataset is read.

        Raises:
            DamagedError: the file is truncated, not HDF5, or nested beyond reason.
        """
        self.path = file.path
        self._size = file.size
        self._claimed = 0
        self._counted: set[str] = set()
        self._file = _open(file)
        self._attributes = Attributes(file, _signature_offset(file) or 0)
        self._headers: dict[str, int] = {}
        self.variables: dict[str, Variable] = {}
        with self._translated_errors():
            self._walk()

    @property
    def groups(self) -> Set[str]:
        """The paths of all groups, without a leading slash; the root is `""`."""
        return self._headers.keys()

    def children(self, group: str = "") -> set[str]:
        """The names of the groups right below a group."""
        prefix = group + "/" if group else ""
        below = (path[len(prefix) :] for path in self.groups if path.startswith(prefix))
        return {path for path in below if path and "/" not in path}

    def has_attribute(self, group: str, name: str) -> bool:
        """Whether a group of the tree has an attribute of that name."""
        return group in self._headers and name in self._attributes.names(self._headers[group])

    def text(self, group: str, name: str) -> str | None:
        """A text attribute of a group; None where it is missing or no single text."""
        texts = self._one(group, name)
        return texts[0] if texts is not None and len(texts) == 1 else None

    def texts(self, group: str, name: str) -> list[str] | None:
        """A list-of-texts attribute, None where it is missing.

        Keras splits one that would exceed HDF5's 64 KiB for an object header into `name0`,
        `name1`, ... (keras/src/legacy/saving/legacy_h5_format.py).
        """
        whole = self._one(group, name)
        if whole is not None:
            return whole
        parts: list[str] = []
        index = 0
        while (part := self._one(group, f"{name}{index}")) is not None:
            parts += part
            index += 1
        return parts if index else None

    def _one(self, group: str, name: str) -> list[str] | None:
        header = self._headers.get(group)
        return None if header is None else self._attributes.texts(header, name)

    def _walk(self) -> None:
        import h5py

        seen: set[int] = set()
        pending: list[tuple[str, h5py.h5g.GroupID]] = [("", self._file["/"].id)]
        objects = 0
        while pending:
            path, group = pending.pop()
            address = h5py.h5o.get_info(group).addr
            if address in seen:
                continue
            seen.add(address)
            self._headers[path] = address
            prefix = path + "/" if path else ""
            if prefix.count("/") > _MAX_DEPTH:
                raise DamagedError(self.path, f"groups are nested deeper than {_MAX_DEPTH}")
            below: list[tuple[str, h5py.h5g.GroupID]] = []
            names: list[bytes] = []
            group.links.iterate(
                lambda name, info, to=names: (
                    to.append(name) if info.type == h5py.h5l.TYPE_HARD else None
                ),
                info=True,
            )
            objects += len(names)
            if objects > _MAX_OBJECTS:
                raise DamagedError(self.path, f"it has more than {_MAX_OBJECTS} objects")
            for name in names:
                child = h5py.h5o.open(group, name)
                if isinstance(child, h5py.h5g.GroupID):
                    below.append((prefix + _decoded(name), child))
                elif isinstance(child, h5py.h5d.DatasetID):
                    self._add(prefix + _decoded(name), child)
            pending += reversed(below)

    def _add(self, path: str, dataset: h5py.h5d.DatasetID) -> None:
        from h5py import h5s

        if dataset.get_space().get_simple_extent_type() == h5s.NULL:
            return
        self.variables[path] = Variable(
            key=path,
            name=path.removesuffix(":0"),
            dtype=_dtype_name(dataset),
            shape=tuple(dataset.shape),
            reader=partial(self._read, path),
        )

    def _read(self, path: str) -> Array:
        """A dataset's array, in the machine's byte order.

        Raises:
            DamagedError: its bytes are missing, or it claims far more than the file holds.
            UnsupportedError: it is not numeric, or refers to data outside of the file.
        """
        dtype = self.variables[path].dtype
        with self._translated_errors():
            dataset = self._file[path]
            self._refuse_foreign(dataset, path)
            self._refuse_bomb(dataset, path)
            if dtype == "bfloat16":
                import ml_dtypes

                return np.asarray(dataset[()]).view(ml_dtypes.bfloat16)
            try:
                native = np.dtype(dtype)
            except TypeError:
                native = np.dtype(object)
            if native.kind not in "biufc":
                raise UnsupportedError(self.path, f"{path} holds {dtype}, not numbers")
            return np.asarray(dataset[()]).astype(native, copy=False)

    def _refuse_foreign(self, dataset: h5py.Dataset, path: str) -> None:
        if dataset.is_virtual or dataset.external:
            raise UnsupportedError(
                self.path, f"{path} refers to data outside of the file, which is never followed"
            )

    def _refuse_bomb(self, dataset: h5py.Dataset, path: str) -> None:
        """Raise where reading would take far more memory than the file's bytes account for.

        Datasets may be compressed, never written, or share their bytes.
        """
        stored = dataset.id.get_storage_size()
        claimed = math.prod(dataset.shape) * dataset.dtype.itemsize
        if dataset.chunks is not None:
            claimed = max(claimed, math.prod(dataset.chunks) * dataset.dtype.itemsize)
        if stored > self._size:
            raise DamagedError(
                self.path, f"{path} claims {stored} bytes, the file has {self._size}"
            )
        if path not in self._counted:
            self._counted.add(path)
            self._claimed += claimed
        if self._claimed > max(_BOMB_FLOOR, _BOMB_RATIO * self._size):
            raise DamagedError(self.path, f"{path} claims {claimed} bytes, it has {stored}")
        if dataset.id.get_create_plist().get_nfilters():
            chunks: list[int] = []
            dataset.id.chunk_iter(lambda chunk: chunks.append(chunk.size))
            if max(chunks, default=0) > _MAX_FILTERED_CHUNK:
                raise UnsupportedError(
                    self.path, f"{path} is compressed in chunks too large to be read safely"
                )

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Report what the HDF5 library finds wrong with the file as damage to it."""
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
            raise DamagedError(self.path, f"damaged HDF5: {_reason(error)}") from error


def _signature_offset(file: File) -> int | None:
    """Where HDF5 begins: at byte 0 or, after a user block, at 512, 1024, 2048, ...

    An HDF5 file that is the first member of a tar archive stands at 512 as well; that is not it.
    """
    if file.head(512)[257:262] == b"ustar":
        return None
    offset = 0
    while offset + len(SIGNATURE) <= file.size:
        if file.read(offset, len(SIGNATURE)) == SIGNATURE:
            return offset
        offset = offset * 2 or 512
    return None


def _open(file: File) -> h5py.File:
    import h5py

    try:
        return h5py.File(as_stream(file), "r")
    except (OSError, ValueError, RuntimeError) as error:
        cut = re.search(r"truncated file: eof = (\d+).*stored_eof = (\d+)", str(error))
        if cut:
            raise DamagedError(
                file.path,
                f"truncated: it has {cut[1]} of {cut[2]} bytes",
                "copy or download it again",
            ) from error
        raise DamagedError(file.path, f"damaged HDF5: {_reason(error)}") from error


def _dtype_name(dataset: h5py.h5d.DatasetID) -> str:
    """NumPy's name of the element type, in the machine's byte order.

    HDF5 has no bfloat16: h5py stores it as opaque pairs of bytes, as it does nothing else of
    Keras. An attribute `dtype` says so in a `.weights.h5`, but not in Keras's older format.
    """
    try:
        dtype = dataset.dtype
    except (TypeError, ValueError):
        return "unknown"
    return "bfloat16" if dtype == "V2" else str(dtype.name)


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _reason(error: Exception) -> str:
    """The HDF5 library's message, without the words that h5py wraps around it."""
    text = str(error.args[0]) if error.args else type(error).__name__
    wrapped = re.fullmatch(r"[^(]*\((.*)\)", text, re.DOTALL)
    return " ".join((wrapped[1] if wrapped else text).split())
