from __future__ import annotations

import pytest

from bnstat.output.numbers import labels


@pytest.mark.parametrize(
    ("shape", "texts"),
    [
        ((4,), ["0", "1", "2", "3"]),
        ((1, 1, 1, 2), ["0", "1"]),
        ((2, 1), ["0", "1"]),
        ((1,), ["0"]),
        ((), ["0"]),
        ((2, 2), ["0:0", "0:1", "1:0", "1:1"]),
        ((2, 1, 2), ["0:0:0", "0:0:1", "1:0:0", "1:0:1"]),
    ],
)
def test_labels(shape, texts):
    assert labels(shape, 0, len(texts)) == texts


def test_a_part():
    assert labels((3, 4), 5, 9) == ["1:1", "1:2", "1:3", "2:0"]
    assert labels((3, 4), 0, 12, 5) == ["0:0", "1:1", "2:2"]
    assert labels((100,), 20, 50, 10) == ["20", "30", "40"]
