from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, DamagedError
from bnstat.scanning.record import of_error
from tests.fuzz import handmade


@pytest.mark.parametrize("kind", [BnstatError, DamagedError])
def test_an_error_is_one_line_whatever_names_it_contains(kind: type[BnstatError]) -> None:
    error = kind("m.h5", "bn\r\n\x1b[31m\u202e/gamma\udc84 is cut short", "copy it again")
    assert error.what == r"bn\r\n\x1b[31m\u202e/gamma\udc84 is cut short"
    assert str(error) == rf"m.h5: {error.what}; copy it again"


def test_a_tensors_name_as_the_place_is_escaped_and_cut(tmp_path: Path) -> None:
    name = "\x1b[31m" + "x" * 20_000
    tensors = {f"{name}/{role}": np.ones(3, "f4") for role in handmade.ROLES}
    for file, content in handmade.bundle(tensors).items():
        # The last byte of the data no longer fits its checksum.
        damaged = content[:-1] + b"x" if "data" in file else content
        (tmp_path / file).write_bytes(damaged)
    with pytest.raises(DamagedError) as caught:
        bnstat.load(tmp_path / "m", eager=True)
    assert name in caught.value.where
    for message in (str(caught.value), of_error("m", caught.value).reason):
        assert len(message) < 1200
        assert message.isprintable()
        assert caught.value.what in message
