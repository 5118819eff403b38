"""Batch norm by names, in contents made by hand."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest

from bnstat.discovery import discover
from bnstat.discovery.merge import Sighting
from bnstat.discovery.names import BATCH_NORM_SCOPE, VariableNames, from_names
from bnstat.discovery.schemes import SCHEMES, Scheme, describe_lookalike, find_roles
from bnstat.formats.contents import Contents, Layer
from bnstat.model import Source
from tests.builders.effort import bounded
from tests.discovery.made import Shape, found, keys_in, made, objects_of, variable


def found_twice(names: Sequence[str]) -> list[Sighting]:
    """Return the layers by names, after checking that a search by endings finds the same."""

    def search(endings: Collection[str]) -> dict[str, str]:
        return {name: name for name in names if name.endswith((*endings,)) or f"/{name}" in endings}

    sightings = from_names(VariableNames(made(names)), False)
    asked_for = VariableNames(made(names, search=search), complete=False)
    assert from_names(asked_for, False) == sightings
    return sightings


STATISTICS = ("moving_mean", "moving_variance")
ALL = ("gamma", "beta", *STATISTICS)

every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda each: each[0] + each.variance)


def under(scope: str, roles: Sequence[str] = ALL, end: str = "") -> list[str]:
    return [f"{scope}/{role}{end}" for role in roles]


@every_scheme
def test_every_scheme_finds_what_it_names(scheme: Scheme) -> None:
    tree = scheme.trees[0] if scheme.trees else ("net", "net")
    separator = "." if scheme.variance[0] == "." else "/"
    own, other = (separator.join([each, "x", "bn"]) for each in tree)
    statistics = {"moving_mean": own + scheme.mean, "moving_variance": own + scheme.variance}
    for gamma in (*scheme.gamma, None):
        for beta in (*scheme.beta, None):
            names = {**statistics}
            names |= {"gamma": other + gamma} if gamma else {}
            names |= {"beta": other + beta} if beta else {}
            (layer,) = found_twice([*names.values()])
            assert layer.roles == names
            assert layer.name == (own.partition(separator)[2] if scheme.trees else own)


@every_scheme
def test_a_variance_without_its_mean_is_not_a_layer(scheme: Scheme) -> None:
    scope = f"{scheme.trees[0][0] if scheme.trees else 'net'}/bn"
    assert found([scope + scheme.variance, scope + scheme.gamma[0]]) == {}
    assert found([scope + scheme.mean, scope + scheme.gamma[0]]) == {}


def test_the_longest_scope_owns_a_variable() -> None:
    names = [*under("a", ["gamma", "beta"]), *under("a/b"), *under("a/b/c", STATISTICS)]
    layers = found(names)
    assert {*layers["a/b"]} == {*ALL}
    assert {*layers["a/b/c"]} == {*STATISTICS}


def test_the_root_scope() -> None:
    assert found(list(ALL)) == {"(root)": dict(zip(ALL, ALL, strict=True))}
    for names in (ALL, ("scale", "offset", "pop_mean", "pop_var")):
        (layer,) = found_twice(names)
        assert layer.roles == dict(zip(ALL, names, strict=True))


@pytest.mark.parametrize(
    ("scope", "labels", "is_layer"),
    [
        ("x/", "mean variance", False),
        ("x/", "mean variance scale", True),
        ("x/", "mean variance scale offset", True),
        ("bn/", "mean variance", True),
        ("bn/", "gamma beta mean var", True),
        ("conv1_bn/", "mean variance", True),
        ("BatchNorm_3/", "mean variance", True),
        ("bn/", "mean variance count", False),
        ("x/", "mean variance count scale", False),
        ("turbine/", "mean variance", False),
        ("vae/", "mean var", False),
        ("batch_stats/norm1/", "mean var", True),
        ("opt/batch_stats/stem/norm/", "mean var", True),
        ("batch_stats.norm1.", "mean var", True),
        ("batch_stats/obs_rms/", "mean var", False),
        ("batch_stats/actor/observation_norm/", "mean var", False),
        ("batch_stats/Normalizer_0/", "mean var", False),
        ("batch_stats/norm1/", "mean var count", False),
        ("batch_stats/", "mean var", False),
        ("params/norm1/", "mean var", False),
    ],
)
def test_ordinary_words_need_more(scope: str, labels: str, is_layer: bool) -> None:
    assert bool(found(scope + label for label in labels.split())) is is_layer


@pytest.mark.parametrize("scope", ["running_mean_std", "bn"])
@pytest.mark.parametrize("separator", ["/", "."])
def test_a_count_marks_statistics_of_observations(scope: str, separator: str) -> None:
    """As rl_games names the statistics of observations and rewards."""
    running = [f"{scope}{separator}running_{role}" for role in ("mean", "var")]
    assert found(running)
    assert not found([*running, f"{scope}{separator}count"])
    assert found([*running, f"{scope}{separator}weight", f"{scope}{separator}count"])
    explanations = discover(made([*running, f"{scope}{separator}count"])).explain()
    assert ["of data" in each.reason for each in explanations] == [True, True, False]


def test_ordinary_words_need_one_shape() -> None:
    names = ["x/mean", "x/variance", "x/scale"]
    assert found(names, shapes={"x/scale": (4, 4)}) == {}


@pytest.mark.parametrize(
    ("scope", "is_one"),
    [
        ("bn", True), ("BatchNorm", True), ("net/batch_normalization_12", True),
        ("tpu_batch_normalization", True), ("conv2_bn", True), ("bn_", True), ("bn1", True),
        ("block.bn2", True), ("batch_normalization_v1", True), ("batchnorm", True),
        ("subnet", False), ("bnet", False), ("net/bn/conv", False), ("LayerNorm", False),
        ("", False),
    ],
)  # fmt: skip
def test_scopes_that_say_batch_norm(scope: str, is_one: bool) -> None:
    assert bool(BATCH_NORM_SCOPE.search(scope)) is is_one


SHADOW = "/ExponentialMovingAverage"


def test_shadows_are_set_apart_unless_asked_for() -> None:
    names = [*under("a/bn"), *under("a/bn", end=SHADOW)]
    assert list(found(names)) == ["a/bn"]
    both = found(names, include_shadows=True)
    assert list(both) == ["a/bn", f"a/bn{SHADOW}"]
    assert set(both[f"a/bn{SHADOW}"].values()) == set(under("a/bn", end=SHADOW))


def test_shadows_without_statistics_are_incomplete() -> None:
    names = [*under("a/bn"), *under("a/bn", ["gamma", "beta"], SHADOW)]
    model = discover(made(names), include_shadows=True)
    assert [(layer.name, layer.notes) for layer in model] == [("a/bn", ())]
    assert [layer.name for layer in model.incomplete] == [f"a/bn{SHADOW}"]


def test_averages_replace_missing_variables() -> None:
    names = [*under("a/bn", ["gamma", "beta"]), *under("a/bn", STATISTICS, SHADOW)]
    expected = {"a/bn": dict(zip(ALL, names, strict=True))}
    assert found([*names, *under("a/bn", ["gamma"], SHADOW)]) == expected


def test_averages_of_a_scope_that_is_written_twice() -> None:
    """As TensorFlow 1 names the averages of tensors that are computed within a scope."""
    moments = [f"net/bn/net/bn/moments/{end}{SHADOW}" for end in ("Squeeze", "Squeeze_1")]
    roles = {"moving_mean": moments[0], "moving_variance": moments[1]}
    assert [one.name for one in found_twice(moments)] == ["net/bn"]
    for more in ({"gamma": "net/bn/gamma"}, {"beta": "net/bn/beta"}):
        (layer,) = found_twice([*moments, *more.values()])
        assert (layer.name, layer.roles) == ("net/bn", roles | more)
        assert "exponential moving averages" in layer.notes[0]
    others = ["net/bn/scale", "net/bn/offset"]
    assert {*found_twice([*moments, *others])[0].roles.values()} == {*moments, *others}
    # The longer scope's own come first. Only averages repeat a scope.
    both = ["net/bn/gamma", "net/bn/net/bn/gamma"]
    (layer,) = found_twice([*moments, *both])
    assert (layer.name, layer.roles["gamma"]) == ("net/bn/net/bn", both[1])
    (layer,) = found_twice([*under("a/a", STATISTICS), *under("a", ["gamma"])])
    assert (layer.name, set(layer.roles)) == ("a/a", set(STATISTICS))


def test_averages_of_moments_beside_moving_statistics_are_shadows() -> None:
    moments = [f"bn/bn/moments/{end}{SHADOW}" for end in ("Squeeze", "Squeeze_1")]
    names = [*under("bn"), *moments]
    assert found(names) == {"bn": dict(zip(ALL, under("bn"), strict=True))}
    both = found(names, include_shadows=True)
    assert list(both) == ["bn", f"bn{SHADOW}"]
    assert set(both[f"bn{SHADOW}"].values()) >= set(moments)


def test_averages_of_a_scope_are_not_shared_with_the_scope_above() -> None:
    names = [*under("a/bn", STATISTICS, SHADOW), "a/gamma"]
    averages = {role: f"a/bn/{role}{SHADOW}" for role in STATISTICS}
    for more in ({}, {"include_shadows": True}):
        assert found(names, **more) == {"a/bn": averages}


def test_a_layer_is_seen_once_by_the_first_scheme_that_fits() -> None:
    (layer,) = found_twice(under("bn/moments/normalize", ["mean", "variance", "scale"]))
    assert layer.name == "bn"


def test_only_names_that_fit_a_scheme_are_looked_up() -> None:
    names = [*under("a"), "a/kernel"]
    contents = made(names, search=lambda endings: {name: name for name in names[:4]})
    assert set(VariableNames(contents).keys) == set(names)
    assert set(VariableNames(contents, complete=False).keys) == set(names[:4])


def test_slots_are_neither_layers_nor_the_variables_that_they_are_named_after() -> None:
    slots = ["x/.OPTIMIZER_SLOT/opt/bn/gamma", "optimizer_weights/bn/gamma", "Adam/m/bn/gamma"]
    for names in ({}, dict.fromkeys(slots[:2], "bn/gamma")):
        model = discover(made([*slots, *under("bn")], names=names))
        assert keys_in(model) == {"bn": dict(zip(ALL, under("bn"), strict=True))}
        assert model.incomplete == ()


def test_layers_with_gamma_or_beta_alone() -> None:
    names = [*under("a/BatchNorm", ["gamma", "beta"]), *under("LayerNorm", ["gamma", "beta"])]
    names += under("a/BatchNorm", ["kernel"])
    model = discover(made([*names, *under("b/bn", ["beta"]), *under("c/bn")]))
    assert [layer.name for layer in model] == ["c/bn"]
    incomplete = [(layer.name, set(layer.variables)) for layer in model.incomplete]
    assert incomplete == [("a/BatchNorm", {"gamma", "beta"}), ("b/bn", {"beta"})]


@pytest.mark.parametrize(
    ("mean", "variance", "layers"),
    [
        ("/mu$", "/sigma2$", ["net/n1", "net/n2"]),
        ("^net/(.*)/mu$", "^net/(.*)/sigma2$", ["n1", "n2"]),
        ("^(net)/(?P<layer>n1)/mu$", "n1/sigma2$", []),
    ],
)
def test_patterns(mean: str, variance: str, layers: list[str]) -> None:
    names = ["net/n1/mu", "net/n1/sigma2", "net/n2/mu", "net/n2/sigma2", "net/n2/w"]
    patterns = [("moving_mean", mean), ("moving_variance", variance)]
    assert list(found(names, patterns=patterns)) == layers


def test_the_first_matching_pattern_decides_the_role() -> None:
    patterns = [("moving_mean", "(mu)?/m$"), ("beta", "/[mv]$"), ("moving_variance", "/v$")]
    assert found(["m", "v", "x/m", "x/v"], patterns=patterns) == {}
    patterns.insert(1, ("moving_variance", "(mu)?/v$"))
    assert found(["x/m", "x/v"], patterns=patterns) == {
        "(root)": {"moving_mean": "x/m", "moving_variance": "x/v"}
    }


def test_a_pattern_comes_before_the_schemes() -> None:
    names = [*under("bn"), "bn/scale_fixed"]
    patterns = [("gamma", "/scale_fixed$"), *((role, f"/{role}$") for role in STATISTICS)]
    assert found(names, patterns=patterns)["bn"]["gamma"] == "bn/scale_fixed"


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("int32", (4,)), ("string", (4,)), ("bool", (4,)), ("complex64", (4,)),
        ("float32", ()), ("float32", (0,)),
    ],
)  # fmt: skip
def test_statistics_are_arrays_of_floats(dtype: str, shape: tuple[int, ...]) -> None:
    variables = {name: variable(name, shape, dtype) for name in under("bn")}
    assert len(discover(Contents(Source("m", "tf1-checkpoint"), variables))) == 0


def test_other_norms_and_metrics_are_not_layers() -> None:
    names = [
        "LayerNorm/gamma", "LayerNorm/beta", "GroupNorm/gamma", "GroupNorm/beta",
        "InstanceNorm/gamma", "InstanceNorm/beta", "ln/scale", "ln/offset", "norm/scale",
        "normalization/mean", "normalization/variance", "normalization/count", "metrics/mean/total",
        "observations/mean", "observations/var", "spectral/vector_u", "act_quant/min",
        "act_quant/max", "metrics/mean/count", "vae/mean", "vae/variance", "dense/bias",
        "dense/weight", "bn/moving_mean/biased", "bn/moving_mean/local_step",
    ]  # fmt: skip
    model = discover(made(names))
    assert (len(model), model.incomplete) == (0, ())


@pytest.mark.slow
def test_a_hundred_thousand_names_take_little_time() -> None:
    names = [name for number in range(25_000) for name in under(f"net/block_{number}/bn")]
    contents = made(names)
    with bounded():
        assert len(from_names(VariableNames(contents), False)) == 25_000


class Counted(str):
    """A key that counts how often it is looked at."""

    looks = 0

    def __eq__(self, other: object) -> bool:
        Counted.looks += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        Counted.looks += 1
        return str.__hash__(self)


def looks(count: int, end: str, both: bool) -> int:
    names = [f"l{at}/{role}{end}" for at in range(count) for role in ALL]
    names += [f"l{at}/{role}" for at in range(count) for role in ALL] if both else []
    variables = {Counted(name): variable(name) for name in names}
    Counted.looks = 0
    model = discover(Contents(Source("", ""), variables), include_shadows=True)
    assert len(model) == count * (2 if both else 1)
    return Counted.looks


@pytest.mark.parametrize(("end", "both"), [("", False), (SHADOW, False), (SHADOW, True)])
def test_the_work_grows_with_the_layers(end: str, both: bool) -> None:
    assert looks(200, end, both) < 6 * looks(50, end, both)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("bn/gamma/Adam", "slot"), ("bn/gamma/Adam_1", "slot"), ("bn/beta/Momentum", "slot"),
        ("bn/gamma/RMSProp_2", "slot"), ("train/bn/beta/Adagrad", "slot"),
        ("Adam/m/bn/gamma", "slot"), ("RMSprop/velocity/bn/gamma", "slot"),
        ("training/Adam/bn/gamma/m", "slot"), ("beta1_power", "optimizer"),
        ("train/beta2_power", "optimizer"), ("bn/bn/moving_mean/biased", "zero-debias"),
        ("bn/bn/moving_mean/local_step", "zero-debias"),
        ("bn/gamma/ExponentialMovingAverage", "shadow"),
        ("global_step", "bookkeeping"), ("bn/moving_mean/_hidden", "zero-debias"),
        ("bn/gamma", None), ("adam_block/bn/gamma", None), ("momentum_encoder/bn/beta", None),
        ("m/bn/gamma", None), ("sgd2/gamma", None),
    ],
)  # fmt: skip
def test_lookalikes(name: str, word: str | None) -> None:
    description = describe_lookalike(name, name)
    assert description is None if word is None else word in description


def test_the_explanation_of_each_variable() -> None:
    expected = {
        "a/bn/gamma": ("a/bn", "gamma", "found by name"),
        "a/bn/moving_mean": ("a/bn", "moving_mean", "found by name"),
        "a/bn/moving_variance": ("a/bn", "moving_variance", "found by name"),
        "a/bn/renorm_mean": ("a/bn", "renorm_mean", "an extra variable"),
        "a/bn/gamma/Adam": (None, None, "slot variable"),
        "a/bn/gamma/ExponentialMovingAverage": (None, None, "shadow copy"),
        "LayerNorm/gamma": (None, None, "no moving statistics beside it"),
        "c/moving_variance": (None, None, "without its counterpart"),
        "b/BatchNorm/beta": ("b/BatchNorm", "beta", "statistics are not in the file"),
        "conv/kernel": (None, None, "does not match a naming scheme"),
        "global_step": (None, None, "bookkeeping"),
    }
    explanations = discover(made(list(expected))).explain()
    assert [each.key for each in explanations] == list(expected)
    for key, layer, role, reason in explanations:
        assert (layer, role) == expected[key][:2]
        assert expected[key][2] in reason


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["moving_mean", "moving_variance", "gamma", "beta", "bias", "scale"], ALL),
        (["scale", "offset", "moving_mean", "moving_variance"], ["scale", "offset", *STATISTICS]),
        (["weight", "bias"], ["weight", "bias", None, None]),
        (["running_mean", "running_var", "bias"], [None, "bias", "running_mean", "running_var"]),
        (["moving_mean", "moving_variance", "bias"], [None, None, *STATISTICS]),
        (["kernel"], [None] * 4),
    ],
)
def test_roles_of_labels(labels: Sequence[str], expected: Sequence[str | None]) -> None:
    assert [find_roles(labels).get(role) for role in ALL] == list(expected)


# Shapes that differ from the statistics, whatever evidence shows the layer


@pytest.mark.parametrize("leaf", ["scale", "gamma"])
@pytest.mark.parametrize("source", ["layers", "objects", "patterns"])
@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3, 3, 3), (5,)])
def test_a_tensor_of_another_shape_is_undecided(source: str, leaf: str, shape: Shape) -> None:
    """A variable named gamma keeps its role, so that the mismatch is reported."""
    keys = {"gamma": f"bn/{leaf}", **{role: f"bn/{role}" for role in ALL[1:]}}
    structure: dict[str, dict[str, object]] = {
        "layers": {"layers": (Layer("bn", "BatchNormalization", {"epsilon": 0.1}, keys),)},
        "objects": {"objects": objects_of({"bn": keys})},
    }
    patterns = [(role, key.replace("bn", "(.*)")) for role, key in keys.items()]
    (layer,) = discover(
        made(keys.values(), {keys["gamma"]: shape, "bn/moving_variance": (1, 1, 4)},
             **structure.get(source, {})),
        patterns=patterns if source == "patterns" else (),
    )  # fmt: skip
    fits = leaf == "gamma" or shape in ((4,), (4, 1))
    assert set(layer.variables) == (set(ALL) if fits else set(ALL[1:]))
    assert [variable.key for variable in layer.undecided] == ([] if fits else ["bn/scale"])
    assert any("bn/scale" in note for note in layer.notes) is not fits


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (5,)])
def test_by_names_alone_a_gamma_of_another_shape_is_shown(shape: Shape) -> None:
    assert found(under("bn"), {"bn/gamma": shape})["bn"].keys() == set(ALL)
