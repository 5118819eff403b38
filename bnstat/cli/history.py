"""`bnstat history`: how the statistics moved over the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from bnstat.cli import options
from bnstat.model import printable
from bnstat.storage.access import redact

if TYPE_CHECKING:
    from bnstat.checks import Finding
    from bnstat.compare import History


_ROLES = ("gamma", "beta", "moving_mean", "moving_variance")


_EPILOG = """\b
Examples:
  bnstat history runs/cnn
  bnstat history runs/cnn --role moving_variance --layer 'block1*' --last 10
  bnstat history exported_versions --csv -o history.csv
  bnstat history runs/cnn --tensorboard runs/cnn/logs
"""


@click.command("history", epilog=_EPILOG)
@options.path
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(_ROLES),
    help="Show only this role. Can be repeated.",
)
@click.option(
    "--last", type=click.IntRange(min=1), metavar="N", help="Show only the last N checkpoints."
)
@click.option(
    "--csv", "as_csv", is_flag=True, help="Write CSV: one row per checkpoint, layer and role."
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@click.option(
    "--tensorboard",
    "logdir",
    metavar="LOGDIR",
    type=click.Path(),
    help="Also write histograms, scalars and findings of each checkpoint for TensorBoard, as the "
    "run 'bnstat' in the folder LOGDIR.",
)
@options.layers
@options.reading_all
@options.output
@options.quiet
def command(
    path: str,
    roles: tuple[str, ...],
    last: int | None,
    as_csv: bool,
    as_json: bool,
    logdir: str | None,
    layers: tuple[str, ...],
    reading: options.Reading,
    output: str,
    quiet: bool,
) -> int:
    """Show how the statistics moved over the checkpoints of the folder PATH.

    PATH is a folder of checkpoints, of Keras files or of SavedModel versions, or its URL. The
    default is the current folder. Checkpoints are read from the oldest to the newest. One that
    cannot be read is reported and left out. Below the table, findings name the statistics that are
    frozen, still drift or diverge.
    """
    if as_csv and as_json:
        raise click.UsageError("--csv and --json: choose one")

    run = _run(path, last, layers, reading, logdir, quiet)
    form = "csv" if as_csv else "json" if as_json else "text"
    if run.tracks or form != "text":
        from bnstat.checks import check

        _write(run.only(roles or _ROLES), check(run), redact(path), form, output)
    if run.tracks:
        return 0
    if not quiet:
        click.echo(f"no batch-norm layer found in {printable(redact(path))}", err=True)
    return 1


def _run(
    path: str,
    last: int | None,
    globs: tuple[str, ...],
    reading: options.Reading,
    logdir: str | None,
    quiet: bool,
) -> History:
    from bnstat.compare import history
    from bnstat.output.terminal.screen import track

    entries = track(reading.load_all(path, globs, last=last), "reading", hidden=quiet)
    if logdir is None:
        run = history(entries)
    else:
        from bnstat.output.tensorboard import write

        run = write(entries, logdir)
        if run.tracks and not quiet:
            shown = printable(logdir)
            click.echo(f"written for TensorBoard; see tensorboard --logdir {shown}", err=True)
    if run.skipped and not run.checkpoints:
        raise run.skipped[0].error
    for skipped in run.skipped:
        click.echo(f"skipped: {printable(str(skipped.error))}", err=True)
    return run


def _write(run: History, findings: Sequence[Finding], path: str, form: str, output: str) -> None:
    from bnstat.output.sink import open_text, show

    if form == "csv":
        from bnstat.output.results import history as history_csv

        with open_text(output) as file:
            history_csv.dump_history_csv(run, file)
    elif form == "json":
        from bnstat.output.results import history as history_json

        with open_text(output) as file:
            history_json.dump_history_json(run, findings, path, file)
    else:
        from bnstat.output.terminal import history as text

        show(lambda screen: text.lines(run, findings, path, screen), output)
