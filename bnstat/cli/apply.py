"""`bnstat apply`: write a copy of a model with new values."""

from __future__ import annotations

from typing import Any

import click

from bnstat.cli import options
from bnstat.cli.options import say
from bnstat.exchange.registry import FORMATS
from bnstat.model import ROLES


def _titles(*, is_rounded: bool) -> str:
    return ", ".join(row.title for row in FORMATS if row.is_rounded == is_rounded)


_EPILOG = f"""\b
VALUES is one of these, identified by content:
  {_titles(is_rounded=True)}
             as bnstat export writes them, edited or not. A role that is null
             (in a table: empty) or missing keeps its stored values; so does a
             missing layer. Decimals are rounded to the nearest number of the
             stored type.
  {_titles(is_rounded=False)}
             as bnstat export writes them. The stored type must hold every
             number exactly.
  a model    of any format. Its layers are paired as bnstat diff pairs them.
Scales and shifts (export --folded) are refused, because no variable stores
them.

\b
COPY is a folder, a checkpoint's prefix or a file, like MODEL. If MODEL is a
training folder, one checkpoint is copied into a new folder.

\b
Examples:
  bnstat export saved_model -o stats.json
  bnstat apply saved_model stats.json -o mended
  bnstat apply runs/cnn/model-1200 ema.npz -o out/model-1200 --layer 'b1/*'
  bnstat apply model.h5 other.keras -o new.h5 --role moving_mean \\
      --role moving_variance
"""


@click.command("apply", epilog=_EPILOG)
@click.argument("model", type=click.Path())
@click.argument("values", type=click.Path())
@click.option(
    "-o",
    "--output",
    metavar="COPY",
    type=click.Path(),
    help="Write the copy to this path, which must not exist.",
)
@click.option("--in-place", is_flag=True, help="Replace the original by the finished copy.")
@options.repeatable(
    "--role",
    "roles",
    metavar="ROLE",
    default=ROLES,
    type=click.Choice(ROLES),
    help="Write only this role: gamma, beta, moving_mean or moving_variance.",
)
@options.layers
@options.choosing
@options.config
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
@options.quiet
def command(
    model: str, output: str | None, in_place: bool, as_json: bool, quiet: bool, **choice: Any
) -> int:
    """Write a copy of MODEL, in its own format, with VALUES for its batch-norm layers.

    Only these values and their checksums change; every other byte of the copy is identical to
    MODEL. If a value cannot be written exactly (MODEL lacks the layer, the shape differs, the
    stored type does not hold the value), nothing is written and the command fails. bnstat reads the
    copy back and compares it before moving it into place.
    """
    if in_place == (output is not None):
        raise click.UsageError("pass either -o COPY or --in-place")

    from bnstat.mending.apply import apply
    from bnstat.output import differences
    from bnstat.output.sink import show, write_lines

    applied = apply(model, output=output, in_place=in_place, **choice)
    if as_json:
        write_lines(differences.applied_json(applied), "-")
    elif not quiet:
        show(lambda screen: differences.applied_text(applied, screen), "-")
    if not applied.moved and not quiet:
        say("note: MODEL already has these values; nothing changed")
    return 0
