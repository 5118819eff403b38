from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.generate import PAGES


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_generated_file_is_current(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == "".join(PAGES[path]()), (
        "the code has changed: run `python -m tests.docs` and commit the result"
    )
