"""`bnstat inspect`: show the layers of a model in a table."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from bnstat.cli import options
from bnstat.cli.options import say

if TYPE_CHECKING:
    from bnstat.output.terminal.screen import Screen

_EPILOG = """\b
Examples:
  bnstat inspect saved_model
  bnstat inspect runs/cnn --step 1200 --layer 'block1/*'
  bnstat inspect model.keras --values -o values.txt
  bnstat inspect runs/cnn/model-1200.index --no-values
  bnstat inspect s3://bucket/runs/cnn --step 1200
  bnstat inspect m.weights.h5 --config m.json
  bnstat inspect saved_model --layer block1/bn --plot
"""


@click.command("inspect", epilog=_EPILOG)
@options.path
@click.option("--values", is_flag=True, help="Show every value instead of the table.")
@click.option("--plot", is_flag=True, help="Draw charts of each layer instead of the table.")
@options.no_values
@options.layers
@options.reading
@options.output
@options.quiet
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Also list every variable, and why it counts as batch norm, or why not.",
)
def command(
    path: str,
    values: bool,
    plot: bool,
    no_values: bool,
    reading: options.Reading,
    output: str,
    verbose: bool,
) -> int:
    """Show the batch-norm layers of the model at PATH in a table, one row per layer.

    PATH is the folder, the prefix, any file or the URL (s3://, gs://, az://, hf://, https://) of a
    SavedModel, a checkpoint, an .h5, a .keras or another model. The default is the current folder.
    Layers are in network order if the file records it.

    Each cell is the mean of a statistic and its standard deviation over the channels. A wider
    terminal, or a pipe, also shows the range and a histogram. A dash means that the layer has no
    such variable. A letter beside a name marks an obvious defect: N for NaN or infinite values,
    V for a negative variance, I for moving statistics that are still the initial 0 and 1.

    With --plot, two charts show each statistic: one its distribution, the other one its values in
    the channels, from the lowest to the highest.
    """
    if values + plot + no_values > 1:
        raise click.UsageError("--values, --plot and --no-values: choose one")
    (model,) = reading.load(path, values=not no_values)

    from bnstat.output.sink import show, writes_to_terminal
    from bnstat.output.terminal.screen import track

    hidden = reading.quiet or ((values or plot) and writes_to_terminal(output))
    tracked = functools.partial(track, what="reading", hidden=hidden)

    def lines(screen: Screen) -> Iterator[str]:
        from bnstat.output.terminal import overview
        from bnstat.output.terminal.table import wrapped

        if values or no_values or verbose:
            from bnstat.output.terminal import listing
        if not model.layers:
            for line in overview.undecided(model):
                yield from wrapped(line, screen)
        elif values:
            yield from listing.values(model, screen, tracked)
        elif no_values:
            yield from listing.variables(model, screen)
        elif plot:
            from bnstat.output.terminal.drawing import drawings

            yield from drawings(model, screen, tracked)
        else:
            yield from overview.overview(model, screen, tracked)
        if verbose:
            yield from listing.explanations(model, screen)

    show(lines, output)
    code = reading.exit_code(model)
    if code and not (verbose or reading.quiet) and next(iter(model.stored), None) is not None:
        say("pass -v to list every variable, and why the variable is or is not batch norm")
    return code
