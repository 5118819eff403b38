"""`apply` reads every export: of every model, in every format, with every framework's names."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import bnstat
from bnstat.cli import main
from bnstat.exchange.naming import NAMINGS, ExportOptions
from bnstat.mending.writers import WRITERS
from bnstat.model import BatchNorm, Model, Source
from bnstat.scanning.walk import Choice, Unreadable, walk
from bnstat.storage.local import LocalFolder
from tests.builders.mended import new_values
from tests.builders.oracle import same_bits
from tests.conftest import SHARED
from tests.formats.keras.saved import LIBRARIES, saved_weights, wrapped
from tests.mending.exported import DOCUMENTS, KINDS, dtype, exported, fitted, layer, model
from tests.mending.originals import ROOT, assert_stored
from tests.output.models import variable

_LARGEST = 30_000


def _models(root: Path) -> list[str]:
    """Return the paths of all models below a folder, relative to it."""
    found = walk([LocalFolder(str(root))], Choice()) if root.is_dir() else ()
    return [
        Path(each.path).relative_to(root).as_posix()
        for each in found
        if not isinstance(each, Unreadable)
    ]


def _assert_round_trips(path: Path, folder: Path) -> None:
    try:
        of = bnstat.load(path, eager=True)
    except bnstat.BnstatError:
        pytest.skip("this file cannot be read")
    if not (of.layers or of.undecided) or of.channels > _LARGEST:
        pytest.skip("no layers, or too many for a test")
    expected = {
        each.key: stored.array(role) for stored in of for role, each in stored.variables.items()
    }
    undecided = {
        each.key: each.read() for stored in (*of, *of.undecided) for each in stored.undecided
    }
    for kind, names in product(KINDS, NAMINGS):
        if not of.layers and kind not in DOCUMENTS:
            continue
        found = fitted(of, exported(of, kind, folder, ExportOptions(names)))
        assert set(found) == {*expected, *(undecided if kind in DOCUMENTS else ())}, (kind, names)
        for key, array in found.items():
            assert same_bits(array, {**undecided, **expected}[key]), (kind, names, key)


def _assert_mended(path: Path, folder: Path) -> None:
    """Assert that a copy has new values, and that its copy with the old values equals the model."""
    try:
        of = bnstat.load(path, reader="native")
        values = new_values(of)
    except bnstat.BnstatError as error:
        pytest.skip(f"cannot be read: {error.what}")
    if not of.layers or of.source.format not in WRITERS:
        pytest.skip("has no batch norm, or a format that is not written")
    for name in ("new", "old"):
        (folder / name).mkdir()
    ending = "".join(path.suffixes[-2:])
    applied = bnstat.apply(path, values, folder / f"new/m{ending}")
    assert_stored(applied.output, values)
    back = bnstat.apply(applied.output, of, folder / f"old/m{ending}")
    assert bnstat.diff(of, bnstat.load(back.output)).equal


@pytest.mark.parametrize("path", _models(ROOT / "tests/data"))
def test_models_of_the_project(path: str, tmp_path: Path) -> None:
    _assert_round_trips(ROOT / "tests/data" / path, tmp_path)


@pytest.mark.wild
@pytest.mark.parametrize("assert_works", [_assert_round_trips, _assert_mended])
@pytest.mark.parametrize(
    "path", [f"{name}/{path}" for name in ("real", "written") for path in _models(SHARED / name)]
)
def test_models_of_others(path: str, assert_works: Any, tmp_path: Path) -> None:
    assert_works(SHARED / path, tmp_path)


@pytest.mark.parametrize("names", NAMINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_any_names_and_roles(kind: str, names: str, tmp_path: Path) -> None:
    """Statistics alone under meaningless names, NaN of any bits, and narrow types."""
    bits = np.array([0x7FC1, 0xFFC0, 0x3F80, 0x8000], np.uint16).view(dtype("bfloat16"))
    of = model(
        layer("x", moving_mean=bits, moving_variance=bits),
        layer("block/y_ema", gamma=bits, moving_mean=bits, moving_variance=bits[::-1]),
        layer("z", beta=np.float16([0.1, 2]), moving_mean=np.float16([1, 2]),
              moving_variance=np.ones((1, 2, 1), "f2")),
    )  # fmt: skip
    found = fitted(of, exported(of, kind, tmp_path, ExportOptions(names)))
    assert len(found) == 8
    for each in of:
        for role, stored in each.variables.items():
            assert same_bits(found[stored.key], np.ascontiguousarray(each.array(role)))


@pytest.mark.parametrize("names", NAMINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_scale_and_shift_are_refused(kind: str, names: str, tmp_path: Path) -> None:
    statistics = {role: np.ones(3, "f4") for role in ("moving_mean", "moving_variance")}
    of = model(layer("bn", **statistics), layer("b/other", **statistics))
    path = exported(of, kind, tmp_path, ExportOptions(names, folded=True, epsilon=0.001))
    with pytest.raises(bnstat.UnsupportedError, match=r"exported with --folded.*without --folded"):
        fitted(of, path)


def test_undecided_variables_by_their_keys(tmp_path: Path) -> None:
    array = np.arange(3, dtype="f4")
    undecided = [variable("maybe/v0", array), variable("maybe/v1", array + 1)]
    of = Model(
        Source("m", "keras-weights"),
        [layer("bn", moving_mean=array, moving_variance=array)],
        incomplete=[BatchNorm("maybe", {}, undecided=undecided)],
    )
    path = exported(of, "json", tmp_path)
    keys = {"bn/moving_mean", "bn/moving_variance", "maybe/v0", "maybe/v1"}
    assert set(fitted(of, path)) == keys
    text = path.read_text()
    for wrong, message in (
        (text.replace('"maybe/v0"', '"maybe/v9"'), r"maybe.*'maybe/v9' is not a role"),
        (text.replace('"variable": "maybe/v0"', '"variable": 3'),
         r"undecided\[0\]\.undecided\[0\]\.variable"),
        ('{"layers": [], "undecided": {}}', "undecided is not a list"),
    ):  # fmt: skip
        path.write_text(wrong)
        with pytest.raises(bnstat.BnstatError, match=message):
            fitted(of, path)


def _run(*arguments: object) -> None:
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("library", LIBRARIES)
def test_weights_whose_layers_are_undecided(library: str, tmp_path: Path) -> None:
    module = LIBRARIES[library]
    net = wrapped(module)
    path = saved_weights(module, net, tmp_path, ".weights.h5")
    config, values, copy = (tmp_path / name for name in ("m.json", "v.json", "c.weights.h5"))
    config.write_text(net.to_json())
    for options in (("--config", config), ()):
        _run("export", path, *options, "-o", values)
        _run("apply", path, values, *options, "-o", copy)
        assert copy.read_bytes() == path.read_bytes()
        copy.unlink()

    document = json.loads(values.read_text())
    (maybe,) = document["undecided"]
    maybe["undecided"][0]["values"][1] = 0.5
    values.write_text(json.dumps(document))
    _run("apply", path, values, "-o", copy)
    (changed,), (before,) = (bnstat.load(each).undecided for each in (copy, path))
    expected = [each.read().copy() for each in before.undecided]
    expected[0][1] = 0.5
    for each, array in zip(changed.undecided, expected, strict=True):
        assert same_bits(each.read(), array)
