"""A gamma or beta has the shape of its layer's statistics, whatever evidence shows the layer."""

from __future__ import annotations

import pytest

from bnstat.discovery import discover
from bnstat.formats.contents import Contents, Layer, Node, Objects
from bnstat.model import ROLES
from tests.discovery.made import made

MISFITS = ((4, 3, 3, 3), (5,))


def of_shapes(gamma: tuple[int, ...], key: str = "bn/scale", **more: object) -> Contents:
    """A layer whose gamma, under a key, may have another shape than its statistics."""
    shapes = {key: gamma, "bn/beta": (4,), "bn/moving_mean": (4,), "bn/moving_variance": (1, 1, 4)}
    return made(shapes, shapes, **more)


def sources(key: str) -> dict[str, dict[str, object]]:
    keys = {"gamma": key, **{role: f"bn/{role}" for role in ROLES[1:]}}
    configured = Layer("bn", "BatchNormalization", {"epsilon": 0.1}, keys)
    tracked = Objects(
        [
            Node({"bn": 1}, None, ""),
            Node({role: at + 2 for at, role in enumerate(keys)}, None, ""),
            *(Node({}, each, each) for each in keys.values()),
        ]
    )
    return {"layers": {"layers": (configured,)}, "objects": {"objects": tracked}, "patterns": {}}


def patterns(source: str, leaf: str) -> tuple[tuple[str, str], ...]:
    if source != "patterns":
        return ()
    return (("gamma", rf"(.*)/{leaf}$"), *((role, rf"(.*)/{role}$") for role in ROLES[1:]))


@pytest.mark.parametrize("source", ["layers", "objects", "patterns"])
def test_a_tensor_of_another_shape_is_undecided(source: str) -> None:
    more = sources("bn/scale")[source]
    for gamma in ((4,), (4, 1), *MISFITS):
        (layer,) = discover(of_shapes(gamma, **more), patterns=patterns(source, "scale"))
        fits = gamma not in MISFITS
        assert set(layer.variables) == (set(ROLES) if fits else set(ROLES[1:]))
        assert [variable.key for variable in layer.undecided] == ([] if fits else ["bn/scale"])
        assert any("bn/scale" in note for note in layer.notes) is not fits


@pytest.mark.parametrize("source", ["layers", "objects", "patterns"])
def test_a_tensor_named_gamma_keeps_its_role(source: str) -> None:
    """Otherwise inference would be computed without it, and nothing would report the mismatch."""
    more = sources("bn/gamma")[source]
    for gamma in MISFITS:
        contents = of_shapes(gamma, "bn/gamma", **more)
        (layer,) = discover(contents, patterns=patterns(source, "gamma"))
        assert set(layer.variables) == set(ROLES)


def test_by_names_alone_a_gamma_of_another_shape_is_shown() -> None:
    for gamma in MISFITS:
        (layer,) = discover(of_shapes(gamma, "bn/gamma"))
        assert set(layer.variables) == set(ROLES)
