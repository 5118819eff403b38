"""The use of moving statistics in training graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

import bnstat
from bnstat.discovery.graphs import uses
from bnstat.formats.contents import Contents
from bnstat.formats.tensorflow.graph_def import graph_of
from bnstat.loading import open_contents
from bnstat.model import ROLES, BatchNorm, Source, StatisticsUse, Variable
from tests.builders.graph_mode import save_graph
from tests.discovery.graphs.models import make_graph, stored

v1 = tf.compat.v1
Mode = Any


def block(x: Any, scope: str, mode: Mode) -> tuple[Any, list[Any]]:
    """Normalize by the batch (True), the stored statistics (False) or as a tensor specifies."""
    with v1.variable_scope(scope):
        beta, *moving = (
            v1.get_variable(role, [4], trainable=role == "beta", use_resource=False)
            for role in ROLES[1:]
        )
    batch = v1.nn.moments(x, [0])
    pairs = zip(moving, batch, strict=True)
    updates = [v1.assign_sub(variable, (variable - new) * 0.1) for variable, new in pairs]
    if isinstance(mode, bool):
        used = batch if mode else moving
    else:
        used = v1.cond(mode, lambda: [*batch], lambda: [*map(tf.identity, moving)])
    return v1.nn.batch_normalization(x, *used, beta, None, 1e-3), updates


def uses_in(folder: Path, build: Callable[[], Any]) -> dict[str, StatisticsUse]:
    save_graph(folder / "model", build, write_meta_graph=True)
    return dict(bnstat.load(folder / "model").statistics_uses())


def save(
    folder: Path, mode: Callable[[], Mode], with_updates: int = 0, extra: Any = None
) -> dict[str, StatisticsUse]:
    """Return the uses in a network of two layers, whose training op waits for some updates."""

    def build() -> None:
        v1.disable_control_flow_v2()
        x = v1.placeholder(tf.float32, (None, 4))
        chosen = mode()
        x, first = block(x, "a", chosen)
        x, second = block(x, "b", chosen)
        loss = v1.reduce_mean(x * x * x)
        with v1.control_dependencies([*first, *second][:with_updates]):
            v1.train.GradientDescentOptimizer(0.1).minimize(loss)
        if extra is not None:
            extra(loss)

    return uses_in(folder, build)


def use(run: int, mode: str, is_read: bool) -> StatisticsUse:
    return StatisticsUse(2, run, mode, is_read)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("by_batch", "with_updates", "first", "second"),
    [
        (True, 3, use(2, "batch", False), use(1, "batch", False)),
        (True, 0, use(0, "batch", False), use(0, "batch", False)),
        (False, 0, use(0, "stored", True), use(0, "stored", True)),
    ],
)
def test_updates_that_the_training_op_runs(
    by_batch: bool, with_updates: int, first: Any, second: Any, tmp_path: Path
) -> None:
    assert save(tmp_path, lambda: by_batch, with_updates) == {"a": first, "b": second}


@pytest.mark.parametrize(
    ("make", "mode"),
    [
        (lambda: v1.placeholder(tf.bool, ()), "fed"),
        (lambda: v1.placeholder_with_default(True, ()), "fed"),
        (lambda: v1.placeholder_with_default(False, ()), "either"),
        (lambda: v1.get_variable("flag", initializer=True, trainable=False), "either"),
    ],
)
def test_a_graph_that_can_be_switched(make: Callable[[], Mode], mode: str, tmp_path: Path) -> None:
    assert save(tmp_path, make) == dict.fromkeys("ab", use(0, mode, True))


def test_a_training_op_after_the_optimizer(tmp_path: Path) -> None:
    def group(loss: Any) -> None:
        graph = v1.get_default_graph()
        ops = graph.get_operations()
        moving = [op for op in ops if op.type == "AssignSub"]
        v1.group(graph.get_operation_by_name("GradientDescent"), *moving, name="step")

    assert save(tmp_path, lambda: True, extra=group) == dict.fromkeys("ab", use(2, "batch", False))


@pytest.mark.parametrize("is_summary", [True, False])
def test_summaries_and_savers_do_not_use_the_statistics(is_summary: bool, tmp_path: Path) -> None:
    def reader(loss: Any) -> None:
        with v1.variable_scope("a", reuse=True):
            mean = v1.get_variable("moving_mean")
        if is_summary:
            v1.summary.histogram("mean", mean)
            v1.summary.merge_all()
        else:
            tf.reduce_sum(mean)

    found = save(tmp_path, lambda: True, extra=reader)
    assert [found[name].is_read for name in "ab"] == [not is_summary, False]


def test_a_placeholder_without_its_default() -> None:
    keys = {role: Variable(f"bn/{role}", "", "float32", (4,), list) for role in ROLES}
    nodes = [
        *stored("bn"),
        *((f"{role}/read", "Identity", [f"bn/{role}"], {}) for role in ROLES[2:]),
        ("mode", "PlaceholderWithDefault", [], {}),
        *((f"{role}/used", "Select", ["mode", f"{role}/read", "batch"], {}) for role in ROLES[2:]),
        ("y", "FusedBatchNormV3", ["x", "bn/gamma", "bn/beta", *(f"{r}/used" for r in ROLES[2:])],
         {"is_training": False}),
        ("train", "ApplyGradientDescent", ["bn/beta", "rate", "y"], {}),
    ]  # fmt: skip
    graph = graph_of(make_graph(nodes), {key.key for key in keys.values()})
    contents = Contents(Source("", ""), {}, graphs=lambda: [graph])
    assert uses.statistics_uses(contents, [BatchNorm("bn", keys)])["bn"].mode == "either"


def test_a_graph_that_does_not_train(tmp_path: Path) -> None:
    def build() -> None:
        block(v1.placeholder(tf.float32, (None, 4)), "a", False)

    (found,) = uses_in(tmp_path, build).values()
    assert (found.updates_run, found.mode, found.is_read) == (None, None, True)


def test_a_step_of_keras_that_assigns(tmp_path: Path) -> None:
    def build() -> None:
        _, updates = block(v1.placeholder(tf.float32, (None, 4)), "a", True)
        with v1.variable_scope("a", reuse=True):
            beta = v1.get_variable("beta")
        step = v1.assign(beta, beta - 0.1 * tf.reduce_sum(beta))
        v1.group(step, *updates)

    (found,) = uses_in(tmp_path, build).values()
    assert (found.updates, found.updates_run) == (2, 2)


@pytest.mark.parametrize("waits", [["block1"] * 1000, ["images"] * 100_000])
def test_a_graph_that_takes_too_long_shows_nothing(
    waits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(Path(__file__).parents[2] / "data/digits_no_updates/run/model-400")
    contents, layers = open_contents(path), bnstat.load(path).layers
    assert contents.graphs is not None
    (graph,) = contents.graphs()
    taken = 0
    take = uses.Steps.take

    def counted(self: uses.Steps, count: int = 1) -> bool:
        nonlocal taken
        taken += 1
        return take(self, count)

    monkeypatch.setattr(uses, "_MOST_STEPS", 20_000)
    assert uses.statistics_uses(contents, layers)
    monkeypatch.setattr(uses.Steps, "take", counted)
    hostile = replace(graph, controls=lambda name: waits)
    assert uses.statistics_uses(replace(contents, graphs=lambda: [hostile]), layers) == {}
    assert taken < 30_000
