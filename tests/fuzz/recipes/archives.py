"""Zip and tar archives, and Keras archives."""

from __future__ import annotations

import gzip
import io
import zipfile
from random import Random

from tests.fuzz import mutate
from tests.fuzz.handmade import zipped
from tests.fuzz.recipes import hdf5


def members_of(data: bytes) -> dict[str, bytes]:
    """Return name -> content of the members of a zip."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def keras_members(rng: Random, data: bytes) -> bytes:
    """Change a member of a `.keras` by a mutation of its own format, in a valid zip."""
    members = members_of(data)
    name = rng.choice(sorted(members))
    if name.endswith(".json"):
        members[name] = mutate.json_text(rng, members[name])
    elif name.endswith("5"):
        members[name] = rng.choice((hdf5.structures, hdf5.objects))(rng, members[name])
    if rng.random() < 0.1:
        del members[name]
    compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    return zipped(list(members.items()), compression)


def npz_members(rng: Random, data: bytes) -> bytes:
    """Change bytes of an array's file, mostly in its header, in a valid zip."""
    members = members_of(data)
    name = rng.choice(sorted(members))
    start = 128 if rng.random() < 0.8 else len(members[name])
    members[name] = mutate.some_bytes(rng, members[name][:start]) + members[name][start:]
    compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    return zipped(list(members.items()), compression)


def zip_structure(rng: Random, data: bytes) -> bytes:
    """Change bytes of a zip's headers or of its directory."""
    places = mutate.places_of(data, b"PK\1\2", b"PK\3\4", b"PK\5\6")
    if not places:
        return mutate.some_bytes(rng, data)
    return mutate.in_place(rng, data, rng.choice(places), 60)


def tar_headers(rng: Random, data: bytes) -> bytes:
    """Change bytes of a tar's headers, with correct checksums, or the structure of a zip."""
    is_packed = data[:2] == b"\x1f\x8b"
    plain = gzip.decompress(data) if is_packed else data
    headers = [at for at in range(0, len(plain), 512) if plain[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return zip_structure(rng, data)
    at = rng.choice(headers)
    plain = mutate.in_place(rng, plain, at, 512)
    checked = plain[at : at + 148] + b" " * 8 + plain[at + 156 : at + 512]
    plain = plain[: at + 148] + b"%06o\0 " % sum(checked) + plain[at + 156 :]
    return gzip.compress(plain, 1) if is_packed else plain
