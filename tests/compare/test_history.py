from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bnstat
from bnstat.checks import check
from bnstat.errors import BnstatError, DamagedError
from bnstat.model import BatchNorm, Model, Source, Summary, Variable
from bnstat.run_history import MEASURES, Track, history
from tests.output.models import layer, model, usual


def at(step: int, *layers: BatchNorm) -> tuple[str, Model]:
    return f"model-{step}", model(*layers, source=Source("runs", "tf2-checkpoint", step=step))


def run_of(*checkpoints: Mapping[str, Sequence[float]]) -> dict[str, Track]:
    """Return role -> track of a layer `bn` that has these arrays in each checkpoint."""
    entries = [
        at(n, layer("bn", {role: np.array(array, float) for role, array in arrays.items()}))
        for n, arrays in enumerate(checkpoints)
    ]
    return {role: track for (_, role), track in history(entries).tracks.items()}


NUMBERS = st.lists(st.floats(width=32), min_size=1, max_size=4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), NUMBERS), min_size=1, max_size=4))
def test_any_numbers_give_what_a_summary_gives(checkpoints: list[dict[str, list[float]]]) -> None:
    entries = [
        at(n, *(layer(name, {"beta": np.array(array)}) for name, array in layers.items()))
        for n, layers in enumerate(checkpoints)
    ]
    run = history(entries)
    assert [(each.name, each.step) for each in run.checkpoints] == [
        (f"model-{n}", n) for n in range(len(checkpoints))
    ]
    assert {name for name, _ in run.tracks} == {name for layers in checkpoints for name in layers}
    for place, layers in enumerate(checkpoints):
        for name in run.layers:
            track = run.tracks[name, "beta"]
            if name not in layers:
                assert all(np.isnan(getattr(track, measure)[place]) for measure in MEASURES)
                continue
            summary = Summary.of(np.array(layers[name]))
            assert track.bad[place] == summary.bad
            near = {"rel": 1e-9, "abs": 1e-9 * max(1, abs(summary.max)), "nan_ok": True}
            for measure in ("mean", "std", "min", "max"):
                expected = pytest.approx(getattr(summary, measure), **near)
                assert getattr(track, measure)[place] == expected
            if place and layers[name] == checkpoints[place - 1].get(name):
                assert track.change[place] == 0


NAN = np.nan
ROOT = np.sqrt


@pytest.mark.parametrize(
    ("role", "arrays", "others", "change"),
    [
        # relative to the role's own size
        ("gamma", [[3, 4], [3, 4.5]], {}, ROOT(0.125) / ROOT((9 + 4.5**2) / 2)),
        # in standard deviations
        ("moving_mean", [[0, 0], [1, 7]], {"moving_variance": [4, 12]}, 5 / ROOT(8)),
        # in units of gamma, if the layer has one
        ("beta", [[0, 0], [1, 7]], {"gamma": [-2, 2]}, 5 / 2),
        ("beta", [[0, 0], [1, 7]], {}, 5),
        ("gamma", [[1, NAN], [1, NAN]], {}, 0),
        ("gamma", [[0.0], [-0.0]], {}, 0),
        # The least movement is not 0.
        ("gamma", [[1, 1e-300], [1, 2e-300]], {}, 5e-324),
        # Other shapes are not compared.
        ("gamma", [[1, 2], [1, 2, 3]], {}, NAN),
        ("gamma", [[NAN, NAN], [NAN]], {}, NAN),
    ],
)
def test_the_change_since_the_checkpoint_before(role, arrays, others, change) -> None:
    found = run_of(*({role: array, **others} for array in arrays))[role].change
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(change, nan_ok=True, abs=0)
    assert (found[1] == 0) == (change == 0)


@pytest.mark.parametrize(
    ("arrays", "turn"),
    [
        ([[0, 0], [1, 2], [2, 4]], 1),
        ([[0, 0], [1, 2], [0, 0]], -1),
        ([[0, 0], [1, 0], [1, 1]], 0),
        ([[0, 0], [1, 0], [1, 0]], NAN),
    ],
)
def test_the_turn(arrays: list[list[float]], turn: float) -> None:
    turns = run_of(*({"beta": array} for array in arrays))["beta"].turn
    assert turns.tolist() == pytest.approx([NAN, NAN, turn], nan_ok=True)


