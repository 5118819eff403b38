"""Public model files, compared with their contents as checked by hand (`truth.json`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.model import ROLES, Model
from tests.conftest import SHARED

SETS = sorted(path.parent.name for path in (SHARED / "real").glob("*/truth.json"))
CAUSES = {
    "bad-mlzoo-lfs-ckpt": "git-lfs pointer",
    "bad-mlzoo-lfs-h5": "git-lfs pointer",
    "bad-mlzoo-lfs-savedmodel": "git-lfs pointer",
    "derived-trunc-ecg-keras": "damaged",
    "derived-trunc-eegnet-h5": "truncated",
    "derived-trunc-phasenet-data": "truncated",
    "derived-trunc-phasenet-index": "truncated",
}


def truths(*kinds: str) -> list[str]:
    return [slug for slug in SETS if _truth(SHARED / "real", slug)["kind"] in kinds]


def with_configs() -> list[str]:
    return [slug for slug in truths("bn") if _truth(SHARED / "real", slug).get("config_bn")]


def _truth(real: Path, slug: str) -> dict[str, Any]:
    return json.loads((real / slug / "truth.json").read_text())


def _load(real: Path, slug: str, **options: Any) -> Model:
    return bnstat.load(real / slug / _truth(real, slug)["target"], **options)


def _name(key: str, layer: dict[str, Any]) -> str:
    return layer.get("user_name") or key


def test_every_kind_of_file_occurs(real: Path) -> None:
    kinds = {_truth(real, slug)["kind"] for slug in SETS}
    assert kinds == {"bn", "no-bn", "index-only", "unreadable"}


@pytest.mark.parametrize("slug", truths("bn", "index-only"))
def test_layers_variables_shapes_and_dtypes(real: Path, slug: str) -> None:
    truth = _truth(real, slug)
    model = _load(real, slug, values=truth["kind"] != "index-only")
    expected = {
        _name(key, layer): {
            role: (layer["vars"][role], tuple(layer[role]["shape"]), layer[role]["dtype"])
            for role in ROLES
            if layer[role] is not None
        }
        for key, layer in truth["layers"].items()
    }
    found = {
        layer.name: {
            role: (variable.key, variable.shape, variable.dtype)
            for role, variable in layer.variables.items()
        }
        for layer in model
    }
    assert found == expected
    assert len(model) == truth["n_bn_layers"]
    assert not model.incomplete
    assert not any(layer.undecided for layer in model)


@pytest.mark.parametrize("slug", truths("bn"))
def test_values(real: Path, slug: str) -> None:
    model = _load(real, slug)
    for key, layer in _truth(real, slug)["layers"].items():
        for role in ROLES:
            if layer[role] is None:
                continue
            array = model[_name(key, layer)].array(role)
            assert array is not None
            wide, truth = array.astype(np.float64), layer[role]
            assert (wide.min(), wide.max()) == (truth["min"], truth["max"])
            computed, expected = (wide.mean(), wide.std()), (truth["mean"], truth["std"])
            assert computed == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("slug", with_configs())
def test_order_and_settings_come_from_the_configuration(real: Path, slug: str) -> None:
    listed = _truth(real, slug)["config_bn"]
    model = _load(real, slug)
    assert [layer.name for layer in model] == [name for _, name, *_ in listed]
    assert {layer.evidence for layer in model} == {"config"}
    for layer, (_, _, *settings) in zip(model, listed, strict=True):
        if settings:
            scale, center, epsilon, momentum, axis = settings
            axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
            assert ("gamma" in layer.variables, "beta" in layer.variables) == (scale, center)
            assert (layer.epsilon, layer.momentum, layer.axis) == (epsilon, momentum, axis)


@pytest.mark.parametrize("slug", truths("bn", "index-only"))
def test_lookalikes_belong_to_no_layer(real: Path, slug: str) -> None:
    truth = _truth(real, slug)
    model = _load(real, slug, values=truth["kind"] != "index-only")
    of_layers = {key for layer in truth["layers"].values() for key in layer["vars"].values()}
    taken = {verdict.key for verdict in model.explain() if verdict.layer is not None}
    assert taken == {key for key in of_layers if key is not None}


@pytest.mark.parametrize("slug", truths("no-bn"))
def test_files_without_batch_norm(real: Path, slug: str) -> None:
    model = _load(real, slug)
    assert len(model) == 0
    assert not model.incomplete


@pytest.mark.parametrize("slug", truths("index-only"))
def test_values_without_a_data_file(real: Path, slug: str) -> None:
    with pytest.raises(bnstat.NotFoundError, match=r"data-00000-of-00001: .*data file is missing"):
        [layer.gamma for layer in _load(real, slug)]


@pytest.mark.parametrize("slug", truths("unreadable"))
def test_unreadable_files_name_the_cause(real: Path, slug: str) -> None:
    with pytest.raises(bnstat.BnstatError, match=CAUSES[slug]):
        [layer.array(role) for layer in _load(real, slug) for role in ROLES]


def test_the_rest_of_a_truncated_data_file_is_readable(real: Path) -> None:
    whole = _load(real, "phasenet-tf1-adam")
    cut = _load(real, "derived-trunc-phasenet-data")
    readable = 0
    assert cut.keys() == whole.keys()
    for layer in cut:
        try:
            found = layer.gamma
        except bnstat.DamagedError:
            continue
        np.testing.assert_array_equal(found, whole[layer.name].gamma)
        readable += 1
    assert 0 < readable < len(whole)


def test_a_saved_model_without_its_graph_has_a_note(real: Path) -> None:
    notes = _load(real, "bad-serving-nopb-savedmodel").notes
    assert any("saved_model.pb is missing" in note for note in notes)
