from __future__ import annotations

import pytest

from tests.output.models import model, usual


@pytest.mark.parametrize("command", ["inspect", "export"])
def test_what_is_left_out(run, loads, command):
    calls = loads(model(usual("bn")))
    assert run(command).exit_code == 0
    assert calls == [
        (
            ".",
            {
                "checkpoint": None,
                "step": None,
                "reader": "auto",
                "patterns": (),
                "include_shadows": False,
                "values": True,
                "eager": True,
                "config": None,
            },
        )
    ]


@pytest.mark.parametrize("command", ["inspect", "export"])
def test_everything_is_passed_on(run, loads, command):
    calls = loads(model(usual("bn")))
    result = run(
        *(command, "runs/cnn", "--checkpoint", "model-7", "--step", "7", "--reader", "native"),
        *("--pattern", "gamma=scale=1$", "--pattern", r"moving_mean=\bmu$"),
        *("--include-shadows", "--no-values", "--config", "m.json"),
    )
    assert result.exit_code == 0
    assert calls == [
        (
            "runs/cnn",
            {
                "checkpoint": "model-7",
                "step": 7,
                "reader": "native",
                "patterns": (("gamma", "scale=1$"), ("moving_mean", r"\bmu$")),
                "include_shadows": True,
                "values": False,
                "eager": True,
                "config": "m.json",
            },
        )
    ]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("scale$", "ROLE=REGEX"),
        ("scale=x", "gamma, beta, moving_mean, moving_variance"),
        ("gamma=(", "no regular expression"),
    ],
)
def test_wrong_patterns(run, loads, pattern, message):
    loads(model())
    result = run("inspect", "--pattern", pattern)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("globs", "names"),
    [
        (["block1/*"], ["block1/a", "block1/b"]),
        (["*/a"], ["block1/a", "block2/a"]),
        (["block2/a", "block1/b"], ["block1/b", "block2/a"]),
        (["block?/[ab]"], ["block1/a", "block1/b", "block2/a"]),
    ],
)
def test_layers_are_chosen_by_name(run, loads, globs, names):
    loads(model(usual("block1/a"), usual("block1/b"), usual("block2/a")))
    options = [part for glob in globs for part in ("--layer", glob)]
    result = run("inspect", *options)
    table = result.stdout.split("\n\n")[1].splitlines()
    assert [line.split()[0] for line in table[1:]] == names


@pytest.mark.parametrize("globs", [["blok1"], ["block1", "blok1"], ["BLOCK1"]])
def test_a_glob_that_matches_nothing_names_what_is_near(run, loads, globs):
    loads(model(usual("block1"), usual("stem")))
    result = run("inspect", *[part for glob in globs for part in ("--layer", glob)])
    assert result.exit_code == 2
    assert f"no batch-norm layer matches '{globs[-1]}'; near names: block1" in result.stderr
