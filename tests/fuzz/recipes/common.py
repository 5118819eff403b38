"""Mutations of files of any format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from tests.fuzz import mutate
from tests.fuzz.seeds import Seed

Recipe = Callable[[Random, Seed], Seed]


def any_file(
    rng: Random, seed: Seed, change: Callable[[Random, bytes], bytes], ending: str = ""
) -> Seed:
    names = [name for name in sorted(seed.files) if name.endswith(ending)]
    if not names:
        return seed
    name = rng.choice(names)
    return seed.changed(name, change(rng, seed.files[name]))


def raw_bytes(rng: Random, seed: Seed) -> Seed:
    """Change bytes of any file."""
    return any_file(rng, seed, mutate.some_bytes)


def files(rng: Random, seed: Seed) -> Seed:
    """Remove, empty, swap or double files."""
    changed = dict(seed.files)
    name, other = rng.choice(sorted(changed)), rng.choice(sorted(changed))
    choice = rng.randrange(5)
    if choice == 0 and len(changed) > 1 and name != seed.target:
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
