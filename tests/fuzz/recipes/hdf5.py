"""HDF5 files, changed byte by byte or by HDF5's library."""

from __future__ import annotations

import io
from random import Random
from typing import Any

import h5py
import numpy as np

from tests.fuzz import mutate

SIGNATURE = b"\x89HDF"
_STRUCTURES = (b"TREE", b"SNOD", b"HEAP", b"GCOL", b"OHDR", b"OCHK", b"FRHP", b"BTHD", SIGNATURE)


def structures(rng: Random, data: bytes) -> bytes:
    """Change bytes in place, mostly in structures."""
    choice = rng.random()
    if choice < 0.15:
        return mutate.some_bytes(rng, data)
    places = mutate.places_of(data, *_STRUCTURES)
    if places and choice >= 0.5:
        start = max(0, rng.choice(places) - rng.choice((0, 0, 128)))
        return mutate.in_place(rng, data, start, 256)
    window = min(len(data), 8192)
    start = rng.choice((0, 0, rng.randrange(max(1, len(data) - window))))
    return mutate.in_place(rng, data, start, window)


def objects(rng: Random, data: bytes) -> bytes:
    """Write attributes and datasets of other contents, shapes and types by the library."""
    image = io.BytesIO(data)
    with h5py.File(image, "r+") as file:
        _change_objects(rng, file)
    return image.getvalue()


def _change_objects(rng: Random, file: Any) -> None:
    paths: list[str] = ["/"]
    file.visit(paths.append)
    path = rng.choice(paths)
    item = file[path]
    if item.attrs and rng.random() < 0.6:
        _change_attribute(rng, item.attrs)
    elif isinstance(item, h5py.Dataset):
        del file[path]
        _write_dataset(rng, file, path)
    elif rng.random() < 0.5:
        other = rng.choice(paths)
        if path != "/":
            del file[path]
        file[path.rstrip("/") + "/loop" if path == "/" else path] = rng.choice(
            (h5py.SoftLink(other), h5py.ExternalLink("/etc/passwd", "/"))
        )
    else:
        file[path][f"more{rng.randrange(9)}"] = file[rng.choice(paths)]


def _change_attribute(rng: Random, attributes: Any) -> None:
    key = rng.choice(list(attributes))
    value = attributes[key]
    if isinstance(value, str | bytes):
        raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        changed = mutate.json_text(rng, raw) if raw[:1] == b"{" else rng.choice(mutate.NAMES)
        attributes[key] = changed.replace(b"\0", b"")
    elif isinstance(value, np.ndarray) and value.size:
        items = value.ravel().tolist()
        at = rng.randrange(len(items))
        items[at] = rng.choice((*items, rng.choice(mutate.NAMES).replace(b"\0", b"") or b"x"))
        rng.shuffle(items)
        attributes[key] = items
    else:
        attributes[key] = rng.choice((0, 1.5, b"x", np.zeros(3), [b"a", b"b"], h5py.Empty("f4")))


def _write_dataset(rng: Random, file: Any, path: str) -> None:
    kind = rng.choice(("f2", "f4", "f8", ">f4", "i1", "u8", "c8", "S3", "?", "V2", "V8"))
    shape = rng.choice(((), (0,), (3,), (3, 0), (1, 3, 1), (2, 2), (1,) * 32, (4000,), (10**6,)))
    choice = rng.random()
    if choice < 0.2:
        file[path] = h5py.Empty("f4")
    elif choice < 0.3:
        file.create_dataset(path, shape=rng.choice(((2**20,), (2**26,), (2**40,))), dtype="f4")
    elif choice < 0.4:
        file.create_dataset(path, shape=(2**24,), dtype="f4", chunks=(2**14,), compression="gzip")
    elif choice < 0.5:
        file.create_dataset(path, data=["text", "x"], dtype=h5py.string_dtype())
    else:
        file[path] = np.zeros(shape, kind)


CHANGES: tuple[mutate.Change, ...] = (structures, structures, objects)
"""The mutations of a file; repeated ones are more likely."""
