"""Compare a copy with its original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bnstat
from tests.builders.mended import NewValues, new_values
from tests.builders.oracle import same_bits

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "tests/data/digits/saved_model"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_mended(copy: Path, original: Path) -> None:
    assert_stored(copy, new_values(bnstat.load(original)))


def assert_stored(path: Path | str, values: NewValues) -> None:
    """Assert that the layers of a model have these values."""
    for layer in bnstat.load(path):
        for role, array in values[layer.name].items():
            assert same_bits(layer.array(role), array)


def mended(original: Path, copy: Path | None = None, **options: Any) -> NewValues:
    """Write a copy of a model with new values, and return these."""
    values = new_values(bnstat.load(original))
    applied = bnstat.apply(original, values, copy, **options)
    assert applied.output == str(copy or original)
    assert applied.moved > 0
    return values
