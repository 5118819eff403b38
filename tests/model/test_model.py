"""Models and layers, and what a layer does to its input in inference."""

from __future__ import annotations

from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tf_keras
from numpy.typing import NDArray

from bnstat.errors import AmbiguousError, NotFoundError
from bnstat.model import ROLES, BatchNorm, Model, Source, Summary, Variable, printable
from tests.builders import named
from tests.builders.keras_models import randomised, roles_of
from tests.output import models


def formula(arrays: Any, x: Any, epsilon: float, shape: Any = (-1,)) -> NDArray[np.float64]:
    """`gamma * (x - mean) / sqrt(variance + epsilon) + beta` in float64."""
    wide = {role: array.astype(np.float64).reshape(shape) for role, array in arrays.items()}
    y = (x.astype(np.float64) - wide["moving_mean"]) / np.sqrt(wide["moving_variance"] + epsilon)
    return wide.get("gamma", 1.0) * y + wide.get("beta", 0.0)


def assert_close(found: Any, expected: Any, tolerance: float = 1e-13) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


RANDOM = np.random.default_rng(11)
X = RANDOM.standard_normal((5, 6, 7, 4))
SUBSETS = [ROLES, ROLES[1:], (ROLES[0], *ROLES[2:]), ROLES[2:]]


@pytest.mark.parametrize("roles", SUBSETS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-5)])
def test_the_formula(roles: tuple[str, ...], dtype: str, tolerance: float) -> None:
    arrays = named.layer(1, roles=roles, dtype=dtype)
    layer = models.layer("bn", arrays, epsilon=1e-3)
    x = X.astype(dtype)
    found = layer.normalize(x)
    assert found.dtype == dtype
    expected = formula(arrays, x, 1e-3)
    assert_close(found, expected, tolerance)
    scale, shift = layer.scale_and_shift()
    assert scale.dtype == shift.dtype == dtype
    assert scale.shape == shift.shape == (4,)
    np.testing.assert_allclose(scale * x + shift, expected, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("axis", [-1, -2, 0, 1, 2, 3])
def test_every_axis(axis: int) -> None:
    arrays = named.layer(1, channels=X.shape[axis], dtype="float64")
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    expected = formula(arrays, X, 0.01, shape)
    for layer, given in (
        (models.layer("bn", arrays, axis=axis), None),
        (models.layer("bn", arrays, axis=0), axis),
    ):
        assert_close(layer.normalize(X, epsilon=0.01, axis=given), expected)


@pytest.mark.parametrize("kind", [np.int8, np.uint32, np.int64, bool])
def test_an_axis_of_any_integer_type(kind: type) -> None:
    arrays = named.layer(1)
    layer = models.layer("bn", arrays, epsilon=0.01)
    x = np.random.default_rng(0).random((2, layer.channels, 3))
    expected = layer.normalize(x, axis=1)
    np.testing.assert_array_equal(layer.normalize(x, axis=kind(1)), expected)
    np.testing.assert_array_equal(layer.normalize(x, axis=[kind(1)]), expected)
    with pytest.raises(TypeError):
        layer.normalize(x, axis=1.0)


@pytest.mark.parametrize("axis", [(1, 3), None])
def test_several_axes(axis: tuple[int, ...] | None) -> None:
    """If the file does not store the axes, the shape of the variables shows them."""
    arrays = {role: RANDOM.random((1, 6, 1, 4)) for role in ROLES}
    layer = models.layer("bn", arrays, axis=axis, epsilon=0.01)
    expected = formula(arrays, X, 0.01, (1, 6, 1, 4))
    assert_close(layer.normalize(X), expected)
    assert layer.channels == 24
    assert layer.scale_and_shift()[0].shape == (1, 6, 1, 4)


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (1, 1, 1, 1, 4)])
def test_variables_with_leading_ones(shape: tuple[int, ...]) -> None:
    arrays = {role: RANDOM.random(shape) for role in ROLES}
    found = models.layer("bn", arrays, epsilon=0.01).normalize(X)
    assert_close(found, formula(arrays, X, 0.01, (4,)))


