from __future__ import annotations

import json
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bnstat.errors import BnstatError
from bnstat.scanning import scan
from bnstat.scanning.record import State
from bnstat.scanning.scan import ScanOptions, open_state
from bnstat.scanning.walk import Choice
from tests.fuzz import handmade
from tests.scanning.stores import RUN, copied, h5, scanned, summary


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the candidates that are read."""
    names: list[str] = []
    examine = scan.examine

    def record_name(candidate: Any, *rest: Any) -> Any:
        names.append(os.path.basename(candidate.path))
        return examine(candidate, *rest)

    monkeypatch.setattr(scan, "examine", record_name)
    return names


def scan_with_state(
    root: Path, state: Path, options: ScanOptions | None = None
) -> dict[str, object]:
    with open_state(str(state), options or ScanOptions()) as known:
        return summary(scanned(root, options=options, state=known), root)


def test_only_changed_models_are_read_again(tmp_path: Path, examined: list[str]) -> None:
    root, state = tmp_path / "store", tmp_path / "state.db"
    copied(RUN, root / "run")
    h5(root / "one.h5")
    (root / "other").write_text("no model")
    first = scan_with_state(root, state)
    assert len(examined) == 7
    assert scan_with_state(root, state) == first
    assert len(examined) == 7
    h5(root / "one.h5", "bn", "more")
    h5(root / "new.h5")
    assert scan_with_state(root, state) == first | {"one.h5": 2, "new.h5": 1}
    assert examined[7:] == ["new.h5", "one.h5"]
    assert len(first) == 6
    (root / "run/model-100.data-00000-of-00001").unlink()
    assert scan_with_state(root, state)["run/model-100"] == "missing"
    assert examined[9:] == ["model-100"]


def test_the_same_model_by_another_path(tmp_path: Path, examined: list[str], monkeypatch) -> None:
    h5(tmp_path / "store/one.h5")
    scan_with_state(tmp_path / "store", tmp_path / "state.db")
    monkeypatch.chdir(tmp_path)
    with open_state("state.db", ScanOptions()) as known:
        (record,) = scanned(Path("store"), state=known)
    assert record.path == "store/one.h5"
    assert len(examined) == 1


def test_other_options_read_again(tmp_path: Path, examined: list[str]) -> None:
    root, state, unzipped = tmp_path / "store", tmp_path / "state.db", tmp_path / "unzipped"
    unzipped.mkdir()
    h5(root / "one.h5", "bn0")
    scan_with_state(root, state)
    scan_with_state(root, state, ScanOptions(reading={"reader": "native"}))
    assert len(examined) == 2
    one = json.dumps(handmade.config(1))
    two = one.replace("0.001", "0.002")
    alone, inside = tmp_path / "m.json", unzipped / "config.json"
    for file, text, times in (
        *((alone, one, 3), (alone, one, 3), (alone, two, 4), (alone, "no architecture", 5)),
        *((alone, one, 6), (inside, one, 7), (inside, one, 7), (inside, two, 8)),
    ):
        file.write_text(text)
        config = file if file == alone else unzipped
        scan_with_state(root, state, ScanOptions(reading={"config": str(config)}))
        assert len(examined) == times


def test_troubles_that_may_pass_are_not_kept(tmp_path: Path, examined: list[str]) -> None:
    root = tmp_path / "store"
    content = h5(root / "one.h5").read_bytes()
    (root / "one.h5").write_bytes(content[:-100])
    copied(RUN, root / "run")
    (root / "run/model-0.data-00000-of-00001").unlink()
    scan_with_state(root, tmp_path / "state.db")
    del examined[:]
    scan_with_state(root, tmp_path / "state.db")
    assert examined == ["model-0"]


def test_two_scans_share_a_state(tmp_path: Path) -> None:
    root, state = tmp_path / "store", tmp_path / "state.db"
    first = h5(root / "0.h5")
    for number in range(1, 100):
        os.link(first, root / f"{number}.h5")
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: scan_with_state(root, state), range(2)))
    assert results == [{f"{number}.h5": 1 for number in range(100)}] * 2
    base = sqlite3.connect(state)
    assert base.execute("pragma integrity_check").fetchone() == ("ok",)
    assert base.execute("select count(*) from models").fetchone() == (100,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no database" * 100, r"state\.db: the results of the scan cannot be stored"),
        (b"SQLite format 3\0" + bytes(100), r"state\.db: the results of the scan cannot be sto"),
        (None, r"state\.db: is a database of another program"),
    ],
)
def test_another_file_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    if content is None:
        base = sqlite3.connect(state)
        base.execute("create table mine (a)")
        base.commit()
        content = state.read_bytes()
    else:
        state.write_bytes(content)
    with pytest.raises(BnstatError, match=message):
        scan_with_state(tmp_path, state)
    assert state.read_bytes() == content
    with pytest.raises(BnstatError, match="the results of the scan cannot be stored"):
        scan_with_state(tmp_path, tmp_path / "nowhere/state.db")


def test_models_that_no_longer_exist_are_forgotten(tmp_path: Path) -> None:
    root = tmp_path / "store"
    copied(RUN, root / "run")
    gone, other = h5(root / "gone.h5"), h5(tmp_path / "store-beside/other.h5")
    path = str(tmp_path / "state.db")

    def rows(*roots: Path, choice: Choice | None = None) -> int:
        with closing(State(path, "how")) as state:
            scanned(*roots, choice=choice, state=state)
            (count,) = state._base.execute("select count(*) from models").fetchone()
        return int(count)

    assert rows(root, other.parent) == 7
    gone.unlink()
    assert rows(root, choice=Choice(include=["run"])) == 7
    assert rows(root) == 6
