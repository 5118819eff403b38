"""`bnstat scan`: check every model below some folders."""

from __future__ import annotations

from typing import Any

import click

from bnstat.cli import options
from bnstat.cli.options import say

_EPILOG = """\b
Examples:
  bnstat scan models
  bnstat scan /mnt/models --jobs 0 --state scan.db --json -o scan.jsonl
  bnstat scan runs --newest --exclude 'tmp*' --fail-on error
  bnstat scan s3://models/production --jobs 4 --state scan.db
  bnstat scan /mnt/models --engine dask://HOST:8786 --parquet -o all.parquet

\b
Exit codes:
  0  no findings
  1  findings, a model that could not be read, or no model at all
  2  a ROOT does not exist, no model could be read, or the cluster is gone
"""


@click.command("scan", epilog=_EPILOG)
@click.argument("roots", metavar="ROOT...", nargs=-1, required=True, type=click.Path())
@options.repeatable(
    "--include",
    metavar="GLOB",
    help="Check only models whose path below ROOT, or any name in it, matches.",
)
@options.repeatable("--exclude", metavar="GLOB", help="Leave out models and folders that match.")
@click.option(
    "--newest",
    is_flag=True,
    help="Of a training run, check only the newest checkpoint; of numbered versions, the newest.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="Read N models at a time; 0 means one per core.",
)
@click.option(
    "--engine",
    metavar="URL",
    help="Read the models on a Dask cluster that sees the same files: dask://HOST:PORT, or "
    "dask://local for one on this machine.",
)
@options.file_option(
    "--state",
    help="Keep the results in FILE, so that a later scan reads only models that changed.",
)
@options.rules
@options.formats(
    json="Write JSON Lines, one object per model.",
    csv="Write CSV, one row per model.",
    parquet="Write Parquet, one row per model.",
    md="Write a Markdown table.",
)
@options.reading_all
@options.output
@options.quiet
def command(
    roots: tuple[str, ...],
    jobs: int,
    engine: str | None,
    state: str | None,
    rules: options.ChosenRules,
    format_: str,
    reading: options.Reading,
    output: str,
    **choice: Any,
) -> int:
    """Find every model below the ROOTs, check each, and print one line per model.

    A ROOT is the path or URL (s3://, gs://, az://, hf://) of a folder or a model. The files of a
    checkpoint, the folder of a SavedModel, and weights in several files count as one model each. A
    model that cannot be read gets a line like the others. The output ends with the number of models
    per rule and per read error.

    Settings are read from the nearest bnstat.toml, or pyproject.toml with [tool.bnstat], in a ROOT
    or a folder above, and never from below a ROOT. For URLs, the search starts at the current
    folder. --max-download applies to each model separately.
    """
    from bnstat.output import scans
    from bnstat.output.sink import open_binary, show, write_lines, writes_to_terminal
    from bnstat.output.terminal.screen import Screen, track
    from bnstat.scanning.engines import open_engine
    from bnstat.scanning.record import Tally
    from bnstat.scanning.scan import ScanOptions, open_state, scan
    from bnstat.scanning.walk import Choice

    if format_ == "parquet":
        options.refuse_terminal(output, "Parquet")
    scan_options = ScanOptions.of(roots, *rules, reading.for_all())
    tally = Tally(scan_options.fail_on)
    with open_engine(engine, jobs) as workers, open_state(state, scan_options) as before:
        records = scan(roots, Choice(**choice), scan_options, workers, before)
        hidden = reading.quiet or writes_to_terminal(output)
        tracked = tally.counting(track(records, "scanning", hidden=hidden))
        if format_ == "text":
            show(lambda screen: scans.text_lines(tracked, tally, screen), output)
        elif format_ == "md":
            show(lambda _: scans.markdown_lines(tracked, tally), output)
        elif format_ == "json":
            show(lambda _: scans.json_lines(tracked), output)
        elif format_ == "csv":
            write_lines(scans.csv_lines(tracked), output)
        else:
            with open_binary(output) as stream:
                scans.dump_parquet(tracked, stream)
    if format_ not in ("text", "md") and not reading.quiet:
        for line in scans.counts(tally, Screen()):
            say(line)
    return tally.code
