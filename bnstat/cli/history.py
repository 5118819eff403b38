"""`bnstat history`: show how the statistics moved over a training run."""

from __future__ import annotations

import click

from bnstat.cli import options
from bnstat.cli.options import say
from bnstat.storage.access import redact

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
@options.repeatable("--role", "roles", type=click.Choice(_ROLES), help="Show only this role.")
@click.option(
    "--last", type=click.IntRange(min=1), metavar="N", help="Show only the last N checkpoints."
)
@options.formats(csv="Write CSV: one row per checkpoint, layer and role.", json="Write JSON.")
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
    format_: str,
    logdir: str | None,
    reading: options.Reading,
    output: str,
) -> int:
    """Show how the statistics moved over the checkpoints of the folder PATH.

    PATH is a folder of checkpoints, of Keras files or of SavedModel versions, or its URL. The
    default is the current folder. Checkpoints are read from the oldest to the newest. A
    checkpoint that cannot be read is reported and left out. Below the table, findings name the
    statistics that are frozen, still drift, diverge or become negative.
    """
    from bnstat.checks import check
    from bnstat.output import history as results
    from bnstat.output.sink import show, write_lines
    from bnstat.output.terminal.screen import track
    from bnstat.run_history import history

    models = track(reading.load_all(path, last), "reading", hidden=reading.quiet)
    if logdir is None:
        run = history(models)
    else:
        from bnstat.output.tensorboard import write

        run = write(models, logdir)
        if run.tracks and not reading.quiet:
            say(f"wrote a log for TensorBoard; to view it, run tensorboard --logdir {logdir}")
    if run.skipped and not run.checkpoints:
        raise run.skipped[0].error
    for skipped in run.skipped:
        say(f"skipped: {skipped.error}")
    if run.tracks or format_ != "text":
        tracks = run.only(roles or _ROLES)
        findings = check(run)
        if format_ == "text":
            show(lambda screen: results.text_lines(tracks, findings, redact(path), screen), output)
        elif format_ == "csv":
            write_lines(results.csv_lines(tracks), output)
        else:
            write_lines(results.json_lines(tracks, findings, redact(path)), output)
    if run.tracks:
        return 0
    if not reading.quiet:
        say(f"no batch-norm layer found in {redact(path)}")
    return 1
