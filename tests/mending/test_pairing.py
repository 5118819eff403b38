"""Which values go to which variable: by a document's names, or as `diff` pairs two models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from bnstat.errors import BnstatError, NotFoundError
from bnstat.exchange.values import Document, Given
from bnstat.mending.pairing import fit
from bnstat.model import ROLES, Model
from tests.output.models import layer, model, usual

STATISTICS = ROLES[2:]


def document(layers: Mapping[str, Sequence[str]], spelt: Callable[[str], str] = str) -> Document:
    """A document that gives these roles of these layers values of ones."""
    given = {name: {role: Given(np.ones(8)) for role in roles} for name, roles in layers.items()}
    return Document("d.json", given, spelt)


def changed(of: Model, values: Document | Model, *chosen: Any, **more: Any) -> list[Any]:
    changes = fit(of, values, *chosen, **more)[1]
    return [(change.layer, change.role, change.given_as, change.match) for change in changes]


NET = model(
    usual("b"), usual("a"), incomplete=[layer("half", {"gamma": np.ones(8)}), layer("bare", {})]
)


def test_changes_have_the_order_of_the_model() -> None:
    given = document({"half": ["gamma"], "a": ["moving_variance", "gamma"], "b": ["beta"]})
    assert changed(NET, given) == [
        ("b", "beta", "b", "name"),
        ("a", "gamma", "a", "name"),
        ("a", "moving_variance", "a", "name"),
        ("half", "gamma", "half", "name"),
    ]


def test_only_the_chosen_roles_and_layers_are_written() -> None:
    given = document({"a": ROLES, "b": ROLES, "gone": ROLES})
    assert changed(NET, given, ["beta", "gamma"], ["a"]) == [
        ("a", "gamma", "a", "name"),
        ("a", "beta", "a", "name"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "moved", "largest"),
    [([1, 2, 3], [1, 2.5, 1], 2, 2), ([0], [np.inf], 1, np.inf), ([np.nan, 1], [0, 1], 1, np.inf),
     ([np.inf], [-np.inf], 1, np.inf), ([0.0], [-0.0], 1, 0), (2, 5, 1, 3)],
)  # fmt: skip
def test_the_largest_change(old: Any, new: Any, moved: int, largest: float) -> None:
    of = model(layer("a", {"gamma": np.array(old, float)}))
    (change,) = fit(of, Document("", {"a": {"gamma": Given(np.array(new, float))}}))[1]
    assert (change.moved, change.largest) == (moved, largest)


ALL = {"a": ROLES, "gone": ROLES}


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        (ALL, (), r"d\.json, gone: .* has no batch-norm layer of this name"),
        ({"hald": ["gamma"]}, (), r"d\.json, hald: .*half"),
        (ALL, (ROLES, ["x*"]), r"d\.json: has no values for the chosen"),
        ({"a": ["gamma"]}, (["beta"],), "has no values"),
        ({"a": ["gamma"]}, (["mean"],), "roles: 'mean' is not a role; the roles are gamma, beta"),
        ({"a": ["mean"]}, (), r"d\.json, a: 'mean' is not a role"),
        ({"half": ["beta"]}, (), r"half: has no beta .*; the layer has gamma$"),
        ({"bare": ["beta"]}, (), r"bare: has no beta .*; the layer has no variables$"),
    ],
)
def test_unknown_layers_and_roles(
    layers: Mapping[str, Sequence[str]], options: Any, message: str
) -> None:
    with pytest.raises(BnstatError, match=message):
        changed(NET, document(layers), *options)


def test_a_document_that_changes_names() -> None:
    of = model(usual("a/b"), usual("a:b"))
    given = document({"a.b": ["gamma"]}, lambda name: name.replace("/", "."))
    assert changed(of, given) == [("a/b", "gamma", "a.b", "name")]
    alike = document({"a.b": ["gamma"]}, lambda name: name.replace("/", ".").replace(":", "."))
    with pytest.raises(BnstatError, match=r"d\.json, a\.b: is the name of several layers; use"):
        changed(of, alike)


def test_layers_of_another_model_are_paired_as_in_diff() -> None:
    other = model(usual("net/b", seed=1), layer("a", {"gamma": np.ones(8)}))
    assert changed(NET, other, globs=["[ab]"]) == [
        *(("b", role, "net/b", "suffix") for role in ROLES),
        ("a", "gamma", "a", "name"),
    ]
    assert changed(NET, other, ["beta"]) == [("b", "beta", "net/b", "suffix")]
    assert changed(NET, other, globs=["a"]) == [("a", "gamma", "a", "name")]
    more = model(usual("b"), usual("gone", 4))
    with pytest.raises(NotFoundError, match=r"gone: .* has no batch-norm layer of this name"):
        changed(NET, more)
    assert {name for name, *_ in changed(NET, more, globs=["b"])} == {"b"}
