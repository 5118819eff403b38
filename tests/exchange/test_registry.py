"""The rows of the export formats, and the options and help that are derived from them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bnstat.cli import main
from bnstat.exchange.registry import FORMATS, ExportFormat

MODEL = str(Path(__file__).parents[1] / "data/digits/saved_model")
each_format = pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)


@each_format
def test_the_module_is_complete(row: ExportFormat) -> None:
    needed = {"dump"} if row.is_model else {"dump", "matches", "read"}
    missing = sorted(needed - set(vars(row.module)))
    assert not missing, f"bnstat/exchange/{row.name}.py needs {', '.join(missing)}"


@each_format
def test_the_help_describes_it(row: ExportFormat) -> None:
    text = CliRunner().invoke(main, ["export", "--help"]).output
    assert f"  {row.title}" in text
    for line in row.content.splitlines():
        assert line in text
    assert (f"--{row.name} " in text) == bool(row.flag)


@each_format
def test_ending_and_options_choose_it(row: ExportFormat, tmp_path: Path) -> None:
    ways = [["-o", f"a.{row.name.upper()}"], ["--format", row.name, "-o", "b"]]
    ways += [[f"--{row.name}", "-o", "c"]] if row.flag else []
    written = set()
    for *options, name in ways:
        arguments = ["export", MODEL, *options, str(tmp_path / name)]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        written.add((tmp_path / name).read_bytes())
    assert len(written) == 1
