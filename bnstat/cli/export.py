"""`bnstat export`: every value of every layer, for programs."""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING

import click

from bnstat.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bnstat.exchange.form import Form
    from bnstat.model import BatchNorm, Model

    Track = Callable[[Sequence[BatchNorm]], Iterable[BatchNorm]]


_FORMATS = ("json", "csv", "npz", "safetensors", "parquet")
_BINARY = ("npz", "safetensors", "parquet")
_NAMES = ("keras", "pytorch", "onnx", "flax")


_EPILOG = """\b
Forms:
  JSON  one object; its schema is schema.json in bnstat/exchange.
        Numbers read back to the stored bits; NaN and infinities are strings.
  CSV   one row per channel: layer, channel, gamma, beta, moving_mean,
        moving_variance. If variables have several dimensions, a channel is
        one index per dimension, such as 0:3:1. A layer name that a
        spreadsheet would run as a formula gets a ' before it.
  NPZ   keys LAYER/ROLE, for numpy.load. bfloat16 becomes float32, exactly.
  safetensors
        the same keys, with every type as it is stored.
  parquet
        the table of CSV; needs pyarrow (pip install pyarrow).

\b
Examples:
  bnstat export saved_model --json | jq '.layers[].name'
  bnstat export runs/cnn --step 1200 -o stats.npz
  bnstat export model.h5 --layer 'block1*' --csv
  bnstat export model.keras --names pytorch -o port.safetensors
  bnstat export model.keras --folded --csv
"""


@click.command("export", epilog=_EPILOG)
@options.path
@click.option("--json", "as_json", is_flag=True, help="Write JSON, losslessly. The default.")
@click.option("--csv", "as_csv", is_flag=True, help="Write CSV: one row per channel.")
@click.option("--npz", "as_npz", is_flag=True, help="Write NPZ, NumPy's archive of arrays.")
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    help="Write this format. Default: by the ending of FILE, else JSON.",
)
@click.option(
    "--names",
    type=click.Choice(_NAMES),
    help="Use the tensor names and the meaning of momentum of this framework.",
)
@click.option(
    "--map",
    "map_file",
    metavar="FILE",
    type=click.Path(),
    help="Rename layers by the lines FROM,TO of FILE, which diff --map writes.",
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
    as_json: bool,
    as_csv: bool,
    as_npz: bool,
    form: str | None,
    names: str | None,
    map_file: str | None,
    folded: bool,
    epsilon: float | None,
    output: str,
    layers: tuple[str, ...],
    no_values: bool,
    reading: options.Reading,
    quiet: bool,
) -> int:
    """Write every value of every batch-norm layer of the model at PATH.

    PATH is a SavedModel, a checkpoint, an .h5, a .keras or another model: its folder, its prefix,
    any of its files, or a URL of these (s3://, gs://, az://, hf://, https://). The default is the
    current folder. Without --format, --json, --csv or --npz the ending of FILE decides the format.
    """
    kind = _form((as_json, as_csv, as_npz), form, output)
    if no_values and (kind != "json" or folded):
        what = "scale and shift" if folded else kind.upper()
        raise click.UsageError(f"--no-values leaves nothing to write as {what}: use --json")
    if epsilon is not None and not folded:
        raise click.UsageError("--epsilon is of --folded: the roles are written as they are")
    if kind in _BINARY and output == "-" and sys.stdout is not None and sys.stdout.isatty():
        raise click.UsageError(
            f"{kind.upper()} is not for a terminal: name a file with -o, or use a pipe"
        )
    model = reading.load(path, layers, values=not no_values, quiet=quiet)
    options.tell([model], quiet)

    from bnstat.exchange.form import Form
    from bnstat.output.sink import writes_to_terminal
    from bnstat.output.terminal.screen import track

    renamed = {}
    if map_file is not None:
        from bnstat.exchange import form as renaming

        renamed = dict(renaming.read(map_file, model.layers))
    wanted = Form(names, folded, epsilon, renamed)
    wanted.check(model.layers)
    tracked = functools.partial(track, what="exporting", hidden=quiet or writes_to_terminal(output))
    _write(model, kind, wanted, not no_values, tracked, output)
    return options.answer(model, quiet)


def _write(model: Model, kind: str, form: Form, values: bool, track: Track, output: str) -> None:
    from bnstat.output.sink import open_binary, open_text

    if kind == "npz":
        from bnstat.exchange import npz

        with open_binary(output) as binary:
            npz.dump(model, binary, form, track=track)
    elif kind == "safetensors":
        from bnstat.exchange import safetensors

        with open_binary(output) as binary:
            safetensors.dump(model, binary, form, track=track)
    elif kind == "parquet":
        from bnstat.exchange import parquet

        with open_binary(output) as binary:
            parquet.dump(model, binary, form, track=track)
    elif kind == "csv":
        from bnstat.exchange import csv

        with open_text(output) as text:
            csv.dump(model, text, form, track=track)
    else:
        from bnstat.exchange import json

        with open_text(output) as text:
            json.dump(model, text, values, form, track=track)


def _form(flags: tuple[bool, ...], chosen: str | None, output: str) -> str:
    """The form that the flags ask for, else the one of the file's ending, else JSON."""
    asked = [f"--{form}" for form, flag in zip(_FORMATS, flags, strict=False) if flag]
    asked += [f"--format {chosen}"] if chosen else []
    if len(asked) > 1:
        raise click.UsageError(f"{' and '.join(asked)}: choose one")
    if asked:
        return chosen or asked[0].removeprefix("--")
    ending = os.path.splitext(output)[1][1:].lower()
    return ending if ending in _FORMATS else "json"
