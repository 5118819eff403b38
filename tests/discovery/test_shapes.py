"""A gamma or beta has the shape of its layer's statistics, whatever evidence shows the layer."""

from __future__ import annotations

import numpy as np
import pytest

from bnstat.discovery import discover
from bnstat.formats.contents import Contents, Layer, Node, Objects
from bnstat.model import ROLES, Source, Variable


def of_shapes(gamma: tuple[int, ...], **more: object) -> Contents:
    """A layer whose gamma has another shape than its statistics."""
    shapes = {"gamma": gamma, "beta": (4,), "moving_mean": (4,), "moving_variance": (1, 1, 4)}
    variables = {
        f"bn/{role}": Variable(f"bn/{role}", f"bn/{role}", "float32", shape, lambda: np.zeros(0))
        for role, shape in shapes.items()
    }
    return Contents(Source("", ""), variables, **more)  # type: ignore[arg-type]


CONFIGURED = Layer(
    "bn", "BatchNormalization", {"epsilon": 0.1}, {role: f"bn/{role}" for role in ROLES}
)
TRACKED = Objects(
    [
        Node({"bn": 1}, None, ""),
        Node({role: at + 2 for at, role in enumerate(ROLES)}, None, ""),
        *(Node({}, f"bn/{role}", f"bn/{role}") for role in ROLES),
    ]
)
PATTERNS = [(role, rf"(.*)/{role}$") for role in ROLES]
PATHS = {"layers": {"layers": (CONFIGURED,)}, "objects": {"objects": TRACKED}, "patterns": {}}


@pytest.mark.parametrize("path", PATHS)
def test_a_tensor_of_another_shape_has_no_role(path: str) -> None:
    patterns = PATTERNS if path == "patterns" else ()
    for gamma in ((4,), (4, 1), (4, 3, 3, 3), (5,)):
        (layer,) = discover(of_shapes(gamma, **PATHS[path]), patterns=patterns)
        fits = gamma in ((4,), (4, 1))
        assert set(layer.variables) == (set(ROLES) if fits else set(ROLES[1:]))
        assert [variable.key for variable in layer.undecided] == ([] if fits else ["bn/gamma"])
        assert any("bn/gamma" in note for note in layer.notes) is not fits


def test_by_names_alone_it_is_not_of_the_layer() -> None:
    for gamma in ((4, 3, 3, 3), (5,)):
        (layer,) = discover(of_shapes(gamma))
        assert set(layer.variables) == {"moving_mean", "moving_variance"}
        assert not layer.undecided
