"""Mutations of models. The content of a file shows which mutations apply to it, at any depth."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Final

from bnstat.errors import BnstatError
from tests.builders.tables import MAGIC
from tests.fuzz import mutate
from tests.fuzz.mutate import Change
from tests.fuzz.recipes import archives, hdf5, pickles, tables
from tests.fuzz.seeds import Seed


def make(rng: Random, seed: Seed) -> tuple[Seed, bool]:
    """Apply one to three mutations to a seed.

    Returns:
        The case, and True if checksums cover every change, so that bnstat must refuse the case or
        give the same output as for the seed.
    """
    if seed.format == "bundle" and rng.random() < 0.15:
        return _one_file(rng, seed, mutate.some_bytes), True
    # The HDF5 library must not read a file that is already damaged: it could end this process.
    has_hdf5 = any(hdf5.SIGNATURE in data for data in seed.files.values())
    for _ in range(1 if has_hdf5 else rng.choice((1, 1, 1, 2, 3))):
        try:
            seed = _changed(rng, seed)
        except _UNREADABLE:
            seed = _one_file(rng, seed, mutate.some_bytes)
    shortened = {name: data[:_LONGEST] for name, data in seed.files.items()}
    return replace(seed, files=shortened), False


_LONGEST: Final = 2 << 20
"""Bytes of a file; files of hundreds of megabytes may take long even if they are valid."""

_UNREADABLE: Final = (
    ValueError, LookupError, ArithmeticError, TypeError, OSError, EOFError, RuntimeError,
    NotImplementedError, MemoryError, zlib.error, zipfile.BadZipFile, BnstatError,
)  # fmt: skip
"""The errors of parsing a file that an earlier mutation has damaged."""


def _changed(rng: Random, seed: Seed) -> Seed:
    choice = rng.random()
    if choice < 0.15:
        return _one_file(rng, seed, mutate.some_bytes)
    if choice < 0.3 and len(seed.files) > 1:
        return files(rng, seed)
    if choice < 0.45 and any(".data-00000" in name for name in seed.files):
        return tables.tensor_bytes(rng, seed)
    return _one_file(rng, seed, change)


def _one_file(rng: Random, seed: Seed, change: Change) -> Seed:
    name = rng.choice(sorted(seed.files))
    return seed.changed(name, change(rng, seed.files[name]))


def files(rng: Random, seed: Seed) -> Seed:
    """Remove, empty, swap or double files."""
    changed = dict(seed.files)
    name, other = rng.choice(sorted(changed)), rng.choice(sorted(changed))
    choice = rng.randrange(5)
    if choice == 0 and name != seed.target:
        del changed[name]
    elif choice == 1:
        changed[name] = b""
    elif choice == 2:
        changed[name], changed[other] = changed[other], changed[name]
    elif choice == 3:
        changed[name] = changed[name] * 2
    else:
        changed[name.replace("-00001", "-00002", 1)] = changed[other]
    return replace(seed, files=changed)


def change(rng: Random, data: bytes) -> bytes:
    """Change a file or a part of one by a mutation of its format."""
    for matches, changes in _FORMATS:
        if matches(data):
            return rng.choice(changes)(rng, data)
    return mutate.some_bytes(rng, data)


def _zip_members(rng: Random, data: bytes) -> bytes:
    return archives.members(rng, data, change)


def _compressed(rng: Random, data: bytes) -> bytes:
    return gzip.compress(change(rng, gzip.decompress(data)), 1)


def _message(rng: Random, data: bytes) -> bytes:
    return mutate.protobuf(rng, data, change)


_FORMATS: tuple[tuple[Callable[[bytes], bool], tuple[Change, ...]], ...] = (
    (lambda data: data[:2] == b"PK", (_zip_members, _zip_members, archives.zip_structure)),
    (lambda data: data[:2] == b"\x1f\x8b", (_compressed,)),
    (lambda data: data[257:262] == b"ustar", (archives.tar_headers,)),
    (lambda data: hdf5.SIGNATURE in data[:1024], hdf5.CHANGES),
    (lambda data: data.endswith(MAGIC), tables.CHANGES),
    (lambda data: data[:1] == b"\x80", (pickles.instructions,)),
    (lambda data: data[8:9] == b"{", (pickles.safetensors_header,)),
    (lambda data: data[:6] == b"\x93NUMPY", (archives.array_header,)),
    (lambda data: data[:1] in (b"{", b"["), (mutate.json_text,)),
    (lambda data: b"\n" in data and data.isascii(), (mutate.text,)),
    (mutate.is_message, (_message, _message, mutate.wiring)),
)
"""How each format is recognised, and its mutations; repeated ones are more likely."""
