"""Zip and tar archives, and Keras archives."""

from __future__ import annotations

import io
import zipfile
from random import Random

from tests.fuzz import mutate
from tests.fuzz.handmade import zipped
from tests.fuzz.recipes.common import any_file
from tests.fuzz.recipes.hdf5 import hdf5_bytes, hdf5_objects
from tests.fuzz.seeds import Seed


def keras_members(rng: Random, seed: Seed) -> Seed:
    """Change a member of a `.keras` by a mutation of its own format, in a valid zip."""

    def change(rng: Random, data: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice(sorted(members)) if members else ""
        if name.endswith(".json"):
            members[name] = mutate.json_text(rng, members[name])
        elif name.endswith("5"):
            weights = Seed("", "hdf5", {name: members[name]}, name)
            members[name] = rng.choice((hdf5_bytes, hdf5_objects))(rng, weights).files[name]
        if rng.random() < 0.1 and name:
            del members[name]
        compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        return zipped(list(members.items()), compression)

    return any_file(rng, seed, change)


def npz_members(rng: Random, seed: Seed) -> Seed:
    """Change bytes of an array's file, mostly in its header, in a valid zip."""

    def change(rng: Random, data: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice(sorted(members))
        start = 128 if rng.random() < 0.8 else len(members[name])
        members[name] = mutate.some_bytes(rng, members[name][:start]) + members[name][start:]
        compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        return zipped(list(members.items()), compression)

    return any_file(rng, seed, change)


def zip_structure(rng: Random, seed: Seed) -> Seed:
    """Change bytes of a zip's headers or of its directory."""

    def change(rng: Random, data: bytes) -> bytes:
        places = []
        for signature in (b"PK\1\2", b"PK\3\4", b"PK\5\6"):
            at = data.find(signature)
            while at >= 0:
                places.append(at)
                at = data.find(signature, at + 4)
        if not places:
            return mutate.some_bytes(rng, data)
        start = rng.choice(places)
        piece = data[start : start + 60]
        changed = rng.choice(mutate.IN_PLACE)(rng, piece)[: len(piece)]
        return data[:start] + changed.ljust(len(piece), b"\0") + data[start + 60 :]

    return any_file(rng, seed, change)


def tar_headers(rng: Random, seed: Seed) -> Seed:
    """Change bytes of a tar's headers, with correct checksums."""
    import gzip

    name = sorted(seed.files)[0]
    data = seed.files[name]
    packed = data[:2] == b"\x1f\x8b"
    plain = gzip.decompress(data) if packed else data
    headers = [at for at in range(0, len(plain), 512) if plain[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return zip_structure(rng, seed)
    at = rng.choice(headers)
    header = rng.choice(mutate.IN_PLACE)(rng, plain[at : at + 512])[:512].ljust(512, b"\0")
    checked = header[:148] + b" " * 8 + header[156:]
    header = checked[:148] + b"%06o\0 " % sum(checked) + checked[156:]
    plain = plain[:at] + header + plain[at + 512 :]
    return seed.changed(name, gzip.compress(plain, 1) if packed else plain)
