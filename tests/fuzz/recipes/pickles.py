"""Mutations of PyTorch's pickles and of the header of safetensors."""

from __future__ import annotations

import contextlib
import pickletools
from random import Random

from tests.fuzz import mutate, ports

_INSTRUCTIONS = (
    b"(", b"t", b"R", b"b", b"Q", b"u", b"s", b"]", b"}", b"0", b"1", b"2", b"\x85", b"\x87", b"N",
    b"e", b"a", b"J\xff\xff\xff\x7f", b"J\0\0\0\x80", b"r\xff\xff\xff\xff", b"h\0",
)  # fmt: skip


def safetensors_header(rng: Random, data: bytes) -> bytes:
    """Change the header, with a correct length."""
    end = 8 + int.from_bytes(data[:8], "little")
    return ports.with_length(mutate.json_text(rng, data[8:end])) + data[end:]


def instructions(rng: Random, data: bytes) -> bytes:
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
