"""`bnstat export`: write every value of every layer, for programs."""

from __future__ import annotations

import functools

import click

from bnstat.cli import options
from bnstat.exchange.naming import NAMINGS
from bnstat.exchange.registry import FORMATS, ExportFormat


def _described(row: ExportFormat) -> str:
    separator = "\n" + " " * 8
    start = f"  {row.title:4}  " if len(row.title) <= 4 else f"  {row.title}{separator}"
    return start + row.content.replace("\n", separator)


_EPILOG = (
    "\n".join(["\b", "Formats:", *map(_described, FORMATS)])
    + """

\b
Examples:
  bnstat export saved_model --json | jq '.layers[].name'
  bnstat export runs/cnn --step 1200 -o stats.npz
  bnstat export model.h5 --layer 'block1*' --csv
  bnstat export model.keras --names pytorch -o port.safetensors
  bnstat export model.keras --folded --csv
"""
)


@click.command("export", epilog=_EPILOG)
@options.path
@options.formats(default="", **{row.name: row.flag for row in FORMATS if row.flag})
@click.option(
    "--format",
    "chosen",
    type=click.Choice([row.name for row in FORMATS]),
    help="Write this format. Default: by the ending of FILE, else JSON.",
)
@click.option(
    "--names",
    type=click.Choice([*NAMINGS]),
    help="Use the tensor names and the meaning of momentum of this framework.",
)
@options.file_option(
    "--map",
    "map_file",
    help="Rename layers by the lines OLD,NEW of FILE, which diff --map writes.",
)
@click.option(
    "--folded",
    is_flag=True,
    help="Write the scale and shift of each channel: y = scale * x + shift.",
)
@click.option(
    "--epsilon",
    type=float,
    metavar="E",
    help="With --folded, use this epsilon for layers whose file does not store it.",
)
@options.output
@options.layers
@options.no_values
@options.reading
@options.quiet
def command(
    path: str,
    format_: str,
    chosen: str | None,
    names: str | None,
    map_file: str | None,
    folded: bool,
    epsilon: float | None,
    output: str,
    no_values: bool,
    reading: options.Reading,
) -> int:
    """Write every value of every batch-norm layer of the model at PATH.

    PATH is the folder, the prefix, any file or the URL (s3://, gs://, az://, hf://, https://) of a
    SavedModel, a checkpoint, an .h5, a .keras or another model. The default is the current folder.
    Without an option that names the format, the ending of FILE selects the format.
    """
    if format_ and chosen:
        raise click.UsageError(f"--{format_} and --format {chosen}: choose one")
    _, dot, ending = output.lower().rpartition(".")
    name = format_ or chosen or (dot and ending)
    row = next((row for row in FORMATS if row.name == name), FORMATS[0])
    if no_values and folded:
        raise click.UsageError("--no-values and --folded: choose one")
    if no_values and not row.is_document:
        raise click.UsageError(f"--no-values requires --json: {row.title} contains only values")
    if epsilon is not None and not folded:
        raise click.UsageError("--epsilon has no effect without --folded")

    from bnstat.exchange.naming import ExportOptions, read_name_map
    from bnstat.output.sink import open_binary, open_text, writes_to_terminal
    from bnstat.output.terminal.screen import track

    if row.is_binary:
        options.refuse_terminal(output, row.title)
    (model,) = reading.load(path, values=not no_values)
    renamed = {} if map_file is None else read_name_map(map_file, model.layers)
    hidden = reading.quiet or writes_to_terminal(output)
    tracked = functools.partial(track, what="exporting", hidden=hidden)
    export_options = ExportOptions(names, folded, epsilon, renamed, not no_values, tracked)
    export_options.check(model.layers)
    with open_binary(output) if row.is_binary else open_text(output) as file:
        row.module.dump(model, file, export_options)
    return reading.exit_code(model)
