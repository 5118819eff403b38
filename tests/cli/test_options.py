from __future__ import annotations

from unittest.mock import ANY

import pytest

from bnstat.storage.local import LocalFile
from tests.cli.files import write_h5
from tests.fuzz import handmade
from tests.output.models import model, usual

RUN = "tests/data/digits/run"
LARGE, SMALL = 50_000, 3
DEFAULTS = dict.fromkeys(("checkpoint", "step", "config"))
DEFAULTS |= {"patterns": (), "layers": (), "include_shadows": False, "values": True, "eager": True}
DEFAULTS |= {"reader": "auto", "track": ANY, "max_download": 256_000_000, "storage_options": {}}
CHANGES = {
    "--checkpoint model-7": {"checkpoint": "model-7"},
    "--step 7": {"step": 7},
    "--reader native": {"reader": "native"},
    r"--pattern gamma=s=1$ --pattern beta=\bm$": {
        "patterns": (("gamma", "s=1$"), ("beta", r"\bm$"))
    },
    "--include-shadows": {"include_shadows": True},
    "--no-values": {"values": False},
    "--layer bn --layer b*": {"layers": ("bn", "b*")},
    "--config m.json": {"config": "m.json"},
}


@pytest.mark.parametrize("command", ["inspect", "export"])
def test_options_are_passed_on(run, loads, command):
    calls = loads(model(usual("bn")))
    assert run(command).exit_code == 0
    changes = {name: value for change in CHANGES.values() for name, value in change.items()}
    assert run(command, "runs/cnn", *" ".join(CHANGES).split()).exit_code == 0
    assert calls == [(".", DEFAULTS), ("runs/cnn", DEFAULTS | changes)]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("scale$", "ROLE=REGEX"),
        ("scale=x", "gamma, beta, moving_mean, moving_variance"),
        ("gamma=(", "not a regular expression"),
    ],
)
def test_wrong_patterns(run, loads, pattern, message):
    loads(model())
    result = run("inspect", "--pattern", pattern)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize("globs", [["blok1"], ["block1", "blok1"], ["BLOCK1"]])
def test_a_glob_without_match_names_similar_layers(run, loads, globs):
    loads(model(usual("block1"), usual("stem")))
    result = run("inspect", *[part for glob in globs for part in ("--layer", glob)])
    assert result.exit_code == 2
    assert f"no batch-norm layer matches '{globs[-1]}'; near names: block1" in result.stderr


@pytest.fixture
def read(monkeypatch):
    """The number of bytes read of each file, by its name."""
    counts = {}
    plain = LocalFile._read

    def counted(file, offset, length):
        counts[file.name] = counts.get(file.name, 0) + length
        return plain(file, offset, length)

    monkeypatch.setattr(LocalFile, "_read", counted)
    return counts


@pytest.fixture(params=["checkpoint", "h5"])
def two_layers(request, tmp_path):
    """A file with a layer that is small and one that is not; its data file."""
    if request.param == "h5":
        write_h5(tmp_path / "m.h5", usual("large", LARGE), usual("small", SMALL))
        return tmp_path / "m.h5"
    tensors = {}
    for name, channels in (("large", LARGE), ("small", SMALL)):
        tensors |= {f"{name}/{role}": array for role, array in handmade.values(channels).items()}
    for name, content in handmade.bundle(tensors).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path / "m.data-00000-of-00001"


@pytest.mark.parametrize(
    "command", ["inspect", "inspect --values", "export", "check", "diff {0}", "history --json"]
)
def test_other_layers_are_not_read(run, read, two_layers, command):
    name, *rest = command.format(two_layers).split()
    paths = 2 if name == "diff" else 1
    result = run(name, two_layers, *rest, "-q", "--layer", "s*")
    assert result.exit_code in (0, 1), result.output
    assert SMALL * 16 * paths <= read[two_layers.name] < LARGE * 4
    read.clear()
    run(name, two_layers, *rest, "-q")
    assert read[two_layers.name] >= LARGE * 16 * paths


@pytest.mark.parametrize("command", ["inspect", "export", "check", "diff {0}"])
def test_progress_is_shown_while_layers_are_read(run, old, monkeypatch, command):
    tracked = []

    def track(items, what, *, hidden=False):
        tracked.append((what, len(items), hidden))
        return iter(items)

    monkeypatch.setattr("bnstat.output.terminal.screen.track", track)
    for options, hidden in (([], False), (["-q"], True)):
        run(*command.format(old).split(), old, *options)
        assert ("reading", 2, hidden) in tracked
