"""Mutations of what networks are ported to: PyTorch's pickles, the header of safetensors."""

from __future__ import annotations

import io
import pickletools
import zipfile
from random import Random

from tests.fuzz import mutate, ports

_INSTRUCTIONS = (
    b"(", b"t", b"R", b"b", b"Q", b"u", b"s", b"]", b"}", b"0", b"1", b"2", b"\x85", b"\x87", b"N",
    b"e", b"a", b"J\xff\xff\xff\x7f", b"J\0\0\0\x80", b"r\xff\xff\xff\xff", b"h\0",
)  # fmt: skip


def safetensors_header(rng: Random, data: bytes) -> bytes:
    """The header changed, with its length right."""
    end = 8 + int.from_bytes(data[:8], "little")
    return ports.with_length(mutate.json_text(rng, data[8:end])) + data[end:]


def pickle_instructions(rng: Random, data: bytes) -> bytes:
    """The pickle in PyTorch's zip changed, the zip sound, or the pickles of the older form."""
    if not data.startswith(b"PK"):
        end = data.rindex(b"e.") + 2
        return instructions(rng, data[:end]) + data[end:]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name.removeprefix("m/"): archive.read(name) for name in archive.namelist()}
    members["data.pkl"] = instructions(rng, members["data.pkl"])
    return ports.pytorch_members(members)


def instructions(rng: Random, data: bytes) -> bytes:
    """One to three instructions lost, repeated, replaced or followed by others."""
    places = _places(data)
    chosen = {rng.randrange(len(places) - 1) for _ in range(rng.choice((1, 1, 3)))}
    for at in sorted(chosen, reverse=True):
        start, end = places[at], places[at + 1]
        choice, one = rng.randrange(5), data[start:end]
        if choice == 0:
            one = b""
        elif choice == 1:
            one *= rng.choice((2, 100, 5000))
        elif choice == 2:
            one = mutate.some_bytes(rng, one)
        elif choice == 3:
            one = rng.choice(_INSTRUCTIONS)
        else:
            other = rng.choice(places)
            one += data[other : other + rng.randrange(1, 200)]
        data = data[:start] + one + data[end:]
    return data


def _places(data: bytes) -> list[int]:
    """Where the instructions of a run of pickles begin, and its end."""
    places = [0]
    while places[-1] < len(data):
        start = places.pop()
        places += [start + place for _, _, place in pickletools.genops(data[start:])]
        places.append(places[-1] + 1)
    return places
