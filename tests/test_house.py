"""The layout of the code: the imports between its parts, and the sizes of files and folders."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bnstat"

EVERYWHERE = {"display", "errors", "signals", "text"}
"""Parts that every other part may import."""

READING = {"storage", "model", "formats", "discovery", "live", "loading"}
JUDGING = {"model", "run_history", "compare", "checks"}

MAY_IMPORT = {
    **{part: set() for part in sorted(EVERYWHERE)},
    "storage": set(),
    "model": {"storage", "formats.registry"},
    "formats": {"storage", "model"},
    "formats.registry": set(),
    "formats.protobuf": {"storage", "formats.dtypes"},
    "formats.hdf5": {"storage", "model", "formats.contents", "formats.dtypes"},
    "discovery": {"model", "formats.contents"},
    "live": {"model", "discovery", "formats.contents", "formats.tensorflow"},
    "loading": READING,
    "run_history": {"model", "loading"},
    "compare": {"model", "loading"},
    "checks": {"docs", "model", "loading", "run_history", "formats.registry"},
    "scanning": {"__version__", "storage", "model", "formats", "loading", "checks"},
    "exchange": {"storage", "model", "formats", "loading", "compare"},
    "mending": {*READING, "compare", "exchange"},
    "estimate": {*READING, "compare", "checks", "mending"},
    "output": {*JUDGING, "__version__", "exchange", "mending", "estimate", "scanning"},
    # The checksum of the records in an event file is that of tables.
    "output.tensorboard": {*JUDGING, "output", "formats.tensorflow.sstable"},
    "docs": set(),
    "keras": {"live", "model", "run_history", "checks", "output"},
    "cli": {
        *JUDGING,
        *("__version__", "docs", "storage.access", "loading"),
        *("exchange", "mending", "estimate", "scanning", "output"),
    },
}
"""Part -> the parts that it may import, with everything in them. The longest name counts."""

LONGEST_FILE = 700

FAMILIES = ("cli", "exchange", "mending.writers", "output")  # named like what they serve
PARTS_OF_FORMATS = {"detection", "file"}  # names of the same part of several formats


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).glob("**/*.py"))]


def name_of(path: Path) -> str:
    """`bnstat/formats/keras/h5.py` -> `formats.keras.h5`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, *, for_types: bool = True) -> Iterator[str]:
    """Yield the parts of bnstat that a file imports, also inside functions."""
    tree = ast.parse(path.read_text())
    types = [
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    ]
    for node in ast.walk(tree):
        if not for_types and node in types:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from bnstat.a import b` may mean the module `a.b`.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("bnstat.") for name in names if name.startswith("bnstat."))


def is_in(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def part_of(name: str) -> str | None:
    return max((part for part in MAY_IMPORT if is_in(name, part)), key=len, default=None)


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_run_one_way(part: str) -> None:
    allowed = {part, *EVERYWHERE, *MAY_IMPORT[part]}
    wrong = [
        f"{name_of(path)} imports {name}"
        for path in sources("bnstat")
        if part_of(name_of(path)) == part
        for name in imported(path)
        if not any(is_in(name, one) for one in allowed)
    ]
    assert wrong == []


def test_no_modules_import_each_other() -> None:
    modules = {name_of(path): path for path in sources("bnstat")}
    imports: dict[str, set[str]] = {}
    for name, path in modules.items():
        used = {
            target if target in modules else target.rpartition(".")[0]
            for target in imported(path, for_types=False)
        }
        imports[name] = used & modules.keys() - {name, ""}
    # It raises CycleError, which names the modules of a cycle.
    TopologicalSorter(imports).prepare()


def test_every_module_belongs_to_a_part() -> None:
    names = {name_of(path) for path in sources("bnstat")}
    assert {name for name in names if part_of(name) is None} == {"", "__main__"}


def test_no_file_is_longer_than_700_lines() -> None:
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in sources("bnstat", "tests")
    }
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}


def test_folders_are_at_most_two_levels_deep() -> None:
    deep = [path for path in sources("bnstat") if len(path.relative_to(PACKAGE).parts) > 3]
    assert deep == []


def test_a_name_means_one_module() -> None:
    modules = [name_of(path) for path in sources("bnstat") if path.stem != "__init__"]
    rows = [name for name in modules if any(is_in(name, family) for family in FAMILIES)]
    names = [name.rpartition(".")[2] for name in modules if name not in rows]
    assert {one for one in names if names.count(one) > 1} == PARTS_OF_FORMATS, "rename a module"


def test_only_its_reader_and_code_that_runs_models_import_tensorflow() -> None:
    using = {
        path.relative_to(PACKAGE).as_posix()
        for path in sources("bnstat")
        if re.search(r"(?m)^\s*(import|from) tensorflow", path.read_text())
    }
    runs = {name for name in using if name.startswith("estimate/")}
    assert runs
    assert using - runs == {"formats/tensorflow/checkpoint.py"}


def test_no_test_measures_seconds() -> None:
    """Limits of seconds depend on the machine: use tests/builders/effort.py instead."""
    measuring = [
        path.relative_to(ROOT)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if path != Path(__file__)
        and re.search(r"\b(process_time|perf_counter|timeit)\b", path.read_text(encoding="utf-8"))
    ]
    assert measuring == []
