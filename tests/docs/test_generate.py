"""The generated topics are those that the code gives now."""

from __future__ import annotations

import pytest

from bnstat.docs import read
from tests.docs.generate import PAGES


@pytest.mark.parametrize("topic", PAGES)
def test_a_generated_topic_is_current(topic: str) -> None:
    assert read(topic) == "".join(PAGES[topic]()), (
        "the code has changed: run `python -m tests.docs.generate` and commit the result"
    )
