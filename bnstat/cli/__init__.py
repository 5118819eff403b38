"""The command line. Each command is the function `command` of a module in this package.

The function returns the exit code. Errors become one line on standard error and exit code 2.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, cast

import click

from bnstat import __version__
from bnstat.cli.options import say
from bnstat.errors import BnstatError
from bnstat.signals import INTERRUPTED

COMMANDS = {
    "inspect": "Show the batch-norm layers in a table, with their statistics.",
    "export": "Write every value of every layer as JSON, CSV or NPZ.",
    "check": "Check a model, and explain how to fix the findings.",
    "diff": "Show what changed between two models.",
    "history": "Show how the statistics moved over a training run.",
    "scan": "Check every model in a folder or bucket.",
    "drift": "Run a model: compare its statistics with those of data.",
    "recalibrate": "Run a model: estimate its statistics, and write a copy.",
    "apply": "Write a copy of a model with new values.",
    "report": "Write an HTML page about a model, a run or a difference.",
    "help": "Show the documentation, topic by topic.",
    "completion": "Print a script for Tab completion in a shell.",
}
"""Name of a command -> its summary, in the order of `bnstat --help`."""

_EPILOG = """\b
Examples:
  bnstat inspect runs/cnn                the newest checkpoint of a folder
  bnstat inspect model.keras --values    every value
  bnstat export saved_model -o all.npz   for NumPy; also JSON and CSV
  bnstat check saved_model               is it healthy?

\b
Exit codes:
  0  done; check had no findings, diff found no difference
  1  no batch norm in the file; check had findings, diff found a difference
  2  the command failed
"""


class Commands(click.Group):
    """A group that imports each command on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return cast(click.Command, importlib.import_module(f"bnstat.cli.{cmd_name}").command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command. Raise a usage error with the nearest name if the name is unknown."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            nearest = get_close_matches(name.lower(), COMMANDS, n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the command line; Ctrl-C exits without a message."""
        try:
            return super().make_context(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and exit with the returned code or the exit code for the raised error."""
        try:
            code = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BnstatError as error:
            code = _fail(str(error))
        except BrokenPipeError:
            _discard_stdout()
            code = 128 + 13  # The exit code of a process that SIGPIPE ends.
        except MemoryError:
            code = _fail("not enough memory for this file")
        except KeyboardInterrupt:
            _discard_stdout()
            code = INTERRUPTED
        ctx.exit(code if isinstance(code, int) else 0)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line. Report an `OSError`, even from printing help, in one line."""
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            _discard_stdout()
            where = f"{error.filename}: " if error.filename is not None else ""
            sys.exit(_fail(f"{where}{error.strerror or error}"))


def _fail(message: str) -> int:
    say(f"error: {message}")
    return 2


def _discard_stdout() -> None:
    """Redirect standard output to the null device, so that the flush at exit does not fail."""
    stdout = sys.__stdout__
    if stdout is not None and sys.stdout is stdout:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)
@click.version_option(__version__, message="bnstat %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Find, show, check and export the batch-norm statistics in TensorFlow and Keras files.

    A model can be a SavedModel, a checkpoint, an .h5, a .keras and more: pass its folder, its
    prefix or any of its files. Only drift and recalibrate run the model; no other command executes
    anything in it. COMMAND --help lists the options, and bnstat help the topics.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
