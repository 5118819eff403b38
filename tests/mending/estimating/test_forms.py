"""A network whose statistics were never updated is recalibrated, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import bnstat
from bnstat import recalibrate
from tests.builders.digits import DATA, TEST, TRAIN, keras_network, save_graph_mode, save_keras

FORMS = {
    "tf_keras": ("saved_model", "export", "model.keras", "model.h5", "frozen.pb"),
    "keras": ("saved_model", "export", "model.keras", "model.h5", "frozen.pb"),
    "graph_mode": ("model-150", "frozen.pb"),
}


@pytest.mark.slow
@pytest.mark.parametrize("by", FORMS)
def test_every_form_of_a_network_is_mended_alike(
    built_once: Callable[..., Path], by: str, tmp_path: Path
) -> None:
    def write(folder: Path) -> None:
        if by == "graph_mode":
            save_graph_mode(folder)
        else:
            save_keras(keras_network(import_module(by)), folder)

    trained = built_once(f"digits-{by}", write)
    first = None
    for form in FORMS[by]:
        path = trained / form
        result = recalibrate(path, TRAIN, tmp_path / form, labels="labels")
        assert result.accuracy is not None
        before, after = result.accuracy
        assert before < 0.5 < 0.95 < after, form
        assert not result.left
        assert [each.mean.size for each in result.layers] == [8, 16, 16]
        first = first or result
        for one, other in zip(result.layers, first.layers, strict=True):
            np.testing.assert_allclose(one.mean, other.mean, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(one.variance, other.variance, rtol=1e-4)
        copy = bnstat.load(tmp_path / form)
        found = bnstat.check(copy, select=["BN001", "BN002", "BN003"])
        # The name of a checkpoint is all that shows how often it was updated.
        assert [each for each in found if each.severity != "info"] == []
        assert (found == []) == (copy.source.step is None)


def test_what_the_training_graph_does_not_read_is_left() -> None:
    with pytest.raises(Exception, match="training=True is built in"):
        recalibrate(DATA / "digits_no_updates/run", TEST)
