"""`bnstat recalibrate`: a copy of a model with statistics estimated from data."""

from __future__ import annotations

from typing import Any

import click

from bnstat.cli import options, running_options
from bnstat.cli.options import say

_EPILOG = f"""\b
Examples:
  bnstat recalibrate saved_model --data train.npz -o mended
  bnstat recalibrate m.keras --data photos --scale 1/255 -o mended.keras
  bnstat recalibrate frozen.pb --data prepare.py:batches --exact -o mended.pb

{running_options.DATA}
{running_options.RUNS}
"""


@click.command("recalibrate", epilog=_EPILOG)
@click.argument("model", type=click.Path())
@running_options.options
@click.option("-o", "copy", metavar="COPY", type=click.Path(), help="Write the copy to this path.")
@click.option("--in-place", is_flag=True, help="Replace the original by the copy.")
@click.option("--dry-run", is_flag=True, help="Estimate and show, but write no copy.")
@click.option(
    "--exact",
    is_flag=True,
    help="Estimate layer after layer from the input to the output, so that no residual is left. "
    "This reads the data many times.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Write the copy even if MODEL was trained in inference mode with the statistics that it "
    "stores, or if the new ones lower the accuracy.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
@options.layers
@options.choosing
@options.quiet
def command(
    model: str,
    copy: str | None,
    in_place: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> int:
    """Estimate moving means and variances from DATA, and write a copy of MODEL with them.

    This runs the model: TensorFlow executes its graph in inference, so that dropout is off. In a
    first pass each layer normalizes by the batch, and its inputs are measured. A second pass, in
    inference, compares the inputs of each layer with the new statistics.

    If layers hold the initial mean 0 and variance 1, either their updates never ran, or the
    network was trained in inference mode and needs the mean 0 and the variance 1. To find out, the
    command examines MODEL, and runs up to 512 samples once more with the stored statistics. It
    writes no copy of a network that was trained in inference mode and, with --labels, no copy of
    lower accuracy. Use --labels if MODEL was fine-tuned with frozen batch norm: such a network
    needs its stored statistics.
    """
    if sum((copy is not None, in_place, dry_run)) != 1:
        raise click.UsageError("pass exactly one of -o COPY, --in-place and --dry-run")

    from bnstat.estimate.recalibration import recalibrate
    from bnstat.output import drift as results
    from bnstat.output.sink import show, write_lines

    size, least = settings["batch_size"], results.SMALL_BATCH
    if size < least and not settings["exact"] and not quiet:
        say(
            f"warning: the moments of batches of {size} samples are inaccurate, and the error "
            f"grows with each layer: use --exact, or batches of at least {least} samples"
        )
    result = recalibrate(model, output=copy, in_place=in_place, **settings)
    written = model if in_place else copy
    if as_json:
        write_lines(results.recalibration_json(result, model, written), "-")
    else:
        show(lambda screen: results.recalibration_text(result, model, written, screen), "-")
    if not quiet:
        for note in results.notes(result):
            say(note)
    return 0
