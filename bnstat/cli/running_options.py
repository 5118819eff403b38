"""The options of the commands that run a model over data."""

from __future__ import annotations

import functools
from contextlib import suppress
from fractions import Fraction
from typing import Any

import click

from bnstat.cli.options import Command, as_dict, repeatable, together
from bnstat.signals import ending_in_time

DATA = """\b
DATA is one of these:
  FILE.npz         arrays by the names of the model's inputs
  FILE.npy         one array, for a model of one input
  FOLDER           a dataset that tf.data.Dataset.save wrote
  FILE             a TFRecord of tf.Example, features named as the inputs;
                   also a FOLDER of such files
  FOLDER           images, see --image-size and --scale
  MODULE:FUNCTION  Python code that yields batches; also FILE.py:FUNCTION
"""

RUNS = """\b
The model is a SavedModel, a .keras, a full .h5, a frozen graph, or a
TensorFlow 1 checkpoint with its .meta. Only ops that compute with values in
memory are run, and only layers of Keras itself are built, unless --trust.
"""


def _size(given: str) -> tuple[int, int]:
    sizes = given.lower().split("x")
    if len(sizes) not in (1, 2) or not all(each.isdecimal() and int(each) for each in sizes):
        raise click.BadParameter(f"{given!r} is neither SIZE nor HEIGHTxWIDTH")
    return int(sizes[0]), int(sizes[-1])


def _factor(given: str) -> float:
    try:
        return float(Fraction(given))
    except (ValueError, ZeroDivisionError):
        problem = f"{given!r} is not a number; write, for example, 0.5 or 1/255"
        raise click.BadParameter(problem) from None


def _feed(text: str) -> tuple[str, bool | float]:
    name, _, value = text.rpartition("=")
    if name and value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    with suppress(ValueError):
        if name:
            return name, float(value)
    raise click.BadParameter(f"{text!r} is not NAME=NUMBER, nor NAME=true or NAME=false")


def _renamed(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> None:
    if given:
        use = "use --answer to name the model's output, or -o to name a file"
        raise click.UsageError(f"no option --output: {use}")


_OPTIONS = (
    click.option(
        "--data", required=True, metavar="DATA", help="Run the model on this data; see below."
    ),
    click.option(
        "--labels",
        metavar="NAME",
        help="Compute the accuracy, with the classes in this array of DATA.",
    ),
    click.option(
        "--samples",
        type=click.IntRange(min=2),
        default=4096,
        show_default=True,
        help="Use at most this number of samples.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=64,
        show_default=True,
        help="Run this number of samples at a time.",
    ),
    click.option(
        "--image-size",
        metavar="HxW",
        type=_size,
        help="Resize images to this. Default: the model's own size.",
    ),
    click.option(
        "--scale",
        metavar="FACTOR",
        default="1",
        type=_factor,
        help="Multiply the pixels of images (0 to 255) by this, such as 1/255.",
    ),
    click.option(
        "--signature",
        metavar="NAME",
        help="Run this signature of a SavedModel that has several. Default: serving_default.",
    ),
    repeatable(
        "--input",
        "inputs",
        metavar="NAME",
        help="Feed DATA to this tensor, if that is not obvious.",
    ),
    repeatable(
        "--answer",
        "outputs",
        metavar="NAME",
        help="Use this tensor as the model's output, if that is not obvious.",
    ),
    click.option("--output", multiple=True, hidden=True, expose_value=False, callback=_renamed),
    repeatable(
        "--feed",
        "feeds",
        metavar="NAME=VALUE",
        type=_feed,
        callback=as_dict,
        help="Feed a placeholder for a single number, such as keep_prob=1. A placeholder for a "
        "single bool is false unless it is set here.",
    ),
    repeatable(
        "--import",
        "imports",
        metavar="MODULE",
        help="Import MODULE first, for the custom classes of a Keras file.",
    ),
    click.option(
        "--trust",
        is_flag=True,
        help="Also run ops, build layers and import modules that are refused otherwise: they can "
        "read and write files and run code. Use it only for models from people whom you trust.",
    ),
)


def options(command: Command) -> Command:
    """Add the options that `drift` and `recalibrate` share, named like arguments of `bnstat.drift`.

    Progress is shown unless the command's option --quiet is set.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, **settings: Any) -> Any:
        from bnstat.estimate.data.stored import Images
        from bnstat.output.terminal.screen import track

        settings["images"] = Images(settings.pop("image_size"), settings.pop("scale"))
        settings["track"] = functools.partial(track, hidden=settings["quiet"])
        with ending_in_time():
            return command(*args, **settings)

    return together(*_OPTIONS)(wrapper)  # type: ignore[return-value]
