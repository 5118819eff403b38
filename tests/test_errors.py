from __future__ import annotations

import pytest

from bnstat.errors import BnstatError, DamagedError


@pytest.mark.parametrize("kind", [BnstatError, DamagedError])
def test_an_error_is_one_line_whatever_names_it_contains(kind: type[BnstatError]) -> None:
    error = kind("m.h5", "bn\r\n\x1b[31m\u202e/gamma\udc84 is cut short", "copy it again")
    assert error.what == r"bn\r\n\x1b[31m\u202e/gamma\udc84 is cut short"
    assert str(error) == rf"m.h5: {error.what}; copy it again"
