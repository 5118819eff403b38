"""Stores that consist of the models of the tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bnstat.scanning.engines import Engine
from bnstat.scanning.record import Record, State
from bnstat.scanning.scan import ScanOptions, scan
from bnstat.scanning.walk import Candidate, Choice, walk
from bnstat.storage.local import LocalFolder
from tests.cli.files import write_h5
from tests.output.models import usual

DATA = Path(__file__).parents[1] / "data"
RUN = DATA / "digits/run"
SAVED = DATA / "digits/saved_model"


def h5(path: Path, *names: str) -> Path:
    """Write a model without findings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_h5(path, *(usual(name) for name in names or ("bn",)))
    return path


def copied(model: Path, folder: Path) -> None:
    shutil.copytree(model, folder, dirs_exist_ok=True)


def store(folder: Path, copies: int) -> Path:
    """Fill a folder with copies of the five checkpoints of a run and its SavedModel."""
    for number in range(copies):
        copied(RUN, folder / f"{number}/run")
        copied(SAVED, folder / f"{number}/saved_model")
    return folder


def paths_of(root: Path, **choice: object) -> dict[str, str]:
    """Walk: path below the root -> the file that decides, or the error."""
    paths = {}
    for item in walk([LocalFolder(str(root))], Choice(**choice)):  # type: ignore[arg-type]
        path = os.path.relpath(item.path, root)
        assert path not in paths
        paths[path] = item.file if isinstance(item, Candidate) else f"! {item.error.what}"
    return paths


def scanned(
    *roots: Path | str,
    choice: Choice | None = None,
    options: ScanOptions | None = None,
    engine: Engine | None = None,
    state: State | None = None,
) -> list[Record]:
    """Scan, and return the records in the order of their paths."""
    paths = [str(root) for root in roots]
    records = scan(paths, choice or Choice(), options or ScanOptions(), engine or Engine(), state)
    return sorted(records, key=lambda record: (record.path, record.checkpoint or ""))


def summary(records: list[Record], root: Path) -> dict[str, object]:
    """Path below the root -> the number of layers, or the trouble."""
    return {
        os.path.relpath(record.path, root): record.trouble or record.layers for record in records
    }
