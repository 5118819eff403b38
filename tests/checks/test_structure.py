"""Rules about which statistics a layer has: missing, undecided, of unequal shapes, copies."""

from __future__ import annotations

import numpy as np
import pytest

from bnstat.checks import check
from bnstat.model import BatchNorm, Source
from tests.checks.cases import START, sound, start
from tests.checks.test_rules import built
from tests.output import models


class TestMissingStatistics:
    def test_an_incomplete_layer_is_an_error(self) -> None:
        bare = models.layer("bn", {"gamma": np.ones(4), "beta": np.zeros(4)}, evidence="config")
        (finding,) = check(models.model(incomplete=[bare]))
        assert (finding.rule, finding.severity, finding.layer) == ("BN011", "error", "bn")
        assert finding.message == "moving mean and moving variance are not in the file"

    def test_one_of_them_is_missing(self) -> None:
        bare = models.layer("bn", {"moving_mean": np.ones(4)}, evidence="config")
        (finding,) = check(models.model(incomplete=[bare]))
        assert finding.message == "moving variance is not in the file"

    def test_a_name_alone_makes_it_a_warning(self) -> None:
        bare = models.layer("bn", {"gamma": np.ones(4)}, evidence="name")
        (finding,) = check(models.model(incomplete=[bare]))
        assert finding.severity == "warning"

    def test_a_complete_layer_is_not(self) -> None:
        assert check(models.model(models.usual("bn")), select=["BN011"]) == []

    def test_roles_that_the_file_does_not_tell_are_not_missing(self) -> None:
        layer = BatchNorm("bn", {}, undecided=[models.variable("bn/vars/0", np.ones(4))])
        assert check(models.model(layer), select=["BN011"]) == []


class TestUndecided:
    def test_a_layer_that_may_be_batch_norm(self) -> None:
        variables = [models.variable(f"norm/vars/{n}", np.ones(4)) for n in range(3)]
        layer = BatchNorm("norm", {}, undecided=variables)
        (finding,) = check(models.model(incomplete=[layer]))
        assert (finding.rule, finding.severity, finding.layer) == ("BN016", "info", "norm")
        assert "3 variables of shape [4]" in finding.message
        assert "may not be batch norm" in finding.message

    def test_a_layer_whose_configuration_says_what_it_is(self) -> None:
        variables = [models.variable(f"norm/vars/{n}", np.ones(4)) for n in range(3)]
        layer = BatchNorm("norm", {}, undecided=variables, evidence="config")
        (finding,) = check(models.model(incomplete=[layer]))
        assert finding.message == "the roles of 3 variables of shape [4] are not stored"

    def test_a_role_of_a_layer_that_is_one(self) -> None:
        layer = models.usual("bn", undecided=[models.variable("bn/vars/0", np.ones(8))])
        (finding,) = check(models.model(layer), select=["BN016"])
        assert "1 variable of shape [8] is not" in finding.message
        assert "may not be" not in finding.message
        assert check(models.model(models.usual("bn")), select=["BN016"]) == []


class TestTrainingMode:
    def test_what_normalizes_by_the_batch_lacks_nothing(self) -> None:
        layer = models.layer(
            "bn", {"gamma": np.ones(4)}, evidence="graph", uses_batch_statistics=True
        )
        (finding,) = check(models.model(incomplete=[layer]), select=["BN011"])
        assert (finding.severity, finding.layer) == ("info", "bn")
        assert (
            finding.message
            == "exported in training mode: the layer uses batch statistics and stores none"
        )


class TestUnequalShapes:
    def test_finds_a_role_of_another_length(self) -> None:
        layer = models.layer("bn", {"gamma": np.ones(3), **start(4)})
        (finding,) = check(models.model(layer), select=["BN012"])
        assert (finding.severity, finding.layer) == ("error", "bn")
        assert "gamma [3], moving mean [4], moving variance [4]" in finding.message

    def test_dimensions_of_1_are_no_difference(self) -> None:
        arrays = {role: array.reshape(1, 1, 1, 4) for role, array in start(4).items()}
        layer = models.layer("bn", {"gamma": np.ones(4), **arrays})
        assert check(models.model(layer), select=["BN012"]) == []

    def test_a_collision_of_names_is_suggested_where_both_shapes_are_other_layers(self) -> None:
        mixed = models.layer("bn", {"gamma": np.ones(3), **start(4)})
        others = [models.usual("a", 3), models.usual("b", 4)]
        (finding,) = check(models.model(mixed, *others), select=["BN012"])
        assert finding.message.endswith("two layers may have been saved under one name")
        (finding,) = check(models.model(mixed, others[0]), select=["BN012"])
        assert "one name" not in finding.message

    def test_no_other_rule_falls_over_it(self) -> None:
        layer = models.layer("bn", {"gamma": np.ones(3), "beta": np.ones(2), **start(4)})
        assert "BN012" in {finding.rule for finding in check(models.model(layer))}


class TestCopiedStatistics:
    def test_layers_at_the_start_are_no_copies(self) -> None:
        layers = {"a": sound(**START), "b": sound(1, **START)}
        assert check(built(layers), select=["BN013"]) == []

    def test_dead_layers_are_no_copies(self) -> None:
        dead = {"moving_mean": np.zeros(8, np.float32), "moving_variance": np.zeros(8, np.float32)}
        layers = {"a": sound(**dead), "b": sound(1, **dead)}
        assert check(built(layers), select=["BN013"]) == []

    def test_means_of_0_alone_are_no_copies(self) -> None:
        usual = {"moving_mean": np.zeros(8, np.float32), "moving_variance": np.full(8, 2, "f4")}
        assert check(built({"a": sound(**usual), "b": sound(1, **usual)}), select=["BN013"]) == []

    def test_a_gamma_that_one_of_them_lacks_is_no_copy(self) -> None:
        arrays = dict(sound().arrays)
        whole = models.layer("a", arrays)
        del arrays["gamma"]
        bare = [models.layer(name, arrays) for name in "bc"]
        source = Source("m.onnx", "onnx")
        for pair, severity in (((whole, bare[0]), "warning"), (bare, "info")):
            (finding,) = check(models.model(*pair, source=source), select=["BN013"])
            assert finding.severity == severity

    @pytest.mark.parametrize(
        ("format_", "first", "second", "severity"),
        [
            ("keras-h5", [], [], "info"),
            ("onnx", [], [], "warning"),
            ("saved-model", [("", "x")], [("", "x")], "info"),
            ("onnx", [("", "x")], [("", "x"), ("", "y")], "info"),
            ("saved-model", [("", "x")], [("", "y")], "warning"),
            ("saved-model", [("f", "x")], [("g", "x")], "info"),
        ],
    )
    def test_the_graph_decides_else_whether_a_converter_wrote_the_file(
        self,
        format_: str,
        first: list[tuple[str, str]],
        second: list[tuple[str, str]],
        severity: str,
    ) -> None:
        one = models.layer("a", sound().arrays, inputs=frozenset(first))
        heads = dict(sound(gamma=sound(1).arrays["gamma"]).arrays)
        other = models.layer("b", heads, inputs=frozenset(second))
        source = Source("m", format_)
        (finding,) = check(models.model(one, other, source=source), select=["BN013"])
        assert (finding.layer, finding.severity) == ("b", severity)

    def test_names_the_original(self) -> None:
        (finding,) = check(built({"first": sound(), "second": sound()}))
        assert finding.layer == "second"
        assert "'first'" in finding.message
