"""Zip and tar archives."""

from __future__ import annotations

import io
import zipfile
from random import Random

from tests.fuzz import mutate
from tests.fuzz.handmade import zipped


def members(rng: Random, data: bytes, change: mutate.Change) -> bytes:
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


def array_header(rng: Random, data: bytes) -> bytes:
    """Change bytes of an `.npy` file, mostly in its header."""
    start = 128 if rng.random() < 0.8 else len(data)
    return mutate.some_bytes(rng, data[:start]) + data[start:]


def zip_structure(rng: Random, data: bytes) -> bytes:
    """Change bytes of a zip's headers or of its directory."""
    places = mutate.places_of(data, b"PK\1\2", b"PK\3\4", b"PK\5\6")
    if not places:
        return mutate.some_bytes(rng, data)
    return mutate.in_place(rng, data, rng.choice(places), 60)


def tar_headers(rng: Random, data: bytes) -> bytes:
    """Change bytes of a tar's headers, with correct checksums."""
    blocks = range(0, len(data), 512)
    at = rng.choice([at for at in blocks if data[at + 257 : at + 262] == b"ustar"])
    data = mutate.in_place(rng, data, at, 512)
    checked = data[at : at + 148] + b" " * 8 + data[at + 156 : at + 512]
    return data[: at + 148] + b"%06o\0 " % sum(checked) + data[at + 156 :]
