"""Stores of models, made of the project's own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bnstat.scanning.engines import Engine, Here
from bnstat.scanning.job import How
from bnstat.scanning.record import Record
from bnstat.scanning.scan import scan
from bnstat.scanning.state import State
from bnstat.scanning.walk import Candidate, Choice, Unreadable, walk
from bnstat.storage.local import LocalFolder
from tests.cli.files import write_h5
from tests.output.models import usual

DATA = Path(__file__).parents[1] / "data"
RUN = DATA / "digits/run"
SAVED = DATA / "digits/saved_model"


def h5(path: Path, *names: str) -> Path:
    """A sound model in a file of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_h5(path, *(usual(name) for name in names or ("bn",)))
    return path


def linked(model: Path, folder: Path) -> None:
    """The files of a folder in another, by hard links where these are to be had."""
    shutil.copytree(model, folder, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def store(folder: Path, copies: int) -> Path:
    """So many copies of the six models of a run and its SavedModel."""
    for number in range(copies):
        linked(RUN, folder / f"{number}/run")
        linked(SAVED, folder / f"{number}/saved_model")
    return folder


def found(root: Path, **choice: object) -> dict[str, str]:
    """What a walk finds: the paths below the root, and the file that decides, or what is wrong."""
    told = {}
    for one in walk([LocalFolder(str(root))], Choice(**choice)):  # type: ignore[arg-type]
        inside = os.path.relpath(one.path, root)
        assert inside not in told
        told[inside] = one.file if isinstance(one, Candidate) else f"! {one.error.what}"
        assert isinstance(one, Candidate | Unreadable)
    return told


def scanned(
    *roots: Path | str,
    choice: Choice | None = None,
    how: How | None = None,
    engine: Engine | None = None,
    state: State | None = None,
) -> list[Record]:
    """The records of a scan, in the order of their paths."""
    paths = [str(root) for root in roots]
    records = scan(paths, choice or Choice(), how or How(), engine or Here(), state)
    return sorted(records, key=lambda record: (record.path, record.checkpoint or ""))


def told(records: list[Record], root: Path) -> dict[str, object]:
    """Path below the root -> the layers, or what is wrong."""
    return {
        os.path.relpath(record.path, root): record.trouble or record.layers for record in records
    }
