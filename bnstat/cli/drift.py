"""`bnstat drift`: how far the stored statistics are from the statistics of real data."""

from __future__ import annotations

from typing import Any

import click

from bnstat.cli import options, running_options
from bnstat.cli.options import say

_EPILOG = f"""\b
Examples:
  bnstat drift saved_model --data today.npz
  bnstat drift m.keras --data photos --scale 1/255 --fail-on 0.5
  bnstat drift frozen.pb --data prepare.py:batches --csv -o drift.csv

{running_options.DATA}
{running_options.RUNS}
"""


@click.command("drift", epilog=_EPILOG)
@click.argument("model", type=click.Path())
@running_options.options
@click.option(
    "--fail-on",
    type=click.FloatRange(min=0),
    metavar="J",
    help="Exit with 1 if a layer's divergence is above this.",
)
@options.formats(json="Write JSON, with every channel.", csv="Write CSV: one row per channel.")
@options.layers
@options.choosing
@options.file_option("-o", "file", default="-", help=options.INTO_FILE)
@options.quiet
def command(
    model: str, fail_on: float | None, format_: str, file: str, quiet: bool, **settings: Any
) -> int:
    """Show how far the stored statistics of MODEL are from the statistics of DATA.

    This runs the model: TensorFlow executes its graph once, unchanged, in inference. The result
    shows whether the model is healthy, its statistics were never updated, or the distribution of
    DATA differs from the training data.

    With --labels, or if layers hold the initial mean 0 and variance 1, up to 512 samples are run
    once more, normalized with their own statistics. The output compares the accuracies, and may
    show with which statistics the network was trained.
    """
    from bnstat.estimate.drift import drift
    from bnstat.output import drift as results
    from bnstat.output.sink import show, write_lines

    result = drift(model, **settings)
    if format_ == "json":
        write_lines(results.json_lines(result, model), file)
    elif format_ == "csv":
        write_lines(results.csv_lines(result), file)
    else:
        show(lambda screen: results.text_lines(result, model, screen), file)
    if not quiet:
        for name, reason in result.left.items():
            say(f"note: {name} was not measured: {reason}")
    return int(fail_on is not None and result.largest > fail_on)
