"""The command line: options in, one call, output out.

Each command is the `command` of its own module of this package, imported when it is asked for.
Commands return their exit code: 0 done, 1 the answer is "no"; None counts as 0. Whatever keeps
one from its work ends here as one line on standard error and exit code 2.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from bnstat.cli.options import say
from bnstat.errors import BnstatError

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
    "completion": "Let Tab complete paths, layers, checkpoints and rules.",
}
"""The commands, in the order of the help, with their one-line descriptions."""

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

COMPLETE_VAR = "_BNSTAT_COMPLETE"
"""By this environment variable a shell asks for completions."""

_SIGINT, _SIGPIPE = 128 + 2, 128 + 13


class Commands(click.Group):
    """A group whose commands are imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names, without importing them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of that name; None where there is none."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"bnstat.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the command line; Ctrl-C ends that as quietly as a command, not by an abort."""
        try:
            return super().make_context(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit(_SIGINT)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; turn its result, or what went wrong, into the exit code."""
        ctx.exit(_run(lambda: super(Commands, self).invoke(ctx)))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; tell what the system refuses, also while help is printed."""
        if COMPLETE_VAR in os.environ:
            from bnstat.cli import shells

            shells.register()
        try:
            return super().main(*args, **{"complete_var": COMPLETE_VAR, **kwargs})
        except OSError as error:
            _discard_stdout()
            where = f"{error.filename}: " if error.filename is not None else ""
            sys.exit(_fail(f"{where}{error.strerror or error}"))


def _run(command: Callable[[], object]) -> int:
    try:
        code = command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BnstatError as error:
        return _fail(str(error))
    except BrokenPipeError:
        _discard_stdout()
        return _SIGPIPE
    except MemoryError:
        return _fail("not enough memory for this file")
    except KeyboardInterrupt:
        _discard_stdout()
        return _SIGINT
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    say(f"error: {message}")
    return 2


def _discard_stdout() -> None:
    """Let what standard output still holds go nowhere, so that the exit stays quiet."""
    stdout = sys.__stdout__
    if stdout is not None and sys.stdout is stdout:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from bnstat import __version__

        click.echo(f"bnstat {__version__}")
        ctx.exit()


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Find, show, check and export the batch-norm statistics in TensorFlow and Keras files.

    A model can be a SavedModel, a checkpoint, an .h5, a .keras and more: pass its folder, its
    prefix or any of its files. Only drift and recalibrate run the model; no other command executes
    anything in it. COMMAND --help lists the options, and bnstat help the topics.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
