"""`bnstat diff`: show what changed between two models."""

from __future__ import annotations

from typing import Any

import click

from bnstat.cli import options
from bnstat.cli.options import Reading

_EPILOG = """\b
Examples:
  bnstat diff before.h5 after.h5
  bnstat diff runs/cnn/model-100 runs/cnn/model-1200 --layer 'block1*'
  bnstat diff model.h5 saved_model --atol 1e-6 --md
  bnstat diff model.keras ported.onnx
  bnstat diff model.keras ported.pth --epsilon 1e-5
"""


@click.command("diff", epilog=_EPILOG)
@click.argument("old", type=click.Path())
@click.argument("new", type=click.Path())
@click.option(
    "--rtol",
    type=float,
    default=0.0,
    metavar="R",
    help="Relative tolerance: values are equal if |new - old| <= A + R * |old|. Default: 0.",
)
@click.option(
    "--atol", type=float, default=0.0, metavar="A", help="Absolute tolerance. Default: 0."
)
@click.option(
    "--tolerance",
    type=float,
    default=1e-6,
    metavar="T",
    help="Largest relative difference of scale, shift and folded weights that counts as the same "
    "in effect. Default: 1e-6, a few roundings of float32.",
)
@click.option(
    "--epsilon",
    type=float,
    metavar="E",
    help="Assume this epsilon for layers whose file does not store it: for a port, the epsilon of "
    "its own code (PyTorch's default: 1e-5).",
)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Also show layers that are equal, and every name of a long list.",
)
@options.formats(
    map="Write a line OLD,NEW for each pair of layers, which export --map reads.",
    json="Write JSON.",
    md="Write Markdown.",
)
@options.layers
@options.reading_all
@options.output
@options.quiet
def command(
    old: str, new: str, everything: bool, format_: str, reading: Reading, output: str, **limits: Any
) -> int:
    """Show what changed from the model OLD to the model NEW, whatever their formats.

    OLD and NEW are each the folder, the prefix, any file or the URL of a SavedModel, a checkpoint,
    an .h5, a .keras or another model. Layers are paired by name. Layers with different names are
    paired by the end of the name, by position and shape, by values, or by scale and shift. The
    output reports the criterion. A different name alone does not count as a difference.

    The verdict on a layer is: the same; the same in effect (only scale and shift agree); folded
    into the adjacent weights (proven number by number); or different. If arithmetic shows the cause
    of a difference, the output reports the cause. The exit code is 1 if a layer is different,
    removed or added, and 0 otherwise.
    """
    models = reading.load(old, new)

    from bnstat.compare.diff import diff
    from bnstat.output import differences
    from bnstat.output.sink import open_text, show, write_lines

    difference = diff(*models, **limits)
    if format_ == "map":
        from bnstat.exchange.naming import write_name_map

        with open_text(output) as file:
            write_name_map(difference, models[1], file)
    elif format_ == "text":
        show(lambda screen: differences.text_lines(difference, screen, everything), output)
    elif format_ == "md":
        show(lambda _: differences.markdown_lines(difference, everything), output)
    else:
        write_lines(differences.json_lines(difference), output)
    if difference.layers or difference.folded:
        return 0 if difference.equivalent else 1
    for model in models:
        reading.exit_code(model)
    return 1
