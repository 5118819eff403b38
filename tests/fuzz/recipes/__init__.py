"""Mutations of models. The content of a file shows which mutations apply to it, at any depth."""

from __future__ import annotations

import contextlib
import gzip
import io
import pickletools
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Final

from bnstat.errors import BnstatError
from tests.builders.tables import MAGIC
from tests.fuzz import mutate, ports
from tests.fuzz.handmade import zipped
from tests.fuzz.mutate import Change
from tests.fuzz.recipes import hdf5, tables
from tests.fuzz.seeds import Seed


def make(rng: Random, seed: Seed) -> tuple[Seed, bool]:
    """Apply one to three mutations to a seed.

    Return the case, and True if checksums cover every change, so that bnstat must refuse the case
    or give the same output as for the seed.
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
    for matches, changes in _FORMATS:
        if matches(data):
            return rng.choice(changes)(rng, data)
    return mutate.some_bytes(rng, data)


def _zip_members(rng: Random, data: bytes) -> bytes:
    """Change a member by a mutation of its own format, or remove it, in a valid zip."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(contents))
    if rng.random() < 0.1:
        del contents[name]
    else:
        contents[name] = change(rng, contents[name])
    compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    return zipped(list(contents.items()), compression)


def _array_header(rng: Random, data: bytes) -> bytes:
    start = 128 if rng.random() < 0.8 else len(data)
    return mutate.some_bytes(rng, data[:start]) + data[start:]


def _zip_structure(rng: Random, data: bytes) -> bytes:
    places = mutate.places_of(data, b"PK\1\2", b"PK\3\4", b"PK\5\6")
    if not places:
        return mutate.some_bytes(rng, data)
    return mutate.in_place(rng, data, rng.choice(places), 60)


def _tar_headers(rng: Random, data: bytes) -> bytes:
    """Change bytes of a tar's headers, with correct checksums."""
    blocks = range(0, len(data), 512)
    at = rng.choice([at for at in blocks if data[at + 257 : at + 262] == b"ustar"])
    data = mutate.in_place(rng, data, at, 512)
    checked = data[at : at + 148] + b" " * 8 + data[at + 156 : at + 512]
    return data[: at + 148] + b"%06o\0 " % sum(checked) + data[at + 156 :]


_INSTRUCTIONS = (
    b"(", b"t", b"R", b"b", b"Q", b"u", b"s", b"]", b"}", b"0", b"1", b"2", b"\x85", b"\x87", b"N",
    b"e", b"a", b"J\xff\xff\xff\x7f", b"J\0\0\0\x80", b"r\xff\xff\xff\xff", b"h\0",
)  # fmt: skip


def _safetensors_header(rng: Random, data: bytes) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    return ports.with_length(mutate.json_text(rng, data[8:end])) + data[end:]


def _instructions(rng: Random, data: bytes) -> bytes:
    """Remove, repeat or replace one to three instructions, or insert others after them."""
    offsets = _offsets(data)
    chosen = {rng.randrange(len(offsets) - 1) for _ in range(rng.choice((1, 1, 3)))}
    for at in sorted(chosen, reverse=True):
        start, end = offsets[at], offsets[at + 1]
        choice, changed = rng.randrange(5), data[start:end]
        if choice == 0:
            changed = b""
        elif choice == 1:
            changed *= rng.choice((2, 100, 5000))
        elif choice == 2:
            changed = mutate.some_bytes(rng, changed)
        elif choice == 3:
            changed = rng.choice(_INSTRUCTIONS)
        else:
            other = rng.choice(offsets)
            changed += data[other : other + rng.randrange(1, 200)]
        data = data[:start] + changed + data[end:]
    return data


def _offsets(data: bytes) -> list[int]:
    """Return the offsets of the instructions in consecutive pickles, and their end."""
    offsets = [0]
    with contextlib.suppress(ValueError):  # PyTorch's storages may follow.
        while data[offsets[-1] :].startswith(b"\x80"):
            start = offsets[-1]
            pickle = [start + offset for _, _, offset in pickletools.genops(data[start:])]
            offsets += [*pickle[1:], pickle[-1] + 1]
    return offsets


def _compressed(rng: Random, data: bytes) -> bytes:
    return gzip.compress(change(rng, gzip.decompress(data)), 1)


_message = partial(mutate.protobuf, leaf=change)
_FORMATS: tuple[tuple[Callable[[bytes], bool], tuple[Change, ...]], ...] = (
    (lambda data: data[:2] == b"PK", (_zip_members, _zip_members, _zip_structure)),
    (lambda data: data[:2] == b"\x1f\x8b", (_compressed,)),
    (lambda data: data[257:262] == b"ustar", (_tar_headers,)),
    (lambda data: hdf5.SIGNATURE in data[:1024], hdf5.CHANGES),
    (lambda data: data.endswith(MAGIC), tables.CHANGES),
    (lambda data: data[:1] == b"\x80", (_instructions,)),
    (lambda data: data[8:9] == b"{", (_safetensors_header,)),
    (lambda data: data[:6] == b"\x93NUMPY", (_array_header,)),
    (lambda data: data[:1] in (b"{", b"["), (mutate.json_text,)),
    (lambda data: b"\n" in data and data.isascii(), (mutate.text,)),
    (mutate.is_message, (_message, _message, mutate.wiring)),
)
"""How each format is recognised, and its mutations; repeated ones are more likely."""
