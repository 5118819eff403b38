"""The registry has one row for every file format, and nothing names a format that has no row."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import bnstat.formats
from bnstat.formats.detection import Finder, finders
from bnstat.formats.registry import BY_NAME, FORMATS, known_formats

FOLDER = Path(bnstat.formats.__file__).parent
ROW = "add a row to FORMATS in bnstat/formats/registry.py"
SINGLE_FILE = {"matches", "open_contents"}
"""The functions of a module that reads a single-file format."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield the name of each module below `bnstat.formats`, and its syntax tree."""
    for path in sorted(FOLDER.rglob("*.py")):
        parts = path.relative_to(FOLDER).with_suffix("").parts
        yield ".".join(parts), ast.parse(path.read_text(encoding="utf-8"))


def test_every_name_is_unique_and_fits_into_the_table_of_scan() -> None:
    assert len(BY_NAME) == len(FORMATS)
    longest = max(BY_NAME, key=len)
    assert len(longest) <= 17, f"shorten {longest!r}, or widen _FORMAT in output/scans.py"


def test_every_module_that_reads_single_files_has_a_row() -> None:
    names = {
        name
        for name, tree in modules()
        if {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} >= SINGLE_FILE
    }
    assert names - {row.module for row in FORMATS} == set(), ROW


def test_every_module_and_finder_of_a_row_exists() -> None:
    for row in FORMATS:
        assert row.module or row.finders, f"{row.name} has neither a module nor a finder"
        if row.module:
            functions = vars(import_module(f"bnstat.formats.{row.module}"))
            missing = SINGLE_FILE - functions.keys()
            assert not missing, f"bnstat.formats.{row.module} needs the functions {missing}"
    assert all(isinstance(finder, Finder) for finder in finders())


def test_every_finder_has_a_row() -> None:
    for name, _ in modules():
        import_module(f"bnstat.formats.{name.removesuffix('.__init__')}")
    pending, names = [Finder], set()
    while pending:
        kinds = pending.pop().__subclasses__()
        pending += kinds
        names |= {f"{kind.__module__}.{kind.__name__}" for kind in kinds}
    inside = {name.removeprefix("bnstat.formats.") for name in names if name.startswith("bnstat.")}
    finders = {finder for row in FORMATS for finder in row.finders}
    assert inside - {"detection.SingleFile", "finders._Indexed"} == finders, ROW


def test_readers_and_rows_use_the_same_names() -> None:
    """A reader sets `Source.format` by `replace(source, format="...")`."""
    names = {
        keyword.value.value
        for _, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "replace"
        for keyword in node.keywords
        if keyword.arg == "format" and isinstance(keyword.value, ast.Constant)
    }
    assert names - BY_NAME.keys() == set(), ROW
    assert BY_NAME.keys() - names == set(), "no reader in bnstat/formats sets these names"


def test_what_describes_a_format() -> None:
    for row in FORMATS:
        assert row.label in known_formats()
        assert row.description, f"{row.name} needs a description for docs/files.md"
        assert row.is_converted or not row.exact_writers, f"{row.name}: set is_converted"
