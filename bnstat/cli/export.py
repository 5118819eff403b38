"""`bnstat export`: every value of every layer, for programs."""

from __future__ import annotations

import functools
import os
import sys

import click

from bnstat.cli import options

_FORMATS = ("json", "csv", "npz")


_EPILOG = """\b
Forms:
  JSON  one object; its schema is schema.json in bnstat/output/documents.
        Numbers read back to the stored bits; NaN and infinities are strings.
  CSV   one row a channel: layer, channel, gamma, beta, moving_mean,
        moving_variance. The channel of variables that are no vectors is one
        index a dimension, such as 0:3:1. A layer name that a spreadsheet
        would run as a formula gets a ' before it.
  NPZ   keys LAYER/ROLE, for numpy.load. bfloat16 becomes float32, exactly.

\b
Examples:
  bnstat export saved_model --json | jq '.layers[].name'
  bnstat export runs/cnn --step 1200 -o stats.npz
  bnstat export model.h5 --layer 'block1*' --csv
"""


@click.command("export", epilog=_EPILOG)
@options.path
@click.option("--json", "as_json", is_flag=True, help="Write JSON, losslessly. The default.")
@click.option("--csv", "as_csv", is_flag=True, help="Write CSV: one row a channel.")
@click.option("--npz", "as_npz", is_flag=True, help="Write NPZ, NumPy's archive of arrays.")
@options.output
@options.layers
@options.no_values
@options.reading
@options.quiet
def command(
    path: str,
    as_json: bool,
    as_csv: bool,
    as_npz: bool,
    output: str,
    layers: tuple[str, ...],
    no_values: bool,
    reading: options.Reading,
    quiet: bool,
) -> int:
    """Write every value of every batch-norm layer of the model at PATH.

    PATH is a SavedModel, a checkpoint, an .h5 or a .keras: its folder, its prefix, any of its
    files, or a URL of these (s3://, gs://, az://, hf://, https://). Without --json, --csv or
    --npz the form follows from the ending of FILE.
    """
    form = _form((as_json, as_csv, as_npz), output)
    if no_values and form != "json":
        raise click.UsageError(f"--no-values leaves nothing to write as {form.upper()}: use --json")
    if form == "npz" and output == "-" and sys.stdout is not None and sys.stdout.isatty():
        raise click.UsageError("NPZ is not for a terminal: name a file with -o, or use a pipe")
    model = reading.load(path, layers, values=not no_values, quiet=quiet)
    options.tell(model, quiet)

    from bnstat.output.sink import open_binary, open_text, writes_to_terminal
    from bnstat.output.terminal.progress import track

    tracked = functools.partial(track, what="exporting", hidden=quiet or writes_to_terminal(output))
    if form == "npz":
        from bnstat.output.documents import npz

        with open_binary(output) as binary:
            npz.dump(model, binary, track=tracked)
    elif form == "csv":
        from bnstat.output.documents import csv

        with open_text(output) as text:
            csv.dump(model, text, track=tracked)
    else:
        from bnstat.output.documents import json

        with open_text(output) as text:
            json.dump(model, text, not no_values, track=tracked)
    return options.answer(model, quiet)


def _form(flags: tuple[bool, ...], output: str) -> str:
    """The form that the flags ask for, else the one of the file's ending, else JSON."""
    asked = [form for form, flag in zip(_FORMATS, flags, strict=True) if flag]
    if len(asked) > 1:
        raise click.UsageError(f"{' and '.join(f'--{form}' for form in asked)}: choose one")
    ending = os.path.splitext(output)[1][1:].lower()
    return asked[0] if asked else ending if ending in _FORMATS else "json"