def test_layers_that_come_and_go() -> None:
    a, b = usual("a", seed=1), usual("b", seed=2)
    run = history([at(1, a), at(2, a, b), at(3, b, a)])
    assert run.layers == ["b", "a"]
    assert np.isnan(run.tracks["b", "gamma"].mean).tolist() == [True, False, False]
    assert np.isnan(run.tracks["b", "gamma"].change).tolist() == [True, True, False]
    assert run.tracks["a", "gamma"].change.tolist()[1:] == [0, 0]


def test_a_checkpoint_that_cannot_be_read_is_skipped() -> None:
    def broken() -> np.ndarray:
        raise DamagedError("model-3.data-00000-of-00001", "is truncated")

    variables = dict(usual("bn").variables)
    variables["moving_mean"] = Variable("bn/moving_mean", "", "float32", (8,), broken)
    gone = DamagedError("model-2.index", "is empty")
    first, last = usual("bn", seed=1), usual("bn", seed=4)
    run = history([at(1, first), ("model-2", gone), at(3, BatchNorm("bn", variables)), at(4, last)])
    assert [each.name for each in run.checkpoints] == ["model-1", "model-4"]
    assert [(each.name, str(each.error)) for each in run.skipped] == [
        ("model-2", "model-2.index: is empty"),
        ("model-3", "model-3.data-00000-of-00001: is truncated"),
    ]
    moved = last.array("beta") - first.array("beta")
    expected = np.sqrt(np.mean(moved**2) / np.mean(last.array("gamma") ** 2))
    assert run.tracks["bn", "beta"].change[1] == pytest.approx(expected, rel=1e-6)


def test_without_checkpoints_or_layers() -> None:
    assert history([]).tracks == {}
    assert check(history([])) == []
    empty = history([at(1), at(2)])
    assert (len(empty.checkpoints), empty.layers) == (2, [])
    assert check(empty) == []
    assert list(history([at(1, usual("bn"))]).only(["beta"]).tracks) == [("bn", "beta")]


def test_arrays_of_a_checkpoint_are_released() -> None:
    import gc
    import weakref

    watched = []

    def entries():
        for number in range(4):
            name, each = at(number, usual("bn", seed=number))
            watched.append(weakref.ref(each))
            yield name, each
            del each
            gc.collect()
            assert sum(ref() is not None for ref in watched) <= 1

    history(entries())


RUN = Path(__file__).parent.parent / "data" / "digits" / "run"
BROKEN = RUN.parent.parent / "digits_no_updates" / "saved_model"


@pytest.mark.parametrize("kind", [str, Path])
def test_functions_of_models_load_paths(kind: type) -> None:
    run = history(kind(RUN))
    assert [each.name for each in run.checkpoints][-1] == "model-400"
    assert run.tracks.keys() == history(bnstat.load_all(RUN)).tracks.keys()
    names = [each.name for each in history([kind(RUN), bnstat.load(RUN)]).checkpoints]
    assert names == ["model-400", "model-400"]
    assert len(history(bnstat.load(RUN)).checkpoints) == 1
    assert bnstat.diff(kind(RUN), kind(RUN)).verdict == "same"
    assert bnstat.diff(bnstat.load(RUN), kind(BROKEN)).verdict == "different"
    assert len(bnstat.check(kind(BROKEN))) == len(bnstat.check(bnstat.load(BROKEN))) > 0


@pytest.mark.parametrize("function", [history, check, lambda model: bnstat.diff(model, RUN)])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "is neither a path nor a model"),
        ([3], "is neither a path nor a model"),
        ("nowhere", "no such file, folder or checkpoint"),
    ],
)
def test_anything_else_is_refused(function, model, message) -> None:
    with pytest.raises(BnstatError, match=message):
        function(model)
