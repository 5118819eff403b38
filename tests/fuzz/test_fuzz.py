"""A short run of the fuzzer, and tests that it detects what it looks for."""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path
from random import Random

import pytest

import bnstat
from bnstat.formats.registry import BY_NAME
from tests.fuzz import campaign, handmade, wire
from tests.fuzz.campaign import Campaign
from tests.fuzz.recipes import make
from tests.fuzz.seeds import Seed, formats, seeds
from tests.fuzz.worker import Worker


@pytest.mark.parametrize("rounds", [2, pytest.param(200, marks=pytest.mark.slow)])
def test_every_format_for_a_moment(rounds: int, tmp_path: Path) -> None:
    with closing(Campaign(seeds(), tmp_path / "findings")) as run:
        run.run(rounds=rounds)
    assert set(run.cases) == set(formats())
    assert not run.findings, "\n".join(run.lines())


def test_every_format_of_the_registry_has_a_seed(tmp_path: Path) -> None:
    missing = set(BY_NAME)
    for number, seed in enumerate(seeds()):
        if missing:
            path = seed.write(tmp_path / str(number))
            with suppress(bnstat.BnstatError):
                missing.discard(bnstat.load(path, values=False).source.format)
    assert not missing, (
        f"the fuzzer has no file of the formats {sorted(missing)}: add one to array_files in "
        "tests/fuzz/ports.py, or a seed to tests/fuzz/seeds.py"
    )


def test_a_case_is_the_same_every_time() -> None:
    for format_ in formats():
        seed = next(seed for seed in seeds() if seed.format == format_)
        assert make(Random("7"), seed) == make(Random("7"), seed)
        assert any(make(Random(str(i)), seed)[0] != seed for i in range(5))


def test_tables_are_written_as_tensorflow_reads_them(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    for name, content in handmade.bundles()["two-shards"].items():
        (tmp_path / name).write_bytes(content)
    reader = tf.train.load_checkpoint(str(tmp_path / "m"))
    for role, array in handmade.values().items():
        assert (reader.get_tensor(f"bn1/{role}") == array).all()


def test_parsed_messages_are_written_as_before() -> None:
    message, _ = handmade.bn_graph()
    assert wire.encode(wire.parse(message)) == message


def _plant(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bnstat do something forbidden in new processes."""
    (folder / "sitecustomize.py").write_text(
        f"import bnstat.loading\ndef load(path, **_):\n    {code}\nbnstat.loading.load = load\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(bnstat.__file__).parents[1]}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "finding"),
    [
        ("raise KeyError(path)", "KeyError in judge"),
        ("raise RecursionError", "RecursionError in judge"),
        ("return bytearray(2 << 30)", "MemoryError in judge"),
        ("exec('while True: pass')", "takes more CPU time than 200 calibration loops"),
        ("import os; os.abort()", "the process dies with -6"),
    ],
)
def test_forbidden_behaviour_is_a_finding(
    code: str, finding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plant(tmp_path, code, monkeypatch)
    with closing(Worker()) as worker:
        verdict = worker.judge(tmp_path)
        assert (verdict.text, verdict.is_finding) == (finding, True)
        monkeypatch.delenv("PYTHONPATH")
        worker.close()
        assert worker.judge(tmp_path).text == "error: NotFoundError"


@pytest.mark.slow
def test_a_finding_is_saved_and_can_be_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plant(tmp_path, "raise KeyError(path)", monkeypatch)
    seed = Seed("s", "state", {"a": bytes(64)})
    with closing(Campaign([seed], tmp_path / "findings")) as run:
        run.run(rounds=0)
    (folder,) = run.findings.values()
    assert (folder / "files" / "a").read_bytes() == bytes(64)
    assert "KeyError" in campaign.replay(folder).text
