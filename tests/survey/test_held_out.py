"""Some of the networks whose training mode bnstat should find."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.survey.held_out import Case, outcome, verdict_of

CASES = [
    Case("broken", "keras", False, "keras", 0),
    Case("broken", "tf_keras", True, "h5", 0),
    Case("inference", "keras", True, "export", 0),
    Case("inference", "tf_keras", True, "checkpoint", 0),
    Case("updated", "keras", False, "saved_model", 1),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_verdict_is_not_wrong(case: Case, tmp_path: Path) -> None:
    record = verdict_of(case, tmp_path)
    assert outcome(case, record) != "wrong"
    if case.has_bias:
        assert outcome(case, record) == "right"
