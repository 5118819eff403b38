from __future__ import annotations

import difflib

from tests.docs.surface import RECORD, surface


def test_the_surface_is_the_recorded_one() -> None:
    recorded, current = RECORD.read_text(encoding="utf-8"), surface()
    changes = difflib.unified_diff(recorded.splitlines(), current.splitlines(), "recorded", "now")
    assert recorded == current, (
        "the public surface has changed:\n"
        + "\n".join(changes)
        + "\nA line that begins with `-` breaks programs and needs a new major version."
        "\nIf the change is intended, run `python -m tests.docs`, add a line to"
        " CHANGELOG.md and commit both."
    )