@pytest.mark.parametrize(
    ("library", "axis"), [(keras, -1), (keras, 1), (tf_keras, -1), (tf_keras, [1, 3])]
)
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"epsilon": 0.1}])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-12)])
def test_keras_own_layer(
    library: Any, axis: Any, options: Any, dtype: str, tolerance: float
) -> None:
    x = X.astype(dtype)
    norm = library.layers.BatchNormalization(axis=axis, dtype=dtype, **options)
    norm.build(x.shape)
    randomised(norm)
    stored = norm.axis if isinstance(norm.axis, int) else tuple(norm.axis)
    layer = models.layer("bn", roles_of(norm), epsilon=norm.epsilon, axis=stored)
    expected = np.asarray(norm(x, training=False))
    found = layer.normalize(x)
    assert found.dtype == expected.dtype
    assert_close(found, expected, tolerance)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_types_are_computed_in_float32(dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    arrays = {role: RANDOM.random(4).astype(kind) for role in ROLES}
    layer = models.layer("bn", arrays, epsilon=1e-3)
    assert layer.normalize(X.astype(kind)).dtype == np.float32
    x = X.astype(np.float32)
    np.testing.assert_allclose(layer.normalize(x), formula(arrays, x, 1e-3), rtol=1e-4, atol=1e-5)
    assert layer.scale_and_shift()[0].dtype == np.float32


def test_epsilon_is_never_guessed() -> None:
    arrays = named.layer(1)
    layer = models.layer("bn", arrays)
    for action in (layer.scale_and_shift, lambda: layer.normalize(X)):
        with pytest.raises(AmbiguousError, match=r"does not store this layer's epsilon.*epsilon="):
            action()
    np.testing.assert_allclose(layer.normalize(X, epsilon=0.5), formula(arrays, X, 0.5), rtol=1e-5)
    known = models.layer("bn", arrays, epsilon=0.25)
    np.testing.assert_allclose(known.normalize(X, epsilon=0.5), formula(arrays, X, 0.5), rtol=1e-5)
    np.testing.assert_array_equal(known.normalize(X, epsilon=0), layer.normalize(X, epsilon=0))


def test_roles_are_never_guessed() -> None:
    unknown = Variable("vars/0", "vars/0", "float32", (4,), lambda: np.ones(4, np.float32))
    layer = models.layer("bn", named.layer(1, roles=ROLES[2:]), undecided=[unknown], epsilon=0.001)
    with pytest.raises(AmbiguousError, match="record the role of vars/0"):
        layer.normalize(X)
    with pytest.raises(NotFoundError, match="moving mean and variance are not in the file"):
        models.layer("bn", named.layer(1, roles=ROLES[:2]), epsilon=0.001).scale_and_shift()


@pytest.mark.parametrize(
    ("own", "axis", "shape"),
    [
        *(((4,), None, shape) for shape in ((5, 3), (4, 5), (), (5, 1))),
        *(((4,), axis, (5, 4)) for axis in (2, -3)),
        *(((1, 6, 1, 4), (1, 3), shape) for shape in ((), (6,), (6, 4), (5, 6, 7))),
        *(((1, 6, 1, 4), (1, 3), shape) for shape in ((5, 6, 7, 3), (5, 4, 7, 6))),
    ],
)
def test_inputs_that_do_not_fit(own: tuple[int, ...], axis: Any, shape: tuple[int, ...]) -> None:
    layer = models.layer("bn", {role: np.ones(own) for role in ROLES}, epsilon=0.1)
    with pytest.raises(ValueError, match=r"axis|channels"):
        layer.normalize(np.zeros(shape), axis=axis)


def test_arrays_are_read_once_and_only_when_asked_for() -> None:
    reads: list[str] = []

    def variable(role: str) -> Variable:
        def read() -> NDArray[np.float32]:
            reads.append(role)
            return np.ones(2, np.float32)

        return Variable(role, role, "float32", (2,), read)

    layer = BatchNorm("bn", {role: variable(role) for role in ROLES[1:]})
    assert (layer.channels, layer.shape) == (2, (2,))
    assert reads == []
    assert layer.gamma is None
    assert layer.beta is layer.beta
    assert layer.array("moving_mean") is layer.moving_mean
    assert reads == ["beta", "moving_mean"]


@pytest.fixture
def model() -> Model:
    layers = [models.layer(name, named.layer(n, channels=n)) for n, name in enumerate("cab", 2)]
    return Model(Source("p", "saved-model"), layers, notes=["a note"])


def test_a_sequence_and_a_mapping(model: Model) -> None:
    assert [layer.name for layer in model] == list(model.keys()) == ["c", "a", "b"]
    assert len(model) == 3
    assert model[0] is model["c"]
    assert model[-1] is model["b"]
    assert [layer.name for layer in model[1:]] == ["a", "b"]
    assert list(model.values()) == list(model)
    assert dict(model.items())["a"] is model["a"]
    assert "a" in model
    assert model["a"] in model
    assert "d" not in model
    assert 3 not in model
    assert model.get("d") is None
    assert model.get("a") is model["a"]
    assert model.channels == 2 + 3 + 4
    with pytest.raises(KeyError):
        model["d"]
    with pytest.raises(IndexError):
        model[3]


def test_narrowing_and_repr(model: Model) -> None:
    some = model.select([model["b"]])
    assert some.keys() == ["b"]
    assert (some.source, some.notes) == (model.source, model.notes)
    assert repr(model) == "<Model 'p' (saved-model): 3 batch-norm layers>"
    assert repr(some).endswith("1 batch-norm layer>")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("stem/bn_1", "stem/bn_1"), ("\u00e4\u4e2d\u0431", "\u00e4\u4e2d\u0431"),
        ("a\x1b[31mb", "a\\x1b[31mb"), ("a\nb\r\t", "a\\nb\\r\\t"),
        ("a\u202eb", "a\\u202eb"), ("a\udcffb", "a\\udcffb"), ("\x85\u2028", "\\x85\\u2028"),
    ],
)  # fmt: skip
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode("utf-8")


def test_summaries() -> None:
    values = np.array([1, 2, np.nan, 4, np.inf, -np.inf], np.float32)
    found = Summary.of(values)
    assert (found.count, found.bad, found.min, found.max) == (6, 3, 1, 4)
    assert found.mean == pytest.approx(7 / 3)
    assert found.std == pytest.approx(np.std([1, 2, 4]))
    nothing = Summary.of(np.array([np.nan], np.float32))
    assert (nothing.count, nothing.bad) == (1, 1)
    assert np.isnan(nothing.mean)
    large = Summary.of(np.full(3, np.finfo(np.float64).max))
    assert (large.bad, large.max) == (0, np.finfo(np.float64).max)
