"""`bnstat completion`: make a shell complete paths, layers, checkpoints and rules."""

from __future__ import annotations

import os
import shlex
from typing import Final

import click

from bnstat.cli.options import say

_SHELLS: Final = ("bash", "zsh", "fish")


_EPILOG = """\b
Examples:
  bnstat completion --install            for your own shell
  bnstat completion fish --install
  source <(bnstat completion bash)       for this session alone
"""


@click.command("completion", epilog=_EPILOG)
@click.argument("shell", required=False, metavar="[bash|zsh|fish]", type=click.Choice(_SHELLS))
@click.option("--install", is_flag=True, help="Set completion up for all later sessions.")
def command(shell: str | None, install: bool) -> None:
    """Let Tab complete commands, options, paths, layers, checkpoints and rules.

    Without --install, print the script for the shell. With --install, store the script, and for
    bash and zsh add a line to .bashrc or .zshrc that reads it. Installing again changes nothing.
    The default shell is the one in $SHELL.
    """
    if shell is None:
        shell = os.path.basename(os.environ.get("SHELL", ""))
        if shell not in _SHELLS:
            raise click.UsageError(f"name a shell: {', '.join(_SHELLS)}")

    from bnstat.cli import COMPLETE_VAR, main
    from bnstat.cli.shells import SHELLS

    script = SHELLS[shell](main, {}, "bnstat", COMPLETE_VAR).source()
    if not install:
        click.echo(script, nl=False)
        return
    path = _script_path(shell)
    _store(path, script)
    if (start := _start_file(shell)) is not None:
        _append_once(start, f"[ -r {shlex.quote(path)} ] && . {shlex.quote(path)}")
        say(f"{start} now reads {path}")
    else:
        say(f"stored as {path}")
    say("open a new shell, and press Tab")


def _script_path(shell: str) -> str:
    if shell == "fish":
        folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        return os.path.join(folder, "fish", "completions", "bnstat.fish")
    folder = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(folder, "bnstat", f"completion.{shell}")


def _start_file(shell: str) -> str | None:
    """The file that the shell reads at its start; None where it finds the script by itself."""
    if shell == "fish":
        return None
    home = os.environ.get("ZDOTDIR") if shell == "zsh" else None
    return os.path.join(home or os.path.expanduser("~"), f".{shell}rc")


def _store(path: str, script: str) -> None:
    from bnstat.output.sink import open_text

    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open_text(path) as file:
        file.write(script)


def _append_once(path: str, line: str) -> None:
    with open(path, "a+", encoding="utf-8", errors="surrogateescape") as file:
        file.seek(0)
        text = file.read()
        if line not in text.splitlines():
            file.write(f"{'' if text.endswith(chr(10)) or not text else chr(10)}{line}\n")
